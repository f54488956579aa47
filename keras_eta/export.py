"""Exports a ranker to one SavedModel with the signatures that serving calls. Stock TensorFlow ops only."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from keras_eta.features import (
    HISTORY_AGE,
    HISTORY_LENGTH,
    HISTORY_TIMESTAMP,
    TIMESTAMP,
    Feature,
    Features,
    history_name,
    is_argument,
)
from keras_eta.models.ranker import Inputs, Ranker, Scores
from keras_eta.ops import age_bucket, history_buckets
from keras_eta.search.hamming import HammingSearch
from keras_eta.validation import check_positive_integers

PROBABILITY = "probability"
POSITIONS = "positions"
DISTANCES = "distances"
WEIGHTS = "weights"
EXAMPLES = "examples"

# Keras can't trace one model in several threads.
_TRACING = threading.Lock()
# TF Serving reads versions as int64.
_HIGHEST_VERSION = 2**63 - 1
# Enough for `ops.hamming_top_k` to count rather than sort, whatever the length.
WARMUP_CANDIDATES = 512


def export_model(
    model: Ranker,
    base_path: str | os.PathLike[str],
    version: int | None = None,
    *,
    warmup: bool = True,
    jit_compile: bool = False,
) -> Path:
    """Writes a servable version of the model: `base_path/version`, whole or not at all.

    | signature | inputs | outputs |
    |---|---|---|
    | `serving_default` | user, context, item [N]; `history_*` [N, L]; `history_length` [N] | `probability` [N] |
    | `rank` | user, context [R]; item [R, C]; `history_*` [R, L]; `history_length` [R] | `probability` [R, C] |
    | `explain` (`HammingSearch`) | as `rank` | as `rank`, and `positions`, `distances`, `weights` [R, C, K] |
    | `examples` | `examples`: serialized tf.Example [N] | `probability` [N] |

    Ids are raw where the model has a `lookup`, else indices, those out of range counting as out-of-vocabulary. A model
    with `features.age` takes `timestamp` int64, as a context column, and `history_timestamp` int64 in any case. In
    `explain`, `positions` index the history (0 = most recent); entries beyond what was retrieved have position and
    distance -1 and weight 0; weights are means over the heads.

    The graph of every signature checks ranks, equal rows, candidates and behaviours, 0 <= `history_length` <= L, and
    that floats are finite, those behind `history_length` left aside. It answers INVALID_ARGUMENT with a message that
    names the input. What a server looks at before the graph it words itself: TF Serving names no input of a wrong
    dtype and, where it joins calls to batches, none with other rows or a rank of 0. `serving.client` checks all of it
    before it sends.

    Args:
        model: a ranker, trained.
        base_path: directory of the model's versions, as TF Serving's `--model_base_path`; made when missing.
        version: positive integer below 2**63, the limit of TF Serving. `None`: one more than the highest version there;
            exports at the same time get different ones.
        warmup: whether to add warm-up requests, which TF Serving replays before a version takes traffic. Needs
            tensorflow-serving-api.
        jit_compile: whether `rank` and `explain` search long histories by a function that XLA compiles when the version
            is loaded, several times faster than without. TF Serving needs `--xla_cpu_compilation_enabled` for it. The
            warm-up requests cover every shape that is ever compiled: keep them.

    Returns:
        The path of the version.

    Raises:
        TypeError: if `model` is no `Ranker`.
        ValueError: if `version` is not a positive integer below 2**63, or there is none left above the highest.
        FileExistsError: if the version exists.
        ImportError: if `warmup` is asked for without tensorflow-serving-api.
    """
    if not isinstance(model, Ranker):
        raise TypeError(f"`model` must be a keras_eta Ranker. Received: model={model!r}")
    base = Path(base_path)
    _free_version(base, version)
    with _TRACING:
        if not model.built:
            model.build()
        if model.search_unit is not None:
            model.search_unit.refresh()
        signatures = _Signatures(model, jit_compile)
    base.mkdir(parents=True, exist_ok=True)
    # TF Serving looks at directories with numeric names only, so nobody sees the version before it is whole.
    temporary = base / f".{uuid.uuid4().hex}"
    try:
        tf.saved_model.save(signatures, str(temporary), signatures=signatures.functions)
        renamed = {argument: name for name, argument in signatures.arguments.items() if argument != name}
        if renamed:
            _rename_inputs(temporary / "saved_model.pb", renamed)
        extra = temporary / "assets.extra"
        extra.mkdir()
        (extra / "features.json").write_text(json.dumps(model.features.to_dict(), indent=2))
        if warmup:
            _write_warmup_requests(extra / "tf_serving_warmup_requests", signatures, base.name)
        while True:
            target = base / str(_free_version(base, version))
            try:
                return temporary.rename(target)
            except OSError:
                # Another export may have taken the version a moment ago.
                if not target.exists():
                    raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _free_version(base: Path, version: int | None) -> int:
    """The version asked for, or one more than the highest there; refuses one that exists or that no server takes."""
    present = {}
    for path in base.glob("*"):
        # As TF Serving reads names, "007" is 7; numbers beyond int64 it leaves alone.
        if re.fullmatch("[0-9]+", path.name) and int(path.name) <= _HIGHEST_VERSION:
            present[int(path.name)] = path
    if version is None:
        version = max(present, default=0) + 1
    check_positive_integers(version=version)
    if version > _HIGHEST_VERSION:
        raise ValueError(f"`version` must be at most 2**63 - 1. Received: version={version}")
    if version in present:
        raise FileExistsError(
            f"Version {version} exists: {present[version]}. Choose another `version`, or None for the next."
        )
    return version


class _Signatures(tf.Module):
    """The model's variables and vocabularies, and a concrete function for each signature.

    The Keras model itself is left out, since saving it would trace every layer's call as well.
    """

    def __init__(self, model: Ranker, jit_compile: bool = False) -> None:
        super().__init__()
        # Keras counts handles of lookup tables among the variables.
        self.model_variables = [variable for variable in model.variables if isinstance(variable, tf.Variable)]
        self.vocabularies = [] if model.lookup is None else [t.lookup_table for t in model.lookup.tables.values()]
        self.features = features = model.features
        self.jit_compile = jit_compile
        item = [feature.name for feature in features.item_features]
        encode = model.lookup or _index_guard(features)

        def score(inputs: Inputs) -> Scores:
            return model.score(encode(inputs), jit_compile=jit_compile)

        def pointwise(inputs: Inputs) -> dict[str, tf.Tensor]:
            logits = score({name: x[:, tf.newaxis] if name in item else x for name, x in inputs.items()}).logits
            return {PROBABILITY: tf.sigmoid(logits[:, 0])}

        def serving_default(inputs: Inputs) -> dict[str, tf.Tensor]:
            return pointwise(_checked(inputs, features, _AXES))

        def rank(inputs: Inputs) -> dict[str, tf.Tensor]:
            return {PROBABILITY: tf.sigmoid(score(_checked(inputs, features, _RANK_AXES)).logits)}

        def explain(inputs: Inputs) -> dict[str, tf.Tensor]:
            scores = score(_checked(inputs, features, _RANK_AXES))
            found: Any = scores.retrieved
            columns = {
                POSITIONS: tf.where(found.mask, found.positions, -1),
                DISTANCES: tf.where(found.mask, found.distances, -1),
                WEIGHTS: tf.cast(tf.reduce_mean(scores.attention, axis=-2), tf.float32),
            }
            nearest_first = tf.argsort(found.distances, stable=True)
            ordered = {name: tf.gather(column, nearest_first, batch_dims=2) for name, column in columns.items()}
            return {PROBABILITY: tf.sigmoid(scores.logits), **ordered}

        def examples(inputs: Inputs) -> dict[str, tf.Tensor]:
            return pointwise(_checked(_parsed(inputs[EXAMPLES], features, dtypes), features, _AXES))

        dtypes = _dtypes(features, raw_ids=model.lookup is not None)
        row_specs, rank_specs = (_specs(features, dtypes, axes) for axes in (_AXES, _RANK_AXES))
        self.row_specs = row_specs
        self.arguments = _argument_names(row_specs)
        self.functions = {
            "serving_default": _concrete(serving_default, row_specs, self.arguments),
            "rank": _concrete(rank, rank_specs, self.arguments),
            EXAMPLES: _concrete(examples, {EXAMPLES: tf.TensorSpec([None], tf.string)}, {EXAMPLES: EXAMPLES}),
        }
        if isinstance(model.search_unit, HammingSearch):
            self.functions["explain"] = _concrete(explain, rank_specs, self.arguments)

    def warmup_inputs(self, signature: str) -> list[dict[str, np.ndarray]]:
        """Inputs of typical requests to a signature: one, or one for each shape that XLA compiles."""
        longest = self.features.max_history_length
        lengths = [longest]
        if self.jit_compile and signature in ("rank", "explain"):
            lengths = [min(bucket, longest) for bucket in history_buckets(longest)]
        return [self._warmup_inputs(signature, length) for length in lengths]

    def _warmup_inputs(self, signature: str, length: int) -> dict[str, np.ndarray]:
        sizes = {"N": 1, "R": 1, "C": WARMUP_CANDIDATES, "L": length}
        axes = _RANK_AXES if signature in ("rank", "explain") else _AXES
        specs = self.row_specs
        inputs = {
            name: np.zeros([sizes[letter] for letter in letters], specs[name].dtype.as_numpy_dtype)
            if specs[name].dtype != tf.string
            else np.full([sizes[letter] for letter in letters], b"", object)
            for name, letters in _axes(self.features, axes).items()
        }
        if signature == EXAMPLES:
            del inputs[HISTORY_LENGTH]
            return {EXAMPLES: np.array([_example({name: np.ravel(x) for name, x in inputs.items()})], object)}
        return {**inputs, HISTORY_LENGTH: np.array([length], np.int64)}


# The axes of each role's columns, in the letters of the documentation.
_AXES = {"row": "N", "item": "N", "history": "NL"}
_RANK_AXES = {"row": "R", "item": "RC", "history": "RL"}


def _axes(features: Features, axes: Mapping[str, str]) -> dict[str, str]:
    """The axes of every column of a signature."""
    item = {feature.name for feature in features.item_features}
    return {
        **{name: axes["item" if name in item else "row"] for name in features.row_names},
        **{name: axes["history"] for name in features.history_names},
        HISTORY_LENGTH: axes["row"],
    }


def _columns(features: Features) -> dict[str, Feature]:
    """The feature of every column that holds one."""
    return {
        **{feature.name: feature for feature in (*features.user, *features.context, *features.item_features)},
        **{history_name(feature.name): feature for feature in features.history_features},
    }


def _dtypes(features: Features, raw_ids: bool) -> dict[str, tf.DType]:
    """The dtype of every column of a signature; ids that are not raw are int64 indices."""
    return {
        **{name: tf.int64 for name in (HISTORY_LENGTH, TIMESTAMP, HISTORY_TIMESTAMP)},
        **{
            name: tf.as_dtype(feature.dtype if raw_ids or not feature.is_id else "int64")
            for name, feature in _columns(features).items()
        },
    }


def _specs(features: Features, dtypes: Mapping[str, tf.DType], axes: Mapping[str, str]) -> dict[str, tf.TensorSpec]:
    return {name: tf.TensorSpec([None] * len(letters), dtypes[name]) for name, letters in _axes(features, axes).items()}


def _argument_names(columns: Iterable[str]) -> dict[str, str]:
    """The name under which TensorFlow takes each column as an argument: letters, digits and `_`, but not `self`.

    TensorFlow renames others by itself, and then may feed one input with another's values.
    """
    arguments: dict[str, str] = {}
    for name in sorted(columns, key=lambda name: (not is_argument(name), name)):
        word = re.sub("[^A-Za-z0-9]", "_", name)
        argument = stem = word if is_argument(word) else f"arg_{word}"
        number = 1
        while argument in arguments.values():
            number += 1
            argument = f"{stem}_{number}"
        arguments[name] = argument
    return arguments


def _rename_inputs(path: Path, names: Mapping[str, str]) -> None:
    """Renames inputs of the signatures in a SavedModel's file; `names` is old -> new."""
    saved_model = SavedModel.FromString(path.read_bytes())
    for meta_graph in saved_model.meta_graphs:
        for signature in meta_graph.signature_def.values():
            for old in names.keys() & set(signature.inputs):
                signature.inputs[names[old]].CopyFrom(signature.inputs[old])
                del signature.inputs[old]
    path.write_bytes(saved_model.SerializeToString(deterministic=True))


def _concrete(
    function: Callable[[Inputs], Any], specs: Mapping[str, tf.TensorSpec], arguments: Mapping[str, str]
) -> Any:
    """The function of a dict of columns as one of keyword arguments."""
    columns = {argument: name for name, argument in arguments.items()}

    def by_argument(**inputs: tf.Tensor) -> Any:
        return function({columns[argument]: tensor for argument, tensor in inputs.items()})

    named = {
        arguments[name]: tf.TensorSpec(spec.shape, spec.dtype, name=arguments[name]) for name, spec in specs.items()
    }
    return tf.function(by_argument, autograph=False).get_concrete_function(**named)


def _checked(inputs: Inputs, features: Features, axes: Mapping[str, str]) -> dict[str, tf.Tensor]:
    """The inputs, once the graph has seen that shapes fit each other, lengths lie in 0..L and floats are finite.

    Floats behind the length of a history become 0.
    """
    columns = _axes(features, axes)
    hidden, ranks = {}, []
    for name, letters in columns.items():
        # A server feeds any rank, whatever the signature says. The placeholder keeps TensorFlow from believing the
        # signature and dropping the check.
        hidden[name] = tf.raw_ops.PlaceholderWithDefault(input=inputs[name], shape=tf.TensorShape(None))
        shape = tf.shape(hidden[name])
        message = f"`{name}` must have shape [{', '.join(letters)}]. Received shape:"
        ranks.append(tf.debugging.Assert(tf.equal(tf.size(shape), len(letters)), [message, shape]))
    with tf.control_dependencies(ranks):
        checked = {name: tf.ensure_shape(hidden[name], [None] * len(letters)) for name, letters in columns.items()}
    sizes: dict[str, tuple[str, tf.Tensor]] = {}
    equal = []
    for name, letters in columns.items():
        for axis, letter in enumerate(letters):
            first, size = sizes.setdefault(letter, (name, tf.shape(checked[name])[axis]))
            shape = tf.shape(checked[name])
            message = f"`{name}` must have as many {_AXIS_NAMES[letter]} as `{first}`. Received shape and number:"
            equal.append(tf.debugging.Assert(tf.equal(shape[axis], size), [message, shape, size]))
    lengths = checked[HISTORY_LENGTH]
    _, columns_of_history = sizes["L"]
    in_range = tf.reduce_all((lengths >= 0) & (lengths <= tf.cast(columns_of_history, lengths.dtype)))
    message = f"`{HISTORY_LENGTH}` must lie between 0 and the number of history columns. Received lengths and number:"
    equal.append(tf.debugging.Assert(in_range, [message, lengths, columns_of_history]))
    with tf.control_dependencies(equal):
        checked = {name: tf.identity(x) for name, x in checked.items()}
    real = tf.sequence_mask(checked[HISTORY_LENGTH], columns_of_history)
    finite = []
    for name, letters in columns.items():
        if checked[name].dtype.is_floating:
            if letters.endswith("L"):
                # A weight of 0 does not make NaN vanish.
                checked[name] = tf.where(real, checked[name], 0)
            wrong = ~tf.math.is_finite(checked[name])
            received = tf.boolean_mask(checked[name], wrong)
            finite.append(tf.debugging.Assert(~tf.reduce_any(wrong), [f"`{name}` must be finite. Received:", received]))
    with tf.control_dependencies(finite):
        return {name: tf.identity(x) for name, x in checked.items()}


_AXIS_NAMES = {"N": "rows", "R": "rows", "C": "candidates", "L": "behaviours"}


def _parsed(examples: tf.Tensor, features: Features, dtypes: Mapping[str, tf.DType]) -> dict[str, tf.Tensor]:
    """The columns of serialized tf.Examples; histories are padded to the longest."""
    spec: dict[str, Any] = {name: tf.io.FixedLenFeature([], dtypes[name]) for name in features.row_names}
    spec.update({name: tf.io.RaggedFeature(dtypes[name]) for name in features.history_names})
    columns = tf.io.parse_example(examples, spec)
    lengths = columns[history_name(features.item_id.name)].row_lengths()
    checks = []
    for name in features.history_names:
        same = tf.reduce_all(tf.equal(columns[name].row_lengths(), lengths))
        message = (
            f"`{name}` must be as long as `{history_name(features.item_id.name)}` in every example. Received lengths:"
        )
        checks.append(tf.debugging.Assert(same, [message, columns[name].row_lengths(), lengths]))
    with tf.control_dependencies(checks):
        dense = {name: columns[name].to_tensor() for name in features.history_names}
    return {**{name: columns[name] for name in features.row_names}, **dense, HISTORY_LENGTH: lengths}


def _index_guard(features: Features) -> Callable[[Inputs], dict[str, tf.Tensor]]:
    """For a model without a lookup: indices as the model takes them, those out of range made out-of-vocabulary."""

    def guarded(feature: Feature, column: tf.Tensor) -> tf.Tensor:
        if not feature.is_id:
            return column
        inside = (column > 0) & (column < feature.num_indices)
        return tf.cast(tf.where(inside, column, tf.ones_like(column)), tf.int32)

    def guard(inputs: Inputs) -> dict[str, tf.Tensor]:
        outputs = {name: guarded(feature, inputs[name]) for name, feature in _columns(features).items()}
        outputs[HISTORY_LENGTH] = tf.cast(inputs[HISTORY_LENGTH], tf.int32)
        if features.age is not None:
            moments = inputs[HISTORY_TIMESTAMP]
            real = tf.sequence_mask(inputs[HISTORY_LENGTH], tf.shape(moments)[-1])
            outputs[HISTORY_AGE] = age_bucket(inputs[TIMESTAMP], moments, features.age.boundaries, real)
        return outputs

    return guard


def _write_warmup_requests(path: Path, signatures: _Signatures, model_name: str) -> None:
    """Requests for every signature: one row, a full history, `WARMUP_CANDIDATES` candidates."""
    try:
        from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2
    except ImportError as error:
        raise ImportError(
            f"{error}. Warm-up requests are written with tensorflow-serving-api: pip install 'keras-eta[serving]', "
            "or export with warmup=False."
        ) from error
    with tf.io.TFRecordWriter(str(path)) as writer:
        for name in signatures.functions:
            request = predict_pb2.PredictRequest(model_spec=model_pb2.ModelSpec(name=model_name, signature_name=name))
            for inputs in signatures.warmup_inputs(name):
                for column, values in inputs.items():
                    request.inputs[column].CopyFrom(tf.make_tensor_proto(values))
                log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
                writer.write(log.SerializeToString())


def _example(columns: Mapping[str, np.ndarray]) -> bytes:
    """One serialized tf.Example."""
    example = tf.train.Example()
    for name, values in columns.items():
        feature = example.features.feature[name]
        if values.dtype.kind == "f":
            feature.float_list.value.extend(values)
        elif values.dtype.kind == "i":
            feature.int64_list.value.extend(values)
        else:
            feature.bytes_list.value.extend(values)
    return example.SerializeToString()
