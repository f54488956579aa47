"""Programs that put a model server to the test: conformance, fuzz and soak."""
