"""Exports a retriever to one SavedModel with the signatures that serving calls. Stock TensorFlow ops only."""

from __future__ import annotations

import dataclasses
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
from keras_eta.models.ranker import Inputs
from keras_eta.models.tiger import TIGER
from keras_eta.validation import check_positive_integers

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
    warmup: bool = True,
) -> Path:
    """Writes a servable version of a retriever: `base_path/version`, whole or not at all.

    | signature | inputs |
    |---|---|
    | `retrieve` | `history_item_id` [R, L], `history_length` [R]; `excluded_item_id` [R, E], `excluded_length` [R] |
    | `examples` | `examples`: serialized tf.Example [R] with the lists `history_item_id` and `excluded_item_id` |

    Both give `item_id` and `log_probability` [R, C].

    Ids are raw. The most recent behaviour is first, and only the model's `max_history_length` first are read. Items of
    `excluded_item_id` are never found; ids that are no items exclude nothing. The likeliest item comes first; where
    fewer than C are left, the rest has the log probability -inf, and 0 or `""` for an id.

    Args:
        model: a retriever, trained.
        base_path: directory of the model's versions, as TF Serving's `--model_base_path`; made when missing.
        version: as `export_model`.
        num_results: C.
        num_beams: beams of the search, at least C. `None`: C, but at least 50.
        warmup: as `export_model`.

    Returns:
        The path of the version.

    Raises:
        TypeError: if `model` is no `TIGER`.
        ValueError: if a number is not positive, or there are fewer beams than results.
        FileExistsError: if the version exists.
        ImportError: if `warmup` is asked for without tensorflow-serving-api.
    """
    if not isinstance(model, TIGER):
        raise TypeError(f"`model` must be a keras_eta.TIGER. Received: model={model!r}")
    num_beams = max(num_results, 50) if num_beams is None else num_beams
    check_positive_integers(num_results=num_results, num_beams=num_beams)
    contract = Contract(model.features, vocabularies(model.lookup))

    def trace() -> RetrievalSignatures:
        if not model.built:
            model.build()
        return RetrievalSignatures(model, num_results, num_beams)

    return write_version(trace, Path(base_path), version, contract, warmup)


class RetrievalSignatures(tf.Module):
    """The model's variables and items, and a concrete function for each signature.

    Args:
        model: a retriever, built.
        num_results: C, items found per request.
        num_beams: B.
    """

    def __init__(self, model: TIGER, num_results: int, num_beams: int) -> None:
        super().__init__()
        self.model_variables = [variable for variable in model.variables if isinstance(variable, tf.Variable)]
        self.vocabularies = [model.lookup.tables[ITEM_ID].lookup_table]
        self.raw_ids = tf.Variable(model.table.raw_ids_by_row(), trainable=False)
        # What is excluded is a list of items as the history is one.
        self.features = features = dataclasses.replace(model.features, sequences=(EXCLUDED,))
        dtypes = dtypes_of(features, raw_ids=True)
        axes: dict[str, Axes] = {}
        for sequence in features.all_sequences:
            axes |= sequence_axes_of(features, sequence, RANK_AXES)
        history, excluded = (sequence.column(ITEM_ID) for sequence in features.all_sequences)

        def retrieve(inputs: Inputs) -> dict[str, tf.Tensor]:
            inputs = checked(inputs, axes, features)
            requests = tf.shape(inputs[history])[:1]
            # The lookup wants a candidate, whom nobody reads.
            none = tf.fill(requests, "") if dtypes[ITEM_ID] == tf.string else tf.zeros(requests, dtypes[ITEM_ID])
            rows = model.lookup.encode_columns({**inputs, ITEM_ID: none}, features)
            found = model.retrieve(rows, num_results, num_beams, rows[excluded])
            return {ITEM_ID: tf.gather(self.raw_ids, found.rows), LOG_PROBABILITY: found.log_probability}

        def examples(inputs: Inputs) -> dict[str, tf.Tensor]:
            lists = {name: tf.io.RaggedFeature(dtypes[name], row_splits_dtype=tf.int64) for name in (history, excluded)}
            columns = tf.io.parse_example(inputs[EXAMPLES], lists)
            of_requests: dict[str, tf.Tensor] = self.functions[RETRIEVE](
                **{name: column.to_tensor() for name, column in columns.items()},
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
        if signature == EXAMPLES:
            return [{EXAMPLES: np.array([make_example(columns).SerializeToString()], object)}]
        lengths = {sequence.length: np.array([len(ids)]) for sequence in self.features.all_sequences}
        return [{**{name: column[np.newaxis] for name, column in columns.items()}, **lengths}]
