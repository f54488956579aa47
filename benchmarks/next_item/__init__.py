"""Benchmark of retrieval: which item does a user take next, of all that there are?"""
