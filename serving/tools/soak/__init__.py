"""Keeps clients asking while versions come, break, go back and go."""
