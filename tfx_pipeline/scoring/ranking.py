"""The signature `rank` of an export, asked for the probabilities of many requests of any sizes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from keras_eta.export import PROBABILITY
from keras_eta.quiet import QUIET_GRAPHS
from tfx_pipeline.scoring.requests import CANDIDATES, Request, zeros

RANK = "rank"

# Of one call, padding included: what a call of `rank` needs memory for grows with both.
_MAX_CANDIDATES = 1_000
_MAX_REQUESTS = 32


class RankSignature:
    """The signature `rank` of a version, by the names that its columns have, whichever they are.

    Args:
        version_dir: of the SavedModel.

    Raises:
        ValueError: if the version has no such signature.
    """

    def __init__(self, version_dir: str) -> None:
        description = SavedModel.FromString(Path(version_dir, "saved_model.pb").read_bytes())
        signatures = description.meta_graphs[0].signature_def
        if RANK not in signatures:
            raise ValueError(f"{version_dir} has no signature {RANK!r}. It has: {sorted(signatures)}")
        inputs = signatures[RANK].inputs
        self._names = list(inputs)
        # A session, as in TensorFlow Serving: eager functions would still be there, and complain, when Python ends.
        with tf.Graph().as_default():
            session = tf.compat.v1.Session(config=tf.compat.v1.ConfigProto(graph_options=QUIET_GRAPHS))
            loaded = tf.saved_model.load(version_dir, tags=[tf.saved_model.SERVING])
            rank = loaded.signatures[RANK]
            specs = rank.structured_input_signature[1]
            # An argument must be a word and a column need not be. The tensor of an input is `rank_<argument>:0`.
            arguments = [inputs[name].name.removeprefix(f"{RANK}_").removesuffix(":0") for name in self._names]
            tensors = [tf.compat.v1.placeholder(specs[argument].dtype, specs[argument].shape) for argument in arguments]
            probability = rank(**dict(zip(arguments, tensors, strict=True)))[PROBABILITY]
            session.run([tf.compat.v1.global_variables_initializer(), tf.compat.v1.tables_initializer()])
            self._call = session.make_callable(probability, tensors)

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Probabilities [R, C] of the inputs by name."""
        probability: np.ndarray = self._call(*(inputs[name] for name in self._names))
        return probability


class Part(NamedTuple):
    """Successive candidates of one request: those from `start` to `end`."""

    request: int
    start: int
    end: int


def probabilities(rank: RankSignature, requests: Sequence[Request], axes: Mapping[str, str | None]) -> list[np.ndarray]:
    """What the signature says of the candidates of each request.

    Requests of like sizes share a call, padded to the longest. Those with very many candidates are asked in parts.

    Args:
        rank: of the model.
        requests: in any order.
        axes: of the inputs, as `RequestReader.axes` has them.

    Returns:
        For each request float32 [C], in the order of its candidates.

    Raises:
        RuntimeError: if the model gives something that is no number.
    """
    found = [np.empty(request.sizes[CANDIDATES], np.float32) for request in requests]
    for parts in calls(requests):
        probability = rank(padded_inputs(requests, parts, axes))
        for row, (request, start, end) in zip(probability, parts, strict=True):
            found[request][start:end] = row[: end - start]
    if not all(np.isfinite(row).all() for row in found):
        raise RuntimeError(f"The model's {RANK!r} gives probabilities that are not finite.")
    return found


def calls(requests: Sequence[Request]) -> list[list[Part]]:
    """Which parts of which requests share a call, so that little is padded.

    Numbers of candidates in one call differ by less than a factor of two, and histories are neighbours in length.
    """
    parts = [
        Part(number, start, min(start + _MAX_CANDIDATES, request.sizes[CANDIDATES]))
        for number, request in enumerate(requests)
        for start in range(0, request.sizes[CANDIDATES], _MAX_CANDIDATES)
    ]

    def power_of_two(part: Part) -> int:
        return (part.end - part.start).bit_length()

    def sizes(part: Part) -> tuple[int, ...]:
        behaviours = [size for axis, size in requests[part.request].sizes.items() if axis != CANDIDATES]
        return (power_of_two(part), *behaviours)

    shared: list[list[Part]] = []
    for _, alike in itertools.groupby(sorted(parts, key=sizes), power_of_two):
        call: list[Part] = []
        for part in alike:
            most = max(other.end - other.start for other in (*call, part))
            if not call or len(call) == _MAX_REQUESTS or (len(call) + 1) * most > _MAX_CANDIDATES:
                call = []
                shared.append(call)
            call.append(part)
    return shared


def padded_inputs(
    requests: Sequence[Request], parts: Sequence[Part], axes: Mapping[str, str | None]
) -> dict[str, np.ndarray]:
    """The inputs of one call, with one row for each part; shorter lists are padded behind."""
    inputs = {}
    for name, axis in axes.items():
        rows = [requests[part.request].inputs[name] for part in parts]
        if axis is None:
            inputs[name] = np.stack(rows)
            continue
        if axis == CANDIDATES:
            rows = [row[part.start : part.end] for row, part in zip(rows, parts, strict=True)]
        # As clients do: an axis always has a place.
        longest = max(1, *map(len, rows))
        inputs[name] = zeros((len(rows), longest, *rows[0].shape[1:]), rows[0].dtype)
        for place, row in zip(inputs[name], rows, strict=True):
            place[: len(row)] = row
    return inputs
