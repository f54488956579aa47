"""Thousands of broken requests to a server, good ones between them: no crash, no hang, no leak, no wrong answer."""
