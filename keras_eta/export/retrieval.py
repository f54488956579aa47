"""The signatures of a retriever's export."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from keras_eta.columns import HISTORY_LENGTH, history_name
from keras_eta.datasets.columns import ITEM_ID
from keras_eta.export.arguments import concrete
from keras_eta.export.checks import checked
from keras_eta.export.columns import EXAMPLES, Axes, specs_of
from keras_eta.export.examples import make_example
from keras_eta.models.tiger import TIGER, Inputs

RETRIEVE = "retrieve"
LOG_PROBABILITY = "log_probability"
EXCLUDED = f"excluded_{ITEM_ID}"

_HISTORY = history_name(ITEM_ID)
_AXES: dict[str, Axes] = {_HISTORY: "RL", HISTORY_LENGTH: "R", EXCLUDED: "RE"}


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
        self.features = model.features
        table = model.lookup.tables[ITEM_ID].lookup_table
        self.vocabularies = [table]
        self.raw_ids = tf.constant(model.table.raw_ids_by_row())
        item_dtype = self.raw_ids.dtype
        self._dtypes = {_HISTORY: item_dtype, HISTORY_LENGTH: tf.int64, EXCLUDED: item_dtype}

        def retrieve(inputs: Inputs) -> dict[str, tf.Tensor]:
            inputs = checked(inputs, _AXES, self.features)
            rows = {name: model.lookup.rows(ITEM_ID, inputs[name]) for name in (_HISTORY, EXCLUDED)}
            history = {_HISTORY: rows[_HISTORY], HISTORY_LENGTH: inputs[HISTORY_LENGTH]}
            found = model.retrieve(history, num_results, num_beams, rows[EXCLUDED])
            return {ITEM_ID: tf.gather(self.raw_ids, found.rows), LOG_PROBABILITY: found.log_probability}

        def examples(inputs: Inputs) -> dict[str, tf.Tensor]:
            lists = {name: tf.io.RaggedFeature(item_dtype) for name in (_HISTORY, EXCLUDED)}
            columns = tf.io.parse_example(inputs[EXAMPLES], lists)
            lengths = columns[_HISTORY].row_lengths()
            of_requests: dict[str, tf.Tensor] = self.functions[RETRIEVE](
                **{name: column.to_tensor() for name, column in columns.items()}, **{HISTORY_LENGTH: lengths}
            )
            return of_requests

        specs = specs_of(_AXES, self._dtypes)
        self.functions = {RETRIEVE: concrete(retrieve, specs, {name: name for name in specs})}
        self.functions[EXAMPLES] = concrete(
            examples, {EXAMPLES: tf.TensorSpec([None], tf.string)}, {EXAMPLES: EXAMPLES}
        )

    def warmup_inputs(self, signature: str) -> list[dict[str, np.ndarray]]:
        """Inputs of a typical request to a signature: a full history, nothing excluded but one item."""
        length = self.features.max_history_length
        ids = np.repeat(self.raw_ids[-1:].numpy(), length)
        if signature == EXAMPLES:
            example = make_example({_HISTORY: ids, EXCLUDED: ids[:1]})
            return [{EXAMPLES: np.array([example.SerializeToString()], object)}]
        return [{_HISTORY: ids[np.newaxis], HISTORY_LENGTH: np.array([length]), EXCLUDED: ids[np.newaxis, :1]}]
