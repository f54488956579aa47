"""The embedded model server, the client, and what runs around them. Nothing here knows the model's Python classes."""
