"""The signatures of an export."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from keras_eta.export.arguments import argument_names, concrete
from keras_eta.export.checks import checked, index_guard, parsed
from keras_eta.export.columns import (
    EXAMPLES,
    POINTWISE_AXES,
    POSITIONS,
    PROBABILITY,
    RANK_AXES,
    WEIGHTS,
    axes_of,
    dtypes_of,
    specs_of,
)
from keras_eta.features import HISTORY_LENGTH
from keras_eta.interest.base import Interest, InterestUnit
from keras_eta.models.ranker import Inputs, Ranker, Scores


class Signatures(tf.Module):
    """The model's variables and vocabularies, and a concrete function for each signature.

    The Keras model itself is left out, since saving it would trace every layer's call as well.

    Args:
        model: a ranker, built.
        jit_compile: whether XLA may compile what units search by.
    """

    def __init__(self, model: Ranker, jit_compile: bool = False) -> None:
        super().__init__()
        # Keras counts handles of lookup tables among the variables.
        self.model_variables = [variable for variable in model.variables if isinstance(variable, tf.Variable)]
        self.vocabularies = [] if model.lookup is None else [t.lookup_table for t in model.lookup.tables.values()]
        self.features = features = model.features
        self._dtypes = dtypes = dtypes_of(features, raw_ids=model.lookup is not None)
        self._axes = {"rank": axes_of(features, RANK_AXES), "serving_default": axes_of(features, POINTWISE_AXES)}
        item = [feature.name for feature in features.item_features]
        encode = model.lookup or index_guard(features)

        def score(inputs: Inputs) -> Scores:
            return model.score(encode(inputs), jit_compile=jit_compile)

        def pointwise(inputs: Inputs) -> dict[str, tf.Tensor]:
            inputs = checked(inputs, self._axes["serving_default"])
            logits = score({name: x[:, tf.newaxis] if name in item else x for name, x in inputs.items()}).logits
            return {PROBABILITY: tf.sigmoid(logits[:, 0])}

        def rank(inputs: Inputs) -> dict[str, tf.Tensor]:
            return {PROBABILITY: tf.sigmoid(score(checked(inputs, self._axes["rank"])).logits)}

        def explain(inputs: Inputs) -> dict[str, tf.Tensor]:
            scores = score(checked(inputs, self._axes["rank"]))
            outputs = {PROBABILITY: tf.sigmoid(scores.logits)}
            for unit in explained:
                prefix = "" if unit is explained[-1] else f"{unit.name}_"
                for name, column in _explanation(unit, scores.interests[unit.name]).items():
                    outputs[prefix + name] = column
            return outputs

        def examples(inputs: Inputs) -> dict[str, tf.Tensor]:
            return pointwise(parsed(inputs[EXAMPLES], features, dtypes))

        specs = {name: specs_of(axes, dtypes) for name, axes in self._axes.items()}
        self.arguments = argument_names(specs["rank"])
        self.functions = {
            "serving_default": concrete(pointwise, specs["serving_default"], self.arguments),
            "rank": concrete(rank, specs["rank"], self.arguments),
            EXAMPLES: concrete(examples, {EXAMPLES: tf.TensorSpec([None], tf.string)}, {EXAMPLES: EXAMPLES}),
        }
        explained = [unit for unit in model.interests if unit.explains]
        if explained:
            self._axes["explain"] = self._axes["rank"]
            self.functions["explain"] = concrete(explain, specs["rank"], self.arguments)
        longest = features.max_history_length
        compiled = {length for unit in model.interests for length in unit.compiled_lengths(longest)}
        self._compiled_lengths = sorted({min(length, longest) for length in compiled}) if jit_compile else []

    def warmup_inputs(self, signature: str, candidates: int) -> list[dict[str, np.ndarray]]:
        """Inputs of typical requests to a signature: one, or one for each shape that XLA compiles.

        Args:
            signature: name of a dense signature.
            candidates: C.
        """
        lengths = [self.features.max_history_length]
        if signature != "serving_default":
            lengths = self._compiled_lengths or lengths
        return [self._warmup_inputs(signature, length, candidates) for length in lengths]

    def _warmup_inputs(self, signature: str, length: int, candidates: int) -> dict[str, np.ndarray]:
        sizes = {"N": 1, "R": 1, "C": candidates, "L": length}
        inputs = {}
        for name, letters in self._axes[signature].items():
            shape, dtype = [sizes[letter] for letter in letters], self._dtypes[name]
            inputs[name] = np.full(shape, b"", object) if dtype == tf.string else np.zeros(shape, dtype.as_numpy_dtype)
        return {**inputs, HISTORY_LENGTH: np.array([length], np.int64)}


def _explanation(unit: InterestUnit, interest: Interest) -> dict[str, tf.Tensor]:
    """What an interest rests on, [R, C, K] by the name of the output, the nearest first."""
    found: Any = interest.retrieved
    columns = {POSITIONS: tf.where(found.mask, found.positions, -1)}
    if unit.score_name is not None:
        none = tf.constant(-1 if found.scores.dtype.is_integer else 0, found.scores.dtype)
        columns[unit.score_name] = tf.where(found.mask, found.scores, none)
    columns[WEIGHTS] = tf.cast(tf.reduce_mean(interest.weights, axis=-2), tf.float32)
    if unit.score_name is None:
        return columns
    distance = found.scores if unit.nearest_first else -found.scores
    order = tf.argsort(tf.where(found.mask, distance, distance.dtype.max), stable=True)
    return {name: tf.gather(column, order, batch_dims=2) for name, column in columns.items()}
