from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_eta.layers import TargetAttention
from tests import reference
from tests.layer_check import check_layer

DIM, WIDTH = 5, 7


def _tensors(inputs: dict[str, np.ndarray]) -> dict[str, tf.Tensor]:
    return {name: tf.constant(value) for name, value in inputs.items()}


def _randomise(layer: TargetAttention) -> None:
    rng = np.random.default_rng(7)
    for weight in layer.weights:
        weight.assign(rng.normal(size=weight.shape))


def _inputs(
    query_shape: tuple[int, ...], behaviours_shape: tuple[int, ...], length: int, similarity: bool
) -> dict[str, np.ndarray]:
    """Random inputs whose masks have gaps; the first row has one behaviour, the second none."""
    rng = np.random.default_rng(0)
    mask = rng.random((*behaviours_shape, length)) < 0.6
    flat = mask.reshape(-1, length)
    flat[0], flat[0, -1] = False, True
    flat[1:2] = False
    inputs = {
        "query": rng.normal(size=(*query_shape, DIM)).astype(np.float32),
        "behaviours": rng.normal(size=(*behaviours_shape, length, WIDTH)).astype(np.float32),
        "mask": mask,
    }
    if similarity:
        inputs["similarity"] = rng.uniform(-1, 1, (*query_shape, length)).astype(np.float32)
    return inputs


def _expected(layer: TargetAttention, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    query, behaviours, mask = (inputs[name] for name in ("query", "behaviours", "mask"))
    interests, weights = [], []
    for index in np.ndindex(query.shape[:-1]):
        own = index if behaviours.ndim == query.ndim + 1 else index[:-1]
        interest, weight = reference.target_attention(
            query[index],
            behaviours[own],
            mask[own],
            reference.attention_weights(layer),
            layer.num_heads,
            inputs["similarity"][index] if layer.similarity_bias else None,
        )
        interests.append(interest)
        weights.append(weight)
    shape = query.shape[:-1]
    return np.array(interests).reshape(*shape, -1), np.array(weights).reshape(*shape, layer.num_heads, -1)


SHAPES: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((4,), (4,)),  # a query's own behaviours
    ((1,), (1,)),
    ((3, 5), (3,)),  # shared by the candidates of a row
    ((3, 1), (3,)),
    ((3, 5), (3, 5)),  # each candidate's own
]


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("similarity_bias", [False, True])
@pytest.mark.parametrize("length", [1, 6])
@pytest.mark.parametrize(("query_shape", "behaviours_shape"), SHAPES)
def test_target_attention_equals_reference(
    query_shape: tuple[int, ...], behaviours_shape: tuple[int, ...], length: int, similarity_bias: bool, cosine: bool
) -> None:
    layer = TargetAttention(num_heads=3, key_dim=4, similarity_bias=similarity_bias, cosine=cosine)
    inputs = _inputs(query_shape, behaviours_shape, length, similarity_bias)
    layer(**_tensors(inputs))
    _randomise(layer)
    interest, weights = layer(**_tensors(inputs), return_attention_weights=True)
    expected_interest, expected_weights = _expected(layer, inputs)
    np.testing.assert_allclose(weights, expected_weights, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(interest, expected_interest, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(layer(**_tensors(inputs)), interest)
    assert np.abs(expected_interest).max() > 1.0


@pytest.mark.parametrize(
    ("similarity_bias", "cosine", "query_shape"),
    [(False, False, (3, 5)), (True, False, (3, 5)), (True, True, (3, 5)), (False, True, (3,))],
)
def test_target_attention_is_the_same_everywhere(
    similarity_bias: bool, cosine: bool, query_shape: tuple[int, ...], tmp_path: Path
) -> None:
    layer = TargetAttention(num_heads=2, key_dim=3, similarity_bias=similarity_bias, cosine=cosine)
    inputs = _inputs(query_shape, (3,), 6, similarity_bias)
    (interest,) = check_layer(layer, inputs, tmp_path, tolerance=1e-5)
    np.testing.assert_allclose(interest, _expected(layer, inputs)[0], rtol=1e-4, atol=1e-5)


def test_without_a_mask_every_behaviour_is_real() -> None:
    layer = TargetAttention(2, 3)
    inputs = _inputs((4,), (4,), 6, False)
    inputs["mask"] = np.ones_like(inputs["mask"])
    with_mask = layer(**_tensors(inputs))
    del inputs["mask"]
    np.testing.assert_allclose(layer(**_tensors(inputs)), with_mask, rtol=1e-6)


@pytest.mark.parametrize("cosine", [False, True])
def test_nothing_to_attend_to_gives_zeros_and_finite_gradients(cosine: bool) -> None:
    layer = TargetAttention(2, 3, cosine=cosine)
    inputs = _inputs((2,), (2,), 4, False)
    layer(**_tensors(inputs))
    _randomise(layer)
    inputs["mask"] = np.zeros_like(inputs["mask"])
    behaviours = tf.constant(inputs.pop("behaviours"))
    with tf.GradientTape() as tape:
        tape.watch(behaviours)
        interest, weights = layer(behaviours=behaviours, return_attention_weights=True, **_tensors(inputs))
    np.testing.assert_array_equal(interest, np.zeros([2, 6]))
    np.testing.assert_array_equal(weights, np.zeros([2, 2, 4]))
    for gradient in tape.gradient(interest, [behaviours, *layer.trainable_weights]):
        assert gradient is None or np.all(np.asarray(gradient) == 0.0)


def test_numpy_arrays_are_inputs_too() -> None:
    layer = TargetAttention()
    inputs = _inputs((4,), (4,), 6, False)
    np.testing.assert_array_equal(layer(**inputs), layer(**_tensors(inputs)))


@pytest.mark.parametrize("cosine", [False, True])
def test_masked_behaviours_influence_neither_outputs_nor_gradients(cosine: bool) -> None:
    layer = TargetAttention(2, 3, cosine=cosine)
    inputs = _inputs((4,), (4,), 6, False)
    expected = layer(**_tensors(inputs))
    behaviours = tf.constant(np.where(inputs["mask"][..., np.newaxis], inputs["behaviours"], 1e6), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(behaviours)
        interest = layer(tf.constant(inputs["query"]), behaviours, tf.constant(inputs["mask"]))
    np.testing.assert_array_equal(interest, expected)
    gradient = tape.gradient(interest, behaviours).numpy()
    assert not gradient[~inputs["mask"]].any()
    assert gradient[inputs["mask"]].any(axis=-1).all()


@pytest.mark.parametrize("cosine", [False, True])
def test_shared_behaviours_equal_copies_of_each_candidate(cosine: bool) -> None:
    """One path projects the behaviours, the other the queries."""
    layer = TargetAttention(2, 3, cosine=cosine)
    inputs = _inputs((3, 5), (3,), 6, False)
    layer(**_tensors(inputs))
    _randomise(layer)
    interest, weights = layer(**_tensors(inputs), return_attention_weights=True)
    own = {name: np.repeat(inputs[name][:, np.newaxis], 5, axis=1) for name in ("behaviours", "mask")}
    own_interest, own_weights = layer.attend(inputs["query"], own["behaviours"], own["mask"])
    np.testing.assert_allclose(own_interest, interest, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(own_weights, weights, rtol=1e-4, atol=1e-5)
    assert own_weights.shape == (3, 5, 2, 6)


def test_similarity_scale_starts_at_one_and_learns_for_each_head() -> None:
    layer = TargetAttention(3, 2, similarity_bias=True)
    inputs = _inputs((4,), (4,), 6, True)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(layer(**_tensors(inputs)) ** 2)
    np.testing.assert_array_equal(layer.similarity_scale, np.ones(3))
    assert np.count_nonzero(tape.gradient(total, layer.similarity_scale)) == 3


# Cosines


def test_cosine_scale_starts_at_eight_and_learns_for_each_head() -> None:
    layer = TargetAttention(3, 2, cosine=True)
    inputs = _inputs((4,), (4,), 6, False)
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(layer(**_tensors(inputs)) ** 2)
    np.testing.assert_array_equal(layer.cosine_scale, np.full(3, 8.0))
    assert np.count_nonzero(tape.gradient(total, layer.cosine_scale)) == 3
    assert not hasattr(TargetAttention(3, 2), "cosine_scale")


@pytest.mark.parametrize("shared", [False, True])
def test_cosines_do_not_see_the_length_of_a_behaviour(shared: bool) -> None:
    layer = TargetAttention(2, 3, cosine=True)
    inputs = _tensors(_inputs((3, 5), (3,) if shared else (3, 5), 6, False))
    _, weights = layer(**inputs, return_attention_weights=True)
    inputs["behaviours"] *= tf.constant([0.02, 3.0, 50.0, 1.0, 7.0, 0.3])[:, tf.newaxis]
    _, scaled = layer(**inputs, return_attention_weights=True)
    np.testing.assert_allclose(scaled, weights, rtol=1e-3, atol=1e-5)
    assert np.unique(weights.numpy().round(3)).size > 5


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("zero", ["query", "behaviours"])
def test_cosine_of_a_zero_vector_is_zero(zero: str, shared: bool) -> None:
    layer = TargetAttention(2, 3, cosine=True)
    inputs = _inputs((3, 5), (3,) if shared else (3, 5), 6, False)
    layer(**_tensors(inputs))
    _randomise(layer)
    layer.query_projection.bias.assign(tf.zeros_like(layer.query_projection.bias))
    inputs[zero][1:] = 0.0
    tensors = _tensors(inputs)
    with tf.GradientTape() as tape:
        interest, weights = layer(**tensors, return_attention_weights=True)
    expected_interest, expected_weights = _expected(layer, inputs)
    np.testing.assert_allclose(weights, expected_weights, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(interest, expected_interest, rtol=1e-4, atol=1e-4)
    # Alike for all behaviours of a row.
    counts = np.broadcast_to(inputs["mask"].sum(axis=-1).reshape(3, -1), (3, 5))[1:, :, np.newaxis]
    alike = np.where(counts > 0, 1.0 / np.maximum(counts, 1), 0.0)
    np.testing.assert_allclose(weights[1:].numpy().max(axis=-1), np.broadcast_to(alike, (2, 5, 2)), rtol=1e-6)
    for gradient in tape.gradient(interest, layer.trainable_weights):
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("shared", [False, True])
def test_cosines_in_half_precision_are_close(shared: bool, policy: str) -> None:
    inputs = _inputs((3, 5), (3,) if shared else (3, 5), 6, False)
    # So short that half precision holds neither their squares nor the inverse of their length.
    inputs["behaviours"] *= 1e-4
    single = TargetAttention(2, 3, cosine=True)
    _, expected = single(**_tensors(inputs), return_attention_weights=True)
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        half = TargetAttention(2, 3, cosine=True)
        half(**_tensors(inputs))
        half.set_weights(single.get_weights())
        with tf.GradientTape() as tape:
            interest, weights = half(**_tensors(inputs), return_attention_weights=True)
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    assert weights.dtype == half.compute_dtype
    tolerance = 0.1 if policy == "mixed_bfloat16" else 0.02
    np.testing.assert_allclose(tf.cast(weights, tf.float32), expected, rtol=tolerance, atol=tolerance / 10)
    for gradient in tape.gradient(interest, half.trainable_weights):
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("argument", ["num_heads", "key_dim"])
@pytest.mark.parametrize("value", [0, -2, 1.0, True, None])
def test_target_attention_refuses_a_bad_argument(argument: str, value: Any) -> None:
    arguments: dict[str, Any] = {argument: value}
    message = f"`{argument}` must be a positive integer. Received: {argument}={value!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        TargetAttention(**arguments)


@pytest.mark.parametrize(("query", "behaviours"), [((2, 3, DIM), (2, DIM)), ((DIM,), (2, 3, DIM))])
def test_target_attention_refuses_ranks_that_do_not_fit(query: tuple[int, ...], behaviours: tuple[int, ...]) -> None:
    message = (
        "`behaviours` must have the rank of `query` (shared by its candidates) or one more (a query's own). Received:"
    )
    layer = TargetAttention()
    layer(tf.zeros([2, DIM]), tf.zeros([2, 3, DIM]))
    with pytest.raises(ValueError, match=re.escape(message)):
        layer.attend(tf.zeros(query), tf.zeros(behaviours))


@pytest.mark.parametrize("similarity_bias", [False, True])
def test_target_attention_wants_similarity_with_the_bias_and_only_then(similarity_bias: bool) -> None:
    layer = TargetAttention(similarity_bias=similarity_bias)
    inputs = _inputs((4,), (4,), 6, not similarity_bias)
    message = (
        "`similarity` must be given with similarity_bias=True and only then. Received: "
        f"similarity_bias={similarity_bias}"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        layer(**_tensors(inputs))
