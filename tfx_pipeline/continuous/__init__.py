"""The loop from new events to a served version, at a cost that does not grow with the log."""
