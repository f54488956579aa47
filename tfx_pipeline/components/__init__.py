"""Components that TFX lacks, or that it can run on Docker and Kubernetes only."""
