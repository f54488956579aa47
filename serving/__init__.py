"""The embedded model server, the clients and the tools around them."""
