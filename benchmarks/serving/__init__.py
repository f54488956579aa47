"""Load on a model server, and what the embedded server costs over a call in process."""
