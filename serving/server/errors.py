"""Errors as gRPC statuses, the one form in which the server reports them."""

from __future__ import annotations

import re

import tensorflow as tf
from grpc import StatusCode

from serving.server.status import StatusError

_CODES = {code.value[0]: code for code in StatusCode}

# gRPC drops an answer whose metadata, the message included, is over 8 KiB; a byte can take three there.
_MAX_MESSAGE_CHARACTERS = 1_000


def status_of(error: Exception) -> tuple[StatusCode, str]:
    """The code and message of any error. TensorFlow's errors keep their code; unforeseen errors are INTERNAL."""
    if isinstance(error, StatusError):
        code, message = error.code, str(error)
    elif isinstance(error, tf.errors.OpError):
        code, message = _CODES[error.error_code], _graph_message(error.message)
    elif isinstance(error, FileNotFoundError):
        code, message = StatusCode.NOT_FOUND, str(error)
    else:
        code, message = StatusCode.INTERNAL, f"{type(error).__name__}: {error}"
    if len(message) > _MAX_MESSAGE_CHARACTERS:
        message = message[:_MAX_MESSAGE_CHARACTERS] + "..."
    return code, message


def _graph_message(message: str) -> str:
    """What the failing op said, without the graph's nodes and stack traces around it."""
    message = message.split("\n\t [[")[0].strip().rpartition("\n")[2]
    message = re.sub(r"^\s*\(\d+\) [A-Z_]+:\s*", "", message)
    message = re.sub(r"^\{\{.*?\}\} ", "", message)
    return re.sub(r" \[Op:\w+\]( name: \S*)?$", "", message)
