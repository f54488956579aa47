"""The loop from new events to a served version, at a cost in proportion to what is new."""
