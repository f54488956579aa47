"""Probabilities of any candidates for any users: Parquet in, Parquet out, on Beam."""
