"""The signatures of an export."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_eta.columns import TIMESTAMP, length_name
from keras_eta.export.arguments import argument_names, concrete
from keras_eta.export.attribute_table import AttributeTable
from keras_eta.export.checks import checked, index_guard, parsed
from keras_eta.export.columns import (
    COUNT,
    EXAMPLES,
    POINTWISE_AXES,
    POSITIONS,
    PROBABILITY,
    RANK_AXES,
    RANK_FROM_STATE,
    UPDATE_STATE,
    USER_STATE,
    WEIGHTS,
    Axes,
    axes_of,
    behaviours_axis,
    dtypes_of,
    sequence_axes_of,
    specs_of,
)
from keras_eta.export.examples import make_example
from keras_eta.export.joins import Joins
from keras_eta.interest.base import Interest, InterestUnit
from keras_eta.models.input_checks import specs_of as model_specs_of
from keras_eta.models.ranker import Inputs, Ranker, Scores

# Enough for `ops.hamming_top_k` to count rather than sort, whatever the length.
WARMUP_CANDIDATES = 512


class Signatures(tf.Module):
    """The model's variables and vocabularies, and a concrete function for each signature.

    The Keras model itself is left out, since saving it would trace every layer's call as well.

    Args:
        model: a ranker, built.
        jit_compile: whether XLA may compile what units search by.
        tables: what requests leave out and the graph looks up.

    Attributes:
        features: the columns of requests.
    """

    def __init__(self, model: Ranker, jit_compile: bool = False, tables: Sequence[AttributeTable] = ()) -> None:
        super().__init__()
        # Keras counts handles of lookup tables among the variables.
        self.model_variables = [variable for variable in model.variables if isinstance(variable, tf.Variable)]
        self.vocabularies = [] if model.lookup is None else [t.lookup_table for t in model.lookup.tables.values()]
        joins = Joins(model, tables) if tables else None
        self.tables = [] if joins is None else joins.resources
        self.features = features = model.features if joins is None else joins.requested
        dtypes = dtypes_of(features, raw_ids=model.lookup is not None)
        axes: dict[str, dict[str, Axes]] = {
            "rank": dict(axes_of(features, RANK_AXES)),
            "serving_default": dict(axes_of(features, POINTWISE_AXES)),
        }
        item = [name for feature in features.item_features for name in (feature.name, length_name(feature.name))]
        encode = (model.lookup or index_guard(features)) if joins is None else joins.encode

        def score(inputs: Inputs) -> Scores:
            return model.score(encode(inputs), jit_compile=jit_compile)

        def pointwise(inputs: Inputs) -> dict[str, tf.Tensor]:
            inputs = checked(inputs, axes["serving_default"], features)
            logits = score({name: x[:, tf.newaxis] if name in item else x for name, x in inputs.items()}).logits
            return {PROBABILITY: model.probabilities(logits[:, 0])}

        def rank(inputs: Inputs) -> dict[str, tf.Tensor]:
            return {PROBABILITY: model.probabilities(score(checked(inputs, axes["rank"], features)).logits)}

        def explain(inputs: Inputs) -> dict[str, tf.Tensor]:
            scores = score(checked(inputs, axes["rank"], features))
            outputs = {PROBABILITY: model.probabilities(scores.logits)}
            for unit in explained:
                prefix = "" if unit is explained[-1] else f"{unit.name}_"
                for name, column in _explanation(unit, scores.interests[unit.name]).items():
                    outputs[prefix + name] = column
            for unit_name, interest in scores.interests.items():
                for name, count in (interest.matches or {}).items():
                    outputs[f"{unit_name}_{name}{COUNT}"] = count
            return outputs

        def examples(inputs: Inputs) -> dict[str, tf.Tensor]:
            columns = parsed(inputs[EXAMPLES], features, dtypes)
            # The graph of the other signature, which need not be traced again.
            of_rows: dict[str, tf.Tensor] = self.functions["serving_default"](
                **{self.arguments[name]: columns[name] for name in specs["serving_default"]}
            )
            return of_rows

        axes |= self._state_axes(model, axes["rank"], dtypes)
        functions: dict[str, Callable[[Inputs], dict[str, tf.Tensor]]] = {"serving_default": pointwise, "rank": rank}
        if explained := [unit for unit in model.interests if unit.explains]:
            axes["explain"] = axes["rank"]
            functions["explain"] = explain
        functions |= self._state_functions(model, encode, axes, dtypes)
        specs = {name: specs_of(columns, dtypes) for name, columns in axes.items()}
        self.arguments = argument_names({name for columns in specs.values() for name in columns})
        self.functions = {name: concrete(f, specs[name], self.arguments) for name, f in functions.items()}
        self.functions[EXAMPLES] = concrete(
            examples, {EXAMPLES: tf.TensorSpec([None], tf.string)}, {EXAMPLES: EXAMPLES}
        )
        # Once they are whole: TensorFlow saves no dict that changed after it was an attribute.
        self._axes, self._dtypes = axes, dtypes
        self._compiled_lengths = {}
        for sequence in features.all_sequences:
            longest = sequence.max_length
            readers = [unit for unit in model.interests if unit.sequence == sequence.name and jit_compile]
            compiled = {min(length, longest) for unit in readers for length in unit.compiled_lengths(longest)}
            self._compiled_lengths[behaviours_axis(sequence)] = sorted(compiled) or [longest]

    def _state_axes(
        self, model: Ranker, of_rank: Mapping[str, Axes], dtypes: dict[str, tf.DType]
    ) -> dict[str, dict[str, Axes]]:
        """The inputs of the signatures about user states, whose dtypes it adds; none where no unit has one."""
        features = self.features
        with_state = [unit for unit in model.interests if unit.state_names]
        if not with_state:
            return {}

        def sequences_of(units: list[InterestUnit]) -> dict[str, Axes]:
            read = {unit.sequence: features.sequence(unit.sequence) for unit in units}
            axes = [sequence_axes_of(features, sequence, RANK_AXES) for sequence in read.values()]
            return {name: letters for columns in axes for name, letters in columns.items()}

        history = sequences_of(with_state)
        moment: dict[str, Axes] = {} if features.age is None else {TIMESTAMP: "R"}
        zeros = {
            name: tf.zeros([x or 1 for x in spec.shape], spec.dtype)
            for name, spec in model_specs_of(model.features).items()
        }
        states: dict[str, Axes] = {}
        for name, tensor in model.user_state(zeros).items():
            states[name] = ("R", *tensor.shape[1:])
            dtypes[name] = tensor.dtype
        others = sequences_of([unit for unit in model.interests if unit not in with_state])
        rank: dict[str, Axes] = {name: axes for name, axes in of_rank.items() if name not in history or name in others}
        if not others:
            # Nothing else reads a sequence, or the moment from which ages count.
            read = {*features.row_names} - ({TIMESTAMP} if features.calendar is None else set())
            rank = {name: axes for name, axes in rank.items() if name in read}
        signatures = {USER_STATE: {**moment, **history}, RANK_FROM_STATE: {**rank, **states}}
        if all(unit.updates_state for unit in with_state):
            signatures[UPDATE_STATE] = {**moment, **history, **states}
        return signatures

    def _state_functions(
        self,
        model: Ranker,
        encode: Callable[[Inputs], dict[str, tf.Tensor]],
        axes: Mapping[str, Mapping[str, Axes]],
        dtypes: Mapping[str, tf.DType],
    ) -> dict[str, Callable[[Inputs], dict[str, tf.Tensor]]]:
        """The signatures about user states, whose inputs are part of those of `rank`."""

        def encoded(inputs: Inputs, signature: str) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
            inputs = checked(inputs, axes[signature], self.features)
            columns = {name: x for name, x in inputs.items() if name in axes["rank"]}
            state = {name: x for name, x in inputs.items() if name not in columns}
            rows = tf.shape(next(iter(inputs.values())))[0]
            for name, letters in axes["rank"].items():
                if name not in columns:
                    # What the signature does not read, of no candidates or behaviours.
                    shape = [rows, *(size if isinstance(size, int) else 0 for size in letters[1:])]
                    dtype = dtypes[name]
                    columns[name] = tf.fill(shape, "") if dtype == tf.string else tf.zeros(shape, dtype)
            return encode(columns), state

        def user_state(inputs: Inputs) -> dict[str, tf.Tensor]:
            return model.user_state(encoded(inputs, USER_STATE)[0])

        def update_state(inputs: Inputs) -> dict[str, tf.Tensor]:
            columns, state = encoded(inputs, UPDATE_STATE)
            return model.update_state(state, columns)

        def rank_from_state(inputs: Inputs) -> dict[str, tf.Tensor]:
            columns, state = encoded(inputs, RANK_FROM_STATE)
            return {PROBABILITY: model.probabilities(model.score(columns, state=state).logits)}

        functions = {USER_STATE: user_state, RANK_FROM_STATE: rank_from_state, UPDATE_STATE: update_state}
        return {name: function for name, function in functions.items() if name in axes}

    def warmup_inputs(self, signature: str) -> list[dict[str, np.ndarray]]:
        """Inputs of typical requests to a signature: one, or one for each shape that XLA compiles.

        One row, a full history, `WARMUP_CANDIDATES` candidates.

        Args:
            signature: name of a signature.
        """
        if signature == EXAMPLES:
            (columns,) = self.warmup_inputs("serving_default")
            for sequence in self.features.all_sequences:
                del columns[sequence.length]
            example = make_example({name: np.ravel(values) for name, values in columns.items()})
            return [{EXAMPLES: np.array([example.SerializeToString()], object)}]
        lengths = self._compiled_lengths
        if signature == "serving_default":
            lengths = {axis: compiled[-1:] for axis, compiled in lengths.items()}
        count = max(map(len, lengths.values()))
        return [
            self._warmup_inputs(
                signature, {axis: compiled[min(i, len(compiled) - 1)] for axis, compiled in lengths.items()}
            )
            for i in range(count)
        ]

    def _warmup_inputs(self, signature: str, lengths: dict[str, int]) -> dict[str, np.ndarray]:
        sizes = {"N": 1, "R": 1, "C": WARMUP_CANDIDATES, **lengths}
        inputs = {}
        for name, axes in self._axes[signature].items():
            shape = [size if isinstance(size, int) else sizes[size] for size in axes]
            dtype = self._dtypes[name]
            inputs[name] = np.full(shape, b"", object) if dtype == tf.string else np.zeros(shape, dtype.as_numpy_dtype)
        counts = {sequence.length: lengths[behaviours_axis(sequence)] for sequence in self.features.all_sequences}
        counts |= {length_name(name): f.max_values for name, f in self.features.by_column.items() if f.max_values}
        for name, count in counts.items():
            if name in inputs:
                inputs[name] = np.full_like(inputs[name], count)
        return inputs


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
