"""Benchmarks of retrieval and ranking together."""
