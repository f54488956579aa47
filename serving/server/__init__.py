"""The embedded model server: TensorFlow Serving's gRPC API on machines where TensorFlow Serving can't be installed."""
