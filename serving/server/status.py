"""What the server refuses by itself."""

from __future__ import annotations

from grpc import StatusCode


class StatusError(ValueError):
    """The server refuses a request, a configuration or a version.

    Args:
        code: the gRPC status code.
        message: what is wrong, in the words of TensorFlow Serving where it has any.
    """

    def __init__(self, code: StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def invalid_argument(message: str) -> StatusError:
    """An INVALID_ARGUMENT error."""
    return StatusError(StatusCode.INVALID_ARGUMENT, message)
