"""The functions of fingerprints and distances against loops over Python integers."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from keras_eta import ops
from keras_eta.ops import _counting
from tests import reference

# The function of the same name hides the module.
SEARCH = importlib.import_module("keras_eta.ops.hamming_top_k")

NUM_BITS = [1, 7, 63, 64, 65, 128, 200, 512]
DIMS = [1, 3, 32, 64, 100, 512]

WORDS = st.integers(-(2**63), 2**63 - 1)
# Sums of small integers are exact in any order, so that a projection of zero is zero.
INTEGERS = st.integers(-3, 3).map(float)


def _normal(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _message(text: str) -> str:
    return f"^{re.escape(text)}$"


# Packing


def test_pack_bits_worked_by_hand() -> None:
    bits = np.zeros([3, 65], bool)
    bits[1, [0, 3, 17]] = True
    bits[2, [63, 64]] = True
    np.testing.assert_array_equal(
        ops.pack_bits(tf.constant(bits)), np.array([[0, 0], [1 + 8 + 2**17, 0], [-(2**63), 1]], np.int64), strict=True
    )


@pytest.mark.parametrize("num_bits", NUM_BITS)
def test_pack_bits_equals_reference(num_bits: int) -> None:
    bits = np.random.default_rng(num_bits).random([2, 5, num_bits]) < 0.5
    bits[0, 0], bits[0, 1] = True, False
    expected = [[reference.pack_bits(row) for row in rows] for rows in bits]
    packed = ops.pack_bits(tf.constant(bits))
    np.testing.assert_array_equal(packed, np.array(expected, np.int64), strict=True)
    assert packed.shape[-1] == ops.num_words(num_bits) == -(-num_bits // 64)


@given(st.lists(st.booleans(), min_size=1, max_size=130))
def test_pack_bits_keeps_every_bit(bits: list[bool]) -> None:
    words = ops.pack_bits(tf.constant(bits)).numpy().tolist()
    assert reference.unpack_words(words, len(bits)) == bits
    assert not any(reference.unpack_words(words, 64 * len(words))[len(bits) :])


def test_pack_bits_of_a_dynamic_batch_has_a_static_number_of_words() -> None:
    concrete = tf.function(ops.pack_bits).get_concrete_function(tf.TensorSpec([None, None, 65], tf.bool))
    assert concrete.structured_outputs.shape.as_list() == [None, None, 2]


def test_pack_bits_takes_numpy_arrays_as_the_other_functions_do() -> None:
    np.testing.assert_array_equal(ops.pack_bits(np.array([[True, False, True]])), [[5]])


def test_pack_bits_refuses_no_bits_and_an_unknown_number() -> None:
    with pytest.raises(
        ValueError, match=_message("`bits` must have a static last dimension of at least 1. Received: shape=(2, 0)")
    ):
        ops.pack_bits(tf.zeros([2, 0], tf.bool))
    with pytest.raises(
        ValueError, match=_message("`bits` must have a static last dimension of at least 1. Received: shape=(2, None)")
    ):
        tf.function(ops.pack_bits, autograph=False).get_concrete_function(tf.TensorSpec([2, None], tf.bool))


# SimHash


@pytest.mark.parametrize("num_bits", NUM_BITS)
@pytest.mark.parametrize("dim", DIMS)
def test_simhash_equals_reference(dim: int, num_bits: int) -> None:
    x, planes = _normal((6, dim), seed=dim), _normal((dim, num_bits), seed=num_bits + 1)
    x[0] = 0.0
    fingerprints = ops.simhash(x, planes).numpy()
    np.testing.assert_array_equal(fingerprints, reference.simhash(x, planes), strict=True)
    assert not fingerprints[0].any()
    np.testing.assert_array_equal(ops.simhash(x.reshape(2, 3, dim), planes).numpy().reshape(6, -1), fingerprints)


# An example has 280 projections.
@settings(max_examples=40)
@given(hnp.arrays(np.float32, (4, 5), elements=INTEGERS), hnp.arrays(np.float32, (5, 70), elements=INTEGERS))
def test_simhash_is_one_only_above_zero(x: np.ndarray, planes: np.ndarray) -> None:
    bits, flipped = (
        np.array([reference.unpack_words(row, 70) for row in ops.simhash(values, planes).numpy()]) for values in (x, -x)
    )
    projected = reference.projections(x, planes)
    np.testing.assert_array_equal(bits, projected > 0)
    # Turned round, every bit flips but those of a projection of zero, which are 0 both times.
    np.testing.assert_array_equal(flipped, projected < 0)


def test_simhash_of_zero_and_negative_zero_is_zero() -> None:
    planes = _normal((8, 64))
    for zero in (0.0, -0.0):
        np.testing.assert_array_equal(ops.simhash(np.full([1, 8], zero, np.float32), planes), [[0]])


@pytest.mark.parametrize(("x", "planes"), [((3, 4), (5, 6)), ((), (1, 6)), ((3, 4), (4,)), ((3, 4), (1, 4, 6))])
def test_simhash_refuses_shapes_that_do_not_fit(x: tuple[int, ...], planes: tuple[int, ...]) -> None:
    shapes = f"x.shape={tf.TensorShape(x)}, planes.shape={tf.TensorShape(planes)}"
    with pytest.raises(ValueError, match=_message(f"`x` must be [..., D] and `planes` [D, M]. Received: {shapes}")):
        ops.simhash(tf.zeros(x), tf.zeros(planes))


def _near_planes(rows: int, planes: np.ndarray, seed: int) -> np.ndarray:
    """Rows whose projection on one of the planes is 0 up to rounding, so that its sign tells the order of the sum."""
    dim, num_bits = planes.shape
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, dim)).astype(np.float32)
    normals = planes.T[rng.integers(0, num_bits, rows)].astype(np.float64)
    x[:, -1] = -(x[:, :-1].astype(np.float64) * normals[:, :-1]).sum(axis=1) / normals[:, -1]
    return x


def _in_blocks(x: tf.Tensor, planes: tf.Tensor, rows: int) -> tf.Tensor:
    """Fingerprints of [n, D], hashed `rows` at a time."""
    blocks = tf.reshape(x, [-1, rows, x.shape[1]])
    hashed = tf.map_fn(lambda block: ops.simhash(block, planes), blocks, fn_output_signature=tf.int64)
    return tf.reshape(hashed, [x.shape[0], -1])


@pytest.mark.parametrize("dim", [8, 64, 100, 512])
def test_fingerprint_of_a_row_is_that_of_the_table_for_50_000_random_rows(dim: int) -> None:
    x, planes = tf.constant(_normal((50_000, dim), seed=dim)), tf.constant(_normal((dim, 64), seed=1))
    table = ops.simhash(x, planes).numpy()
    np.testing.assert_array_equal(tf.function(ops.simhash)(x, planes), table)
    np.testing.assert_array_equal(tf.function(ops.simhash, jit_compile=True)(x, planes), table)
    np.testing.assert_array_equal(ops.simhash(tf.reshape(x, [100, 500, dim]), planes).numpy().reshape(-1, 1), table)
    np.testing.assert_array_equal(tf.function(_in_blocks)(x, planes, 500), table)
    np.testing.assert_array_equal(tf.function(_in_blocks)(x[:10_000], planes, 1), table[:10_000])


@pytest.mark.parametrize("num_bits", [1, 7, 64, 100])
@pytest.mark.parametrize("dim", [3, 64, 100, 512])
def test_fingerprint_of_a_row_is_that_of_the_table_near_the_planes(dim: int, num_bits: int) -> None:
    normals = _normal((dim, num_bits), seed=num_bits)
    x, planes = tf.constant(_near_planes(1_200, normals, seed=dim)), tf.constant(normals)
    table = ops.simhash(x, planes).numpy()
    graph, xla = tf.function(_in_blocks), tf.function(_in_blocks, jit_compile=True)
    hashed = {
        "eager, 1 row": np.concatenate([ops.simhash(x[i : i + 1], planes) for i in range(30)]),
        "graph, 1 row": graph(x, planes, 1),
        "graph, 3 rows": graph(x, planes, 3),
        "graph, 400 rows": graph(x, planes, 400),
        "graph, 1,200 rows": tf.function(ops.simhash)(x, planes),
        "xla, 1 row": xla(x, planes, 1),
        "xla, 3 rows": xla(x, planes, 3),
        "xla, 1,200 rows": tf.function(ops.simhash, jit_compile=True)(x, planes),
    }
    differing = {where: int(np.any(part != table[: len(part)], axis=1).sum()) for where, part in hashed.items()}
    assert not any(differing.values()), {where: count for where, count in differing.items() if count}


def test_fingerprint_in_a_reloaded_saved_model_is_that_of_the_table(tmp_path: Path) -> None:
    planes = _normal((100, 64))
    x = _near_planes(2_000, planes, seed=1)
    module = tf.Module()
    module.hash = tf.function(lambda x: ops.simhash(x, planes), input_signature=[tf.TensorSpec([None, 100])])
    tf.saved_model.save(module, str(tmp_path))
    reloaded = tf.saved_model.load(str(tmp_path)).hash
    table = ops.simhash(x, planes).numpy()
    np.testing.assert_array_equal(reloaded(x), table)
    np.testing.assert_array_equal(np.concatenate([reloaded(x[i : i + 1]) for i in range(50)]), table[:50])


# The straight-through sign


def test_straight_through_sign_worked_by_hand() -> None:
    projection = tf.constant([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5])
    upstream = tf.constant([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    with tf.GradientTape() as tape:
        tape.watch(projection)
        codes = ops.straight_through_sign(projection)
        total = tf.reduce_sum(codes * upstream)
    np.testing.assert_array_equal(codes, [-1, -1, -1, -1, 1, 1, 1])
    np.testing.assert_array_equal(tape.gradient(total, projection), [0, 2, 3, 4, 5, 6, 0])


# Distances


def test_hamming_distance_worked_by_hand() -> None:
    a = np.array([[0b1011, 0], [-1, -1]], np.int64)
    b = np.array([[0b0110, 1]], np.int64)
    distances = ops.hamming_distance(a, b)
    assert distances.dtype == tf.int32
    # 1011 against 0110 differs in 3 bits; all ones against 0110 in 62; the second words in 1 and 63.
    np.testing.assert_array_equal(distances, [4, 125])


@given(st.lists(st.tuples(WORDS, WORDS, WORDS), min_size=1, max_size=9))
def test_hamming_distance_counts_bits_and_is_a_metric(words: list[tuple[int, int, int]]) -> None:
    triple = np.array(words, np.int64).T
    # All 9 distances of the three at once.
    distances = ops.hamming_distance(triple[:, np.newaxis], triple).numpy()
    for i, one in enumerate(triple):
        for j, other in enumerate(triple):
            assert distances[i, j] == reference.hamming_distance(one, other)
            assert (distances[i, j] == 0) == bool((one == other).all())
    np.testing.assert_array_equal(distances, distances.T)
    assert distances[0, 2] <= distances[0, 1] + distances[1, 2]


@pytest.mark.parametrize("num_words", [1, 2, 3, 4, 8])
def test_hamming_distance_of_opposites_counts_every_bit(num_words: int) -> None:
    words = np.full([num_words], 0x0F0F0F0F0F0F0F0F, np.int64)
    assert int(ops.hamming_distance(words, ~words)) == 64 * num_words


def test_hamming_distance_broadcasts() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(-(2**63), 2**63, (2, 3, 1, 4)), rng.integers(-(2**63), 2**63, (5, 4))
    expected = [[[reference.hamming_distance(x[0], y) for y in b] for x in rows] for rows in a]
    np.testing.assert_array_equal(ops.hamming_distance(a, b), np.array(expected, np.int32), strict=True)


def test_hamming_distance_refuses_different_numbers_of_words() -> None:
    message = "Fingerprints must have the same static number of words. Received: shapes (3, 2) and (1, 1)"
    with pytest.raises(ValueError, match=_message(message)):
        ops.hamming_distance(tf.zeros([3, 2], tf.int64), tf.zeros([1, 1], tf.int64))


@pytest.mark.parametrize("num_bits", NUM_BITS)
def test_distance_of_fingerprints_estimates_the_angle(num_bits: int) -> None:
    # A bit differs with probability angle / pi: the mean of 2,000 independent pairs is within 5 standard errors.
    rng = np.random.default_rng(num_bits)
    angle = 1.0
    planes = rng.standard_normal((2_000, 2, num_bits)).astype(np.float32)
    bits = [
        np.einsum("d,ndm->nm", np.array(vector, np.float32), planes) > 0
        for vector in ([1.0, 0.0], [np.cos(angle), np.sin(angle)])
    ]
    a, b = (ops.pack_bits(tf.constant(side)) for side in bits)
    share = np.asarray(ops.hamming_distance(a, b)).mean() / num_bits
    p = angle / np.pi
    assert abs(share - p) < 5 * np.sqrt(p * (1 - p) / (2_000 * num_bits))


# Top-k


@st.composite
def _searches(draw: Callable[..., Any]) -> tuple[np.ndarray, np.ndarray, int, np.ndarray | None]:
    num_words = draw(st.sampled_from([1, 3, 4]))
    length = draw(st.integers(0, 12))
    # A few fingerprints, so that most distances tie; the opposite ones, so that the farthest is real.
    word = st.sampled_from([0, -1, 1, 3, 2**63 - 1, -(2**63)])
    candidate = draw(hnp.arrays(np.int64, (draw(st.integers(1, 3)), num_words), elements=word))
    history = draw(hnp.arrays(np.int64, (length, num_words), elements=word))
    mask = draw(st.none() | hnp.arrays(bool, (length,)))
    return candidate, history, draw(st.integers(1, 15)), mask


@settings(max_examples=200)
@given(_searches())
def test_hamming_top_k_equals_reference(search: tuple[np.ndarray, np.ndarray, int, np.ndarray | None]) -> None:
    candidate, history, top_k, mask = search
    found = ops.hamming_top_k(candidate, history, top_k, mask)
    for name, actual, expected in zip(
        ops.TopK._fields, found, reference.hamming_top_k(candidate, history, top_k, mask), strict=True
    ):
        np.testing.assert_array_equal(actual, expected, strict=True, err_msg=name)


@st.composite
def _long_searches(draw: Callable[..., Any]) -> tuple[np.ndarray, np.ndarray, int, np.ndarray]:
    num_words, rows = draw(st.sampled_from([1, 4])), draw(st.integers(1, 2))
    word = st.sampled_from([0, -1, 1, 3, 2**63 - 1, -(2**63)])
    candidate = draw(hnp.arrays(np.int64, (rows, draw(st.integers(1, 7)), num_words), elements=word))
    history = draw(hnp.arrays(np.int64, (rows, draw(st.integers(33, 80)), num_words), elements=word))
    mask = draw(hnp.arrays(bool, history.shape[:2]))
    return candidate, history, draw(st.integers(1, 2)), mask


@settings(max_examples=100, deadline=None)
@given(search=_long_searches())
def test_blocks_of_behaviours_and_chunks_of_candidates_equal_reference(
    search: tuple[np.ndarray, np.ndarray, int, np.ndarray],
) -> None:
    candidate, history, top_k, mask = search
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SEARCH, "_BLOCKS_PAY", 16)
        patch.setattr(SEARCH, "_SORTED_PAIRS", 100)
        found = ops.hamming_top_k(candidate, history, top_k, mask)
    for row in range(len(candidate)):
        expected = reference.hamming_top_k(candidate[row], history[row], top_k, mask[row])
        for name, actual, value in zip(ops.TopK._fields, found, expected, strict=True):
            np.testing.assert_array_equal(actual[row], value, strict=True, err_msg=name)


@pytest.mark.parametrize("num_words", [1, 4])
def test_a_long_search_is_the_same_everywhere(num_words: int, tmp_path: Path) -> None:
    # Long enough for blocks and for several chunks of candidates, the last of which is not full.
    rng = np.random.default_rng(0)
    candidate = rng.integers(-(2**63), 2**63, (2, 601, num_words))
    history = rng.integers(-(2**63), 2**63, (2, 1_003, num_words))[:, rng.integers(0, 400, 1_003)]
    mask = rng.random(history.shape[:2]) < 0.9
    bits = [np.unpackbits(words.view(np.uint8), axis=-1) for words in (candidate, history)]
    distances = [
        np.where(m, [np.sum(bits_of_c != h, axis=-1) for bits_of_c in c], 64 * num_words + 1)
        for c, h, m in zip(*bits, mask, strict=True)
    ]
    positions = np.argsort(distances, axis=-1, kind="stable")[..., :7].astype(np.int32)
    module = tf.Module()
    module.search = tf.function(lambda c, h, m: ops.hamming_top_k(c, h, 7, m)._asdict(), autograph=False)
    arguments = tf.constant(candidate), tf.constant(history), tf.constant(mask)
    graph = module.search(*arguments)
    tf.saved_model.save(module, str(tmp_path))
    everywhere = {
        "eager": ops.hamming_top_k(*arguments[:2], 7, arguments[2])._asdict(),
        "graph": graph,
        "XLA": tf.function(module.search.python_function, jit_compile=True, autograph=False)(*arguments),
        "reloaded": tf.saved_model.load(str(tmp_path)).search(*arguments),
    }
    for name, found in everywhere.items():
        np.testing.assert_array_equal(found["positions"], positions, strict=True, err_msg=name)
        np.testing.assert_array_equal(
            found["distances"], np.take_along_axis(np.array(distances), positions, axis=-1), err_msg=name
        )
        assert np.all(found["mask"]), name


def _count(candidate: Any, history: Any, top_k: int, mask: Any, sorted: bool = True) -> ops.TopK:
    """`hamming_top_k` by counting, however few the distances are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SEARCH, "_counting_pays", lambda candidates, length: tf.constant(True))
        return ops.hamming_top_k(candidate, history, top_k, mask, sorted, jit_compile=True)


@settings(max_examples=40, deadline=None)
@given(search=_searches(), top_k=st.sampled_from([1, 5]))
def test_hamming_top_k_by_counting_equals_reference(
    search: tuple[np.ndarray, np.ndarray, int, np.ndarray | None], top_k: int
) -> None:
    candidate, history, _, mask = search
    found = _count(candidate, history, top_k, mask)
    for name, actual, expected in zip(
        ops.TopK._fields, found, reference.hamming_top_k(candidate, history, top_k, mask), strict=True
    ):
        np.testing.assert_array_equal(actual, expected, strict=True, err_msg=name)


@pytest.mark.parametrize(
    ("candidates", "length", "num_words", "top_k"),
    [
        (3, 1_300, 1, 48),
        (2, 5_000, 1, 126),
        (2, 300, 1, 128),  # more than lanes of 8 bits can count
        (2, 4_500, 2, 200),
        (_counting.CANDIDATE_BLOCK + 1, 20, 1, 3),
    ],
)
@pytest.mark.parametrize("kind", ["random", "few", "ties"])
def test_counting_finds_what_sorting_finds(candidates: int, length: int, num_words: int, top_k: int, kind: str) -> None:
    rng = np.random.default_rng(length)
    candidate = rng.integers(-(2**63), 2**63, (2, candidates, num_words))
    history = rng.integers(-(2**63), 2**63, (2, length, num_words))
    if kind != "random":
        history = history[:, rng.integers(0, 5 if kind == "few" else 1, length)]
    mask = rng.random((2, length)) < 0.8
    found = _count(candidate, history, top_k, mask)
    for name, actual, expected in zip(
        ops.TopK._fields, found, ops.hamming_top_k(candidate, history, top_k, mask), strict=True
    ):
        np.testing.assert_array_equal(actual, expected, strict=True, err_msg=name)
    unsorted = _count(candidate, history, top_k, mask, sorted=False)
    np.testing.assert_array_equal(np.sort(unsorted.positions), np.sort(found.positions))
    np.testing.assert_array_equal(np.sort(unsorted.distances), found.distances)


def test_counting_is_the_same_in_a_graph_of_unknown_sizes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    module = tf.Module()
    module.search = tf.function(
        lambda candidate, history, mask: _count(candidate, history, 9, mask)._asdict(),
        input_signature=[
            tf.TensorSpec([None, None, 1], tf.int64),
            tf.TensorSpec([None, None, 1], tf.int64),
            tf.TensorSpec([None, None], tf.bool),
        ],
        autograph=False,
    )
    tf.saved_model.save(module, str(tmp_path))
    reloaded = tf.saved_model.load(str(tmp_path))
    for rows, candidates, length in ((1, 3, 30), (2, 300, 700), (0, 3, 5), (2, 0, 5), (2, 3, 0)):
        candidate, history = rng.integers(0, 99, (rows, candidates, 1)), rng.integers(0, 99, (rows, length, 1))
        mask = rng.random((rows, length)) < 0.9
        expected = ops.hamming_top_k(candidate, history, 9, mask)._asdict()
        for function in (module.search, reloaded.search):
            found = function(tf.constant(candidate), tf.constant(history), tf.constant(mask))
            for name, value in expected.items():
                np.testing.assert_array_equal(found[name], value, strict=True, err_msg=name)


def test_only_large_searches_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[tuple[int, ...]] = []

    def by_counting(candidate: tf.Tensor, history: tf.Tensor, top_k: int, mask: tf.Tensor) -> tf.Tensor:
        counted.append((candidate.shape[1], history.shape[1]))
        return tf.zeros([*candidate.shape[:2], top_k], tf.int32)

    monkeypatch.setattr(_counting, "positions_by_counting", by_counting)
    for candidates, length in ((1, 65_536), (40, 10_240), (50, 512), (60, 1_024), (512, 256), (9_000, 255)):
        words = tf.zeros([1, candidates, 1], tf.int64), tf.zeros([1, length, 1], tf.int64)
        ops.hamming_top_k(*words, 4, jit_compile=True)
        ops.hamming_top_k(*words, 4)
    assert counted == [(60, 1_024), (512, 256)]


def test_history_buckets() -> None:
    assert ops.history_buckets(1) == [256]
    assert ops.history_buckets(1_000) == [256, 512, 768, 1_024]
    assert ops.history_buckets(10_240)[3:] == [
        *(1_024, 1_280, 1_536, 1_792, 2_048, 2_560, 3_072, 3_584, 4_096, 5_120, 6_144, 7_168, 8_192, 10_240)
    ]


@pytest.fixture(scope="module")
def buckets() -> list[int]:
    return ops.history_buckets(1 << 20)


@given(length=st.integers(0, 1 << 20))
def test_every_length_has_the_smallest_bucket_that_holds_it(buckets: list[int], length: int) -> None:
    bucket = int(_counting.history_bucket(tf.constant(length)))
    assert bucket == next(bucket for bucket in buckets if bucket >= length)
    assert length <= 1_024 or bucket < 1.25 * length


def test_hamming_top_k_worked_by_hand() -> None:
    # Distances from 0: 2, 1, 1, 64, 0, 1; position 4 is padding.
    history = np.array([[3], [4], [8], [-1], [0], [1]], np.int64)
    mask = np.array([True, True, True, True, False, True])
    found = ops.hamming_top_k(np.zeros([1, 1], np.int64), history, 7, mask)
    np.testing.assert_array_equal(found.positions, [[1, 2, 5, 0, 3, 0, 0]])
    np.testing.assert_array_equal(found.distances, [[1, 1, 1, 2, 64, 65, 65]])
    np.testing.assert_array_equal(found.mask, [[True] * 5 + [False] * 2])


@pytest.mark.parametrize("num_words", [1, 3, 4, 8])
def test_farthest_behaviour_is_found_before_padding(num_words: int) -> None:
    candidate, history = np.zeros([1, num_words], np.int64), np.full([3, num_words], -1, np.int64)
    found = ops.hamming_top_k(candidate, history, 2, np.array([False, True, False]))
    np.testing.assert_array_equal(found.positions, [[1, 0]])
    np.testing.assert_array_equal(found.distances, [[64 * num_words, 64 * num_words + 1]])
    np.testing.assert_array_equal(found.mask, [[True, False]])


@pytest.mark.parametrize("length", [3, 100, 5_000])
def test_all_ties_give_the_most_recent(length: int) -> None:
    candidate, history = np.zeros([2, 1], np.int64), np.full([length, 1], 7, np.int64)
    mask = np.ones(length, bool)
    mask[1] = False
    found = ops.hamming_top_k(candidate, history, 40, mask)
    real = np.flatnonzero(mask)[:40]
    np.testing.assert_array_equal(found.positions[:, : len(real)], [real, real])
    np.testing.assert_array_equal(found.mask.numpy().sum(axis=1), [len(real)] * 2)


@pytest.mark.parametrize("num_words", [1, 4])
def test_hamming_top_k_is_the_same_everywhere(num_words: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(num_words)
    candidate = rng.integers(0, 4, (3, 5, num_words))
    history = rng.integers(0, 4, (3, 90, num_words))
    mask = rng.random((3, 90)) < 0.7
    mask[1] = False
    expected = [
        reference.hamming_top_k(row[0], row[1], 48, row[2]) for row in zip(candidate, history, mask, strict=True)
    ]

    def search(candidate: tf.Tensor, history: tf.Tensor, mask: tf.Tensor) -> ops.TopK:
        return ops.hamming_top_k(candidate, history, 48, mask)

    signature = [
        tf.TensorSpec([None, None, num_words], tf.int64),
        tf.TensorSpec([None, None, num_words], tf.int64),
        tf.TensorSpec([None, None], tf.bool),
    ]
    module = tf.Module()
    module.search = tf.function(lambda *arguments: search(*arguments)._asdict(), input_signature=signature)
    tf.saved_model.save(module, str(tmp_path))
    reloaded = tf.saved_model.load(str(tmp_path)).search
    functions: dict[str, Callable[..., ops.TopK]] = {
        "eager": search,
        "graph": tf.function(search),
        "graph of unknown shapes": tf.function(search, input_signature=signature),
        "xla": tf.function(search, jit_compile=True),
        "saved model": lambda *arguments: ops.TopK(**reloaded(*arguments)),
    }
    for where, function in functions.items():
        found = function(*map(tf.constant, (candidate, history, mask)))
        for name, actual, wanted in zip(ops.TopK._fields, found, zip(*expected, strict=True), strict=True):
            np.testing.assert_array_equal(actual, np.stack(wanted), strict=True, err_msg=f"{where}: {name}")


@pytest.mark.parametrize("top_k", [0, -1, 1.0, True, None, "3"])
def test_hamming_top_k_refuses_a_bad_top_k(top_k: Any) -> None:
    words = tf.zeros([1, 1], tf.int64)
    with pytest.raises(ValueError, match=_message(f"`top_k` must be a positive integer. Received: top_k={top_k!r}")):
        ops.hamming_top_k(words, words, top_k)


def test_hamming_top_k_refuses_different_numbers_of_words() -> None:
    message = "Fingerprints must have the same static number of words. Received: shapes (1, 2) and (3, 1)"
    with pytest.raises(ValueError, match=_message(message)):
        ops.hamming_top_k(tf.zeros([1, 2], tf.int64), tf.zeros([3, 1], tf.int64), 2)


# Ages

NOW = 1_700_000_000


def test_age_bucket_worked_by_hand() -> None:
    ages = [0, 59, 60, 61, 3_599, 3_600, 3_601, 86_400, 10**9, -1, -(10**9)]
    buckets = ops.age_bucket([NOW], [[NOW - age for age in ages]], (60, 3_600))
    np.testing.assert_array_equal(buckets, np.array([[1, 1, 2, 2, 2, 3, 3, 3, 3, 1, 1]], np.int32), strict=True)


def test_age_bucket_is_exact_where_float32_is_not() -> None:
    # float32 holds neither the moments nor a year of seconds.
    year = 31_536_001
    history = np.array([NOW - 1, NOW, NOW - year + 1, NOW - year, NOW - year - 1])
    assert np.float32(NOW) == np.float32(NOW - 1)
    assert np.float32(year) == np.float32(year - 1)
    np.testing.assert_array_equal(ops.age_bucket(np.int64(NOW), history, (1, year)), [2, 1, 2, 3, 3])


def test_age_bucket_of_padding_is_zero() -> None:
    mask = [[True, True, False], [False, False, False]]
    buckets = ops.age_bucket([100, 100], [[100, 0, 0], [100, 0, 1]], (60,), mask)
    np.testing.assert_array_equal(buckets, [[1, 2, 0], [0, 0, 0]])


def test_age_bucket_of_no_behaviours_is_empty() -> None:
    assert ops.age_bucket(tf.zeros([3], tf.int64), tf.zeros([3, 0], tf.int64), (60,)).shape == (3, 0)
    assert ops.age_bucket(tf.zeros([0], tf.int64), tf.zeros([0, 4], tf.int64), (60,)).shape == (0, 4)


@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
def test_age_bucket_of_moments_farther_apart_than_int64_reaches(mode: str) -> None:
    first, last = -(2**63), 2**63 - 1
    timestamp, history = (
        np.array([last, first, 0]),
        np.array([[-1, first, last - 5], [last, 1, first], [first, last, -5]]),
    )

    def buckets(timestamp: tf.Tensor, history: tf.Tensor) -> tf.Tensor:
        return ops.age_bucket(timestamp, history, (5, last))

    function = {
        "eager": buckets,
        "graph": tf.function(buckets, autograph=False),
        "xla": tf.function(buckets, autograph=False, jit_compile=True),
    }[mode]
    np.testing.assert_array_equal(
        function(tf.constant(timestamp), tf.constant(history)), [[3, 3, 2], [1, 1, 1], [3, 1, 2]]
    )


@settings(max_examples=15)
@given(
    st.lists(st.integers(1, 2**40), min_size=1, max_size=6, unique=True).map(sorted),
    st.integers(0, 2**41),
    st.data(),
)
def test_age_bucket_equals_reference_everywhere(boundaries: list[int], timestamp: int, data: st.DataObject) -> None:
    near = st.sampled_from(boundaries).flatmap(lambda boundary: st.integers(boundary - 1, boundary + 1))
    ages = data.draw(st.lists(near | st.integers(-(2**41), 2**41), min_size=1, max_size=8))
    moments = np.array([[timestamp - age for age in ages]])
    expected = [[reference.age_bucket(timestamp, moment, boundaries) for moment in moments[0]]]
    arguments = (tf.constant([timestamp], tf.int64), tf.constant(moments, tf.int64))

    def buckets(*columns: tf.Tensor) -> tf.Tensor:
        return ops.age_bucket(columns[0], columns[1], boundaries)

    for function in (buckets, *(tf.function(buckets, autograph=False, jit_compile=xla) for xla in (False, True))):
        np.testing.assert_array_equal(function(*arguments), np.array(expected, np.int32), strict=True)


@pytest.mark.parametrize("name", ["timestamp", "history_timestamp"])
def test_age_bucket_refuses_moments_that_are_no_integers(name: str) -> None:
    columns = {"timestamp": tf.constant([5]), "history_timestamp": tf.constant([[4]])}
    columns[name] = tf.cast(columns[name], tf.float32)
    with pytest.raises(
        TypeError, match=_message(f"`{name}` must hold integers that int64 holds. Received: dtype=float32")
    ):
        ops.age_bucket(**columns, boundaries=(60,))


@pytest.mark.parametrize("name", ["timestamp", "history_timestamp"])
def test_age_bucket_refuses_moments_that_int64_does_not_hold(name: str) -> None:
    columns = {"timestamp": tf.constant([5]), "history_timestamp": tf.constant([[4]])}
    columns[name] = tf.cast(columns[name], tf.uint64)
    with pytest.raises(
        TypeError, match=_message(f"`{name}` must hold integers that int64 holds. Received: dtype=uint64")
    ):
        ops.age_bucket(**columns, boundaries=(60,))
