"""Compares a server's answers with those of TensorFlow Serving, case by case."""
