"""Joins requests into batches, by the batching op on which TensorFlow Serving's scheduler rests."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from serving.server.status import invalid_argument

Call = Callable[..., Sequence[np.ndarray]]

# Requests of unequal trailing shapes can't be one batch. As many shapes as this are sure not to meet.
_QUEUES = 16
_DEFAULTS = {"max_batch_size": 1_000, "batch_timeout_micros": 0, "max_enqueued_batches": 10}


def callable_of(session: tf.compat.v1.Session, outputs: Sequence[tf.Tensor], inputs: Sequence[tf.Tensor]) -> Call:
    """A function of arrays, fed to `inputs`, that returns `outputs` as arrays."""
    run = session.make_callable(list(outputs), feed_list=list(inputs))

    def call(*columns: np.ndarray) -> Sequence[np.ndarray]:
        try:
            return run(*columns)
        except UnicodeDecodeError as error:
            # An op that quotes the caller's bytes, which TensorFlow can't make a Python error of.
            raise tf.errors.InvalidArgumentError(None, None, error.object.decode("utf-8", "replace")) from None

    return call


def batched(
    session: tf.compat.v1.Session,
    name: str,
    function: Callable[..., list[tf.Tensor]],
    inputs: Sequence[tf.Tensor],
    direct: Call,
    parameters: Any,
) -> Call:
    """A call that joins the rows of concurrent requests with equal trailing shapes.

    Nothing is padded: `pad_variable_length_inputs` changes no answer here, as requests of unequal shapes do not meet.

    Args:
        session: where it runs; its graph is the default.
        name: name of the signature; each has batches of its own.
        function: the signature, from tensors to the list of its outputs, each with the batch as its first axis.
        inputs: the placeholders of its inputs.
        direct: the same signature without batching.
        parameters: BatchingParameters; TensorFlow Serving's defaults for what it leaves out.

    Returns:
        A function of one array for each input, which returns one for each output. It raises StatusError for a request
        larger than `max_batch_size`, and UNAVAILABLE from the op when `max_enqueued_batches` wait.
    """
    values = {"num_batch_threads": os.cpu_count() or 1, **_DEFAULTS}
    values |= {key: getattr(parameters, key).value for key in values if parameters.HasField(key)}
    concrete = tf.function(function, autograph=False).get_concrete_function(*inputs)
    queues = [
        tf.raw_ops.BatchFunction(
            in_tensors=inputs,
            captured_tensors=concrete.captured_inputs,
            f=concrete,
            Tout=[x.dtype for x in concrete.outputs],
            allowed_batch_sizes=list(parameters.allowed_batch_sizes),
            shared_name=name,
            batching_queue=str(queue),
            enable_large_batch_splitting=False,
            **values,
        )
        for queue in range(_QUEUES)
    ]
    calls: dict[int, Call] = {}

    def call(*columns: np.ndarray) -> Sequence[np.ndarray]:
        rows = {len(column) if column.ndim else 0 for column in columns}
        if len(rows) != 1 or 0 in rows:
            # Nothing to join, or wrong: then the graph says what, better than the op would.
            return direct(*columns)
        (size,) = rows
        if size > (limit := values["max_batch_size"]):
            raise invalid_argument(f"Task size {size} is larger than maximum input batch size {limit}")
        queue = hash(tuple(column.shape[1:] for column in columns)) % _QUEUES
        if queue not in calls:
            calls[queue] = callable_of(session, queues[queue], inputs)
        try:
            return calls[queue](*columns)
        except tf.errors.UnavailableError:
            raise
        except tf.errors.OpError:
            # One request can fail a whole batch. Alone, each gets its own answer.
            return direct(*columns)

    return call
