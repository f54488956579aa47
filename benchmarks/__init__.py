"""Measurements: quality on real data, and the cost of a training step. They are not tests."""
