"""Errors as gRPC statuses: the one form in which the server reports that something went wrong."""

from __future__ import annotations

import re

import grpc
import tensorflow as tf

CODES = {code.value[0]: code for code in grpc.StatusCode}

# gRPC drops an answer whose metadata, the message included, is over 8 KiB; a byte can take three there.
_MAX_MESSAGE_CHARACTERS = 1_000


class StatusError(Exception):
    """A request or a version that is refused.

    Args:
        code: the gRPC status code.
        message: what is wrong, in the words of TensorFlow Serving where it has any.
    """

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message


def invalid_argument(message: str) -> StatusError:
    """The commonest refusal."""
    return StatusError(grpc.StatusCode.INVALID_ARGUMENT, message)


def status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """Code and message of any error: TensorFlow's keep their code, what nobody foresaw is INTERNAL."""
    if isinstance(error, StatusError):
        code, message = error.code, error.message
    elif isinstance(error, tf.errors.OpError):
        code, message = CODES[error.error_code], _graph_message(error.message)
    elif isinstance(error, FileNotFoundError):
        code, message = grpc.StatusCode.NOT_FOUND, str(error)
    else:
        code, message = grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}"
    if len(message) > _MAX_MESSAGE_CHARACTERS:
        message = message[:_MAX_MESSAGE_CHARACTERS] + "..."
    return code, message


def _graph_message(message: str) -> str:
    """What the failing op said, without the graph's nodes and stack traces around it."""
    message = message.split("\n\t [[")[0].strip().rpartition("\n")[2]
    message = re.sub(r"^\s*\(\d+\) [A-Z_]+:\s*", "", message)
    message = re.sub(r"^\{\{.*?\}\} ", "", message)
    return re.sub(r" \[Op:\w+\]( name: \S*)?$", "", message)
