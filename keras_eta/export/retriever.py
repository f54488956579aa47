"""Exports a retriever to one SavedModel with the signatures that serving calls. Stock TensorFlow ops only."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_eta.columns import ITEM_ID, Sequence
from keras_eta.contract import Contract
from keras_eta.export.arguments import concrete
from keras_eta.export.checks import checked
from keras_eta.export.columns import EXAMPLES, RANK_AXES, Axes, dtypes_of, sequence_axes_of, specs_of
from keras_eta.export.examples import make_example
from keras_eta.export.export import vocabularies
from keras_eta.export.versions import write_version
from keras_eta.models.beam_search import Reserve
from keras_eta.models.ranker import Inputs
from keras_eta.models.tiger import TIGER
from keras_eta.validation import check_positive_integers, is_number

RETRIEVE = "retrieve"
LOG_PROBABILITY = "log_probability"
EXCLUDED = Sequence("excluded")


def export_retriever(
    model: TIGER,
    base_path: str | os.PathLike[str],
    version: int | None = None,
    *,
    num_results: int = 200,
    num_beams: int | None = None,
    unseen: Any = (),
    unseen_share: float = 0.1,
    warmup: bool = True,
    jit_compile: bool = False,
) -> Path:
    """Writes a servable version of a retriever: `base_path/version`, whole or not at all.

    | signature | inputs |
    |---|---|
    | `retrieve` | `history_item_id` [R, L], `history_length` [R]; `excluded_item_id` [R, E], `excluded_length` [R] |
    | `examples` | `examples`: serialized tf.Example [R] with the lists `history_item_id` and `excluded_item_id` |

    Both give `item_id` and `log_probability` [R, C]. A model that reads the user takes its column [R] as well.

    Ids are raw. The most recent behaviour is first, and only the model's `max_history_length` first are read. Items of
    `excluded_item_id` are never found; ids that are no items exclude nothing. The likeliest item comes first; where
    fewer than C are left, the rest has the log probability -inf, and 0 or `""` for an id.

    Args:
        model: a retriever, trained.
        base_path: directory of the model's versions, as TF Serving's `--model_base_path`; made when missing.
        version: as `export_model`.
        num_results: C.
        num_beams: beams of the search, at least C. `None`: C, but at least 50.
        unseen: raw ids [U] of items that training never saw, for which results are kept: a trained model finds them
            unlikely, for no other reason than that. Empty: none are kept, and `retrieve` makes one search, not two.
        unseen_share: of the C results, rounded up, that are theirs; TIGER's epsilon.
        warmup: as `export_model`.
        jit_compile: whether XLA compiles the search when the version is loaded, which makes one request with 50 beams
            nearly twice as fast; requests that are joined are searched for one after the other. TF Serving needs
            `--xla_cpu_compilation_enabled` for it. The warm-up requests cover the one shape that is ever compiled.

    Returns:
        The path of the version.

    Raises:
        TypeError: if `model` is no `TIGER`.
        ValueError: if a number is not positive, there are fewer beams than results, `unseen_share` is not from 0 to 1,
            or `unseen` has what is no item of the model.
        FileExistsError: if the version exists.
        ImportError: if `warmup` is asked for without tensorflow-serving-api.
    """
    if not isinstance(model, TIGER):
        raise TypeError(f"`model` must be a keras_eta.TIGER. Received: model={model!r}")
    num_beams = max(num_results, 50) if num_beams is None else num_beams
    check_positive_integers(num_results=num_results, num_beams=num_beams)
    if not is_number(unseen_share) or not 0 <= unseen_share <= 1:
        raise ValueError(f"`unseen_share` must be a number from 0 to 1. Received: unseen_share={unseen_share!r}")
    # Of users, who are hashed, none is unknown.
    items = {name: ids for name, ids in vocabularies(model.lookup).items() if name == ITEM_ID}
    contract = Contract(model.features, items)

    def trace() -> RetrievalSignatures:
        if not model.built:
            model.build()
        reserve = _reserve(model, unseen, math.ceil(unseen_share * num_results))
        return RetrievalSignatures(model, num_results, num_beams, reserve, jit_compile)

    return write_version(trace, Path(base_path), version, contract, warmup)


def _reserve(model: TIGER, unseen: Any, number: int) -> Reserve | None:
    if not len(unseen) or not number:
        return None
    rows = model.lookup.encode(ITEM_ID, unseen)
    unknown = [id_ for id_, row in zip(unseen, rows, strict=True) if row < 2]
    if unknown:
        raise ValueError(
            f"`unseen` must be items of the model. Received {len(unknown)} that are none, {unknown[0]!r} among them"
        )
    return Reserve([tf.Variable(nodes, trainable=False) for nodes in model.table.nodes_above(rows)], number)


class RetrievalSignatures(tf.Module):
    """The model's variables and items, and a concrete function for each signature.

    Args:
        model: a retriever, built.
        num_results: C, items found per request.
        num_beams: B.
        reserve: items that results are kept for.
        jit_compile: whether XLA compiles the search.
    """

    def __init__(
        self,
        model: TIGER,
        num_results: int,
        num_beams: int,
        reserve: Reserve | None = None,
        jit_compile: bool = False,
    ) -> None:
        super().__init__()
        self.reserved_nodes = [] if reserve is None else list(reserve.nodes)
        self.model_variables = [variable for variable in model.variables if isinstance(variable, tf.Variable)]
        self.vocabularies = [table.lookup_table for table in model.lookup.tables.values()]
        self.raw_ids = tf.Variable(model.table.raw_ids_by_row(), trainable=False)
        # What is excluded is a list of items as the history is one.
        self.features = features = dataclasses.replace(model.features, sequences=(EXCLUDED,))
        dtypes = dtypes_of(features, raw_ids=True)
        users: dict[str, Axes] = {feature.name: "R" for feature in features.user}
        axes = dict(users)
        for sequence in features.all_sequences:
            axes |= sequence_axes_of(features, sequence, RANK_AXES)
        history, excluded = (sequence.column(ITEM_ID) for sequence in features.all_sequences)

        def retrieve(inputs: Inputs) -> dict[str, tf.Tensor]:
            inputs = checked(inputs, axes, features)
            requests = tf.shape(inputs[history])[:1]
            # The lookup wants a candidate, whom nobody reads.
            none = tf.fill(requests, "") if dtypes[ITEM_ID] == tf.string else tf.zeros(requests, dtypes[ITEM_ID])
            rows = model.lookup.encode_columns({**inputs, ITEM_ID: none}, features)
            found = model.retrieve(rows, num_results, num_beams, rows[excluded], reserve, jit_compile)
            return {ITEM_ID: tf.gather(self.raw_ids, found.rows), LOG_PROBABILITY: found.log_probability}

        def examples(inputs: Inputs) -> dict[str, tf.Tensor]:
            lists = {name: tf.io.RaggedFeature(dtypes[name], row_splits_dtype=tf.int64) for name in (history, excluded)}
            values = {name: tf.io.FixedLenFeature([], dtypes[name]) for name in users}
            columns = tf.io.parse_example(inputs[EXAMPLES], {**lists, **values})
            of_requests: dict[str, tf.Tensor] = self.functions[RETRIEVE](
                **{name: columns[name].to_tensor() for name in lists},
                **{name: columns[name] for name in values},
                **{
                    sequence.length: columns[sequence.column(ITEM_ID)].row_lengths()
                    for sequence in features.all_sequences
                },
            )
            return of_requests

        self.arguments = {name: name for name in axes}
        self.functions: dict[str, Any] = {RETRIEVE: concrete(retrieve, specs_of(axes, dtypes), self.arguments)}
        self.functions[EXAMPLES] = concrete(
            examples, {EXAMPLES: tf.TensorSpec([None], tf.string)}, {EXAMPLES: EXAMPLES}
        )

    def warmup_inputs(self, signature: str) -> list[dict[str, np.ndarray]]:
        """Inputs of a typical request to a signature: a full history, all of which is excluded.

        Args:
            signature: its name.
        """
        ids = np.repeat(self.raw_ids[-1:].numpy(), self.features.max_history_length)
        columns = {sequence.column(ITEM_ID): ids for sequence in self.features.all_sequences}
        users = {user.name: np.zeros(1, np.int64) for user in self.features.user}
        users |= {user.name: np.array([b""], object) for user in self.features.user if user.dtype == "string"}
        if signature == EXAMPLES:
            return [{EXAMPLES: np.array([make_example({**columns, **users}).SerializeToString()], object)}]
        lengths = {sequence.length: np.array([len(ids)]) for sequence in self.features.all_sequences}
        return [{**{name: column[np.newaxis] for name, column in columns.items()}, **lengths, **users}]
