"""Measurements of quality on real data, and of what training, retrieval, pipelines and serving cost. No tests."""
