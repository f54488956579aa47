from __future__ import annotations

import copy
import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_eta import ETA, Age, Feature, FeatureLookup, Features
from tests import reference
from tests.layer_check import check_layer
from tests.paper import paper_eta

FEATURES = Features(
    item_id=Feature("item_id", "string"),
    item_attributes=(Feature("category_id", num_oov_indices=3), Feature("price", "float32", mean=0.0, std=1.0)),
    behaviour_attributes=(Feature("action", "string", vocabulary_size=2),),
    user=(Feature("user_id"),),
    context=(Feature("hour", "float32", mean=0.0, std=1.0),),
)
# Values that could be taken for padding or for a name of the unknown are ids like any other.
LOG: dict[str, np.ndarray] = {
    "item_id": np.array(["milk", "", "milk", "[UNK]", "bread", "milk", "bread"]),
    "category_id": np.array([0, 0, -1, 7, 7, 7, 9_000_000_000]),
    "action": np.array(["view", "buy", "view", "fav", "fav", "view", "cart"]),
    "user_id": np.array([3, 3, 2, 1, 1, -5, -5]),
}
VOCABULARIES: dict[str, list[Any]] = {
    "item_id": ["milk", "bread", "", "[UNK]"],
    "category_id": [7, 0, -1, 9_000_000_000],
    "action": ["view", "fav"],
    "user_id": [-5, 1, 3, 2],
}
NUM_OOV = {"item_id": 1, "category_id": 3, "action": 1, "user_id": 1}


@pytest.fixture
def lookup() -> FeatureLookup:
    layer = FeatureLookup(FEATURES)
    layer.adapt(LOG)
    return layer


def _raw() -> dict[str, np.ndarray]:
    return {
        "user_id": np.array([1, 77, -5]),
        "hour": np.array([0.5, 0.0, -3.0], np.float32),
        "item_id": np.array(["bread", "caviar", ""]),
        "category_id": np.array([7, 0, 123]),
        "price": np.array([1.0, 2.0, 3.0], np.float32),
        "history_item_id": np.array([["milk", "bread"], ["milk", "milk"], ["caviar", ""]]),
        "history_category_id": np.array([[7, -1], [0, 0], [5, 7]]),
        "history_price": np.array([[4.0, 5.0], [np.nan, 6.0], [7.0, 8.0]], np.float32),
        "history_action": np.array([["view", "buy"], ["fav", "fav"], ["fav", "view"]]),
        "history_length": np.array([2, 0, 1]),
    }


def _check_rows(name: str, rows: np.ndarray, values: np.ndarray) -> None:
    assert rows.dtype == np.int32
    for row, value in zip(rows.ravel(), values.ravel(), strict=True):
        expected = reference.encode(value, VOCABULARIES[name], NUM_OOV[name])
        assert row in expected if isinstance(expected, range) else row == expected


def test_adapt_orders_ids_by_frequency_and_cuts_them_off(lookup: FeatureLookup) -> None:
    for name, values in LOG.items():
        size = 2 if name == "action" else None
        assert reference.vocabulary(values.tolist(), size) == VOCABULARIES[name]
        expected = np.arange(len(VOCABULARIES[name]), dtype=np.int32) + 1 + NUM_OOV[name]
        np.testing.assert_array_equal(lookup.encode(name, VOCABULARIES[name]), expected, strict=True)
    np.testing.assert_array_equal(lookup.encode("action", ["buy", "cart", "nothing"]), [1, 1, 1])


def test_adapt_leaves_rare_ids_out() -> None:
    features = Features(item_id=Feature("item_id", min_count=2), user=(Feature("user_id"),))
    lookup = FeatureLookup(features)
    lookup.adapt({"item_id": np.array([7, 8, 9, 8, 9, 9]), "user_id": np.arange(6)})
    assert lookup.encode("item_id", [9, 8, 7]).tolist() == [2, 3, 1]
    assert lookup.features.user[0].vocabulary_size == 6
    message = "No id of feature 'item_id' is in `data` 2 times, its `min_count`; the most frequent is there 1 times."
    with pytest.raises(ValueError, match=re.escape(message)):
        lookup.adapt({"item_id": np.arange(3), "user_id": np.arange(3)})


PRICED = Features(
    item_id=Feature("item_id"),
    item_attributes=(Feature("price", "float32"), Feature("size", "float32", mean=3.0, std=2.0)),
    max_history_length=3,
)


def test_adapt_learns_means_and_deviations_of_floats() -> None:
    lookup = FeatureLookup(PRICED)
    lookup.adapt({"item_id": np.arange(4), "price": np.array([1.0, 2.0, 3.0, 6.0])})
    price, size = lookup.features.item_attributes
    assert price.mean == 3.0
    assert price.std == pytest.approx(14**0.5 / 2)
    assert (size.mean, size.std) == (3.0, 2.0), "what was given stays"
    again = FeatureLookup.from_config(json.loads(json.dumps(lookup.get_config())))
    again.set_vocabulary("item_id", [1, 2])
    assert again.features.item_attributes == (price, size)
    for adapted in (lookup, again):
        adapted.adapt({"item_id": np.arange(4), "price": np.array([0.0, 8.0, 0.0, 8.0])})
        price, size = adapted.features.item_attributes
        assert (price.mean, price.std, size.mean) == (4.0, 4.0, 3.0), "what was learned is learned anew"


def test_adapt_on_batches_counts_real_behaviours_alone() -> None:
    lookup = FeatureLookup(PRICED)
    batch = {
        "item_id": np.array([1, 2]),
        "price": np.array([1.0, 2.0], np.float32),
        "history_item_id": np.array([[3, 0], [0, 0]]),
        "history_price": np.array([[6.0, 1e9], [np.nan, 7.0]], np.float32),
        "history_length": np.array([1, 0]),
    }
    lookup.adapt(tf.data.Dataset.from_tensors((batch, np.array([0, 1]))))
    price = lookup.features.item_attributes[0]
    assert price.mean == 3.0
    assert price.std == pytest.approx((14 / 3) ** 0.5)


def test_equal_floats_are_not_divided_by_zero() -> None:
    lookup = FeatureLookup(PRICED)
    lookup.adapt({"item_id": np.arange(2), "price": np.array([5.0, 5.0])})
    assert (lookup.features.item_attributes[0].mean, lookup.features.item_attributes[0].std) == (5.0, 1.0)


@pytest.mark.parametrize(
    ("price", "message"),
    [
        (np.array([1.0, np.nan, np.inf]), "Feature 'price' must hold finite numbers. Received: 2 that are not, of 3, "),
        (None, "`data` holds no value of feature 'price'."),
    ],
)
def test_adapt_refuses_floats_that_are_none(price: np.ndarray | None, message: str) -> None:
    data = {"item_id": np.arange(3), **({} if price is None else {"price": price})}
    with pytest.raises(ValueError, match=re.escape(message)):
        FeatureLookup(PRICED).adapt(data)


def test_set_scale_refuses_ids_and_deviations_of_zero() -> None:
    lookup = FeatureLookup(PRICED)
    message = "`name` must be a float32 feature, one of ['price', 'size']. Received: name='item_id'"
    with pytest.raises(ValueError, match=re.escape(message)):
        lookup.set_scale("item_id", 0.0, 1.0)
    with pytest.raises(ValueError, match=re.escape("Received: mean=0.0, std=0.0, dtype='float32'")):
        lookup.set_scale("price", 0.0, 0.0)


def test_features_state_the_adapted_sizes(lookup: FeatureLookup) -> None:
    sizes = {name: len(vocabulary) for name, vocabulary in VOCABULARIES.items()}
    assert lookup.features == FEATURES.with_vocabulary_sizes(sizes)
    # Every row that a lookup can give exists in the embedding table.
    for feature in lookup.features.all_features:
        if feature.is_id:
            rows = lookup.encode(feature.name, [*VOCABULARIES[feature.name], *VOCABULARIES[feature.name][:1]])
            assert rows.max() == feature.num_indices - 1


def test_unknown_ids_fall_into_the_buckets_and_keep_to_one(lookup: FeatureLookup) -> None:
    unknown = np.setdiff1d(np.arange(1, 2_000), [7])
    rows = lookup.encode("category_id", unknown)
    assert set(rows.tolist()) == {1, 2, 3}
    np.testing.assert_array_equal(lookup.encode("category_id", unknown[::-1]), rows[::-1])


def test_extreme_ids_are_unknown_and_not_padding(lookup: FeatureLookup) -> None:
    rows = lookup.encode("user_id", [0, -1, 2**63 - 1, -(2**63) + 1, -(2**63)])
    np.testing.assert_array_equal(rows, [1] * 5)


@pytest.mark.parametrize("batch", [1, 3])
def test_call_equals_reference(lookup: FeatureLookup, batch: int) -> None:
    raw = {name: column[:batch] for name, column in _raw().items()}
    encoded = {name: column.numpy() for name, column in lookup(raw).items()}
    assert set(encoded) == set(raw)
    for name in ("user_id", "item_id", "category_id"):
        _check_rows(name, encoded[name], raw[name])
    for name in ("hour", "price"):
        np.testing.assert_array_equal(encoded[name], raw[name], strict=True)
    np.testing.assert_array_equal(encoded["history_length"], raw["history_length"].astype(np.int32), strict=True)
    for row, length in enumerate(raw["history_length"]):
        for name in ("item_id", "category_id", "action"):
            column = f"history_{name}"
            _check_rows(name, encoded[column][row, :length], raw[column][row, :length])
            np.testing.assert_array_equal(encoded[column][row, length:], 0)
        prices = raw["history_price"][row].copy()
        prices[length:] = 0.0
        np.testing.assert_array_equal(encoded["history_price"][row], prices)


def test_call_takes_several_candidates_narrow_integers_and_other_columns(lookup: FeatureLookup) -> None:
    raw = _raw()
    raw["item_id"] = np.array([["bread", "milk"], ["", "caviar"], ["milk", "milk"]])
    raw["category_id"] = np.array([[7, 0], [0, -1], [7, 7]], np.int32)
    raw["price"] = np.ones([3, 2], np.float32)
    raw["label"] = np.array([0, 1, 0])
    encoded = lookup(raw)
    assert "label" not in encoded
    np.testing.assert_array_equal(encoded["item_id"], [[3, 2], [4, 1], [2, 2]])
    np.testing.assert_array_equal(encoded["category_id"], [[4, 5], [5, 6], [4, 4]])


def test_lookup_is_the_same_everywhere(tmp_path: Path) -> None:
    layer = FeatureLookup(FEATURES)
    layer.adapt(LOG)
    # String tables have no XLA kernels.
    outputs = check_layer(layer, {"inputs": _raw()}, tmp_path, xla=False, copy_state=lambda _, twin: twin.adapt(LOG))
    np.testing.assert_array_equal(outputs[sorted(_raw()).index("history_item_id")], [[2, 3], [0, 0], [1, 0]])
    reloaded = tf.keras.models.load_model(str(tmp_path / "model")).layers[-1]
    assert isinstance(reloaded, FeatureLookup)
    assert reloaded.features == layer.features
    np.testing.assert_array_equal(reloaded.encode("item_id", ["bread", "milk"]), [3, 2])


def test_adapt_to_batches_counts_candidates_and_real_behaviours() -> None:
    features = Features(item_id=Feature("item_id"), user=(Feature("user_id", "string"),))
    batches = [
        {
            "user_id": ["b", "a"],
            "item_id": [5, 6],
            # 9 only ever stands in padding.
            "history_item_id": [[6, 5, 9], [9, 9, 9]],
            "history_length": [2, 0],
        },
        {"user_id": ["b"], "item_id": [6], "history_item_id": [[7, 6, 5]], "history_length": [2]},
    ]
    datasets = {
        "dicts": tf.data.Dataset.from_generator(
            lambda: batches,
            output_signature={
                "user_id": tf.TensorSpec([None], tf.string),
                "item_id": tf.TensorSpec([None], tf.int64),
                "history_item_id": tf.TensorSpec([None, 3], tf.int64),
                "history_length": tf.TensorSpec([None], tf.int64),
            },
        )
    }
    datasets["pairs"] = datasets["dicts"].map(lambda batch: (batch, tf.zeros_like(batch["item_id"])))
    for kind, dataset in datasets.items():
        layer = FeatureLookup(features)
        layer.adapt(dataset)
        # 6 was seen four times, 5 twice, 7 once.
        np.testing.assert_array_equal(layer.encode("item_id", [6, 5, 7, 9]), [2, 3, 4, 1], err_msg=kind)
        np.testing.assert_array_equal(layer.encode("user_id", ["b", "a"]), [2, 3], err_msg=kind)


def test_adapting_again_replaces_the_vocabulary(lookup: FeatureLookup) -> None:
    lookup.adapt({**LOG, "item_id": np.array(["new", "new", "newer"])})
    np.testing.assert_array_equal(lookup.encode("item_id", ["new", "newer", "milk"]), [2, 3, 1])


def test_set_vocabulary_keeps_its_order_and_is_cut_off() -> None:
    layer = FeatureLookup(FEATURES)
    layer.set_vocabulary("action", ["buy", "view", "fav"])
    np.testing.assert_array_equal(layer.encode("action", ["buy", "view", "fav"]), [2, 3, 1])
    layer.set_vocabulary("user_id", np.array([9, 4], np.int32))
    np.testing.assert_array_equal(layer.encode("user_id", [[4], [9]]), [[3], [2]])


# Any bytes are an id: line breaks, no UTF-8, NULs at the end, the names that Keras reserves.
ODD_IDS = [b"a\nb", b"x", b"y", b"x\r", b"\r\n", b"", b"\xff", b"\xc3", b"x\0", b"\0out of vocabulary", b"a", b"b"]


def _odd_model() -> ETA:
    lookup = FeatureLookup(Features(item_id=Feature("item_id", "string", embedding_dim=2), user=(Feature("user_id"),)))
    lookup.set_vocabulary("item_id", ODD_IDS)
    lookup.set_vocabulary("user_id", [-(2**63), 2**63 - 1, 3])
    model = paper_eta(lookup=lookup, top_k=1, num_bits=4, short_history_length=1, num_heads=1, hidden_units=(2,))
    model.build()
    return model


def _through_file(model: ETA, path: Path) -> ETA:
    model.save(str(path))
    return tf.keras.models.load_model(str(path))


COPIES: dict[str, Callable[[ETA, Path], ETA]] = {
    "none": lambda model, _: model,
    "keras file": lambda model, directory: _through_file(model, directory / "model.keras"),
    "saved model": lambda model, directory: _through_file(model, directory / "model"),
    "saved model, then keras file": lambda model, directory: _through_file(
        _through_file(model, directory / "model"), directory / "again.keras"
    ),
    "deep copy": lambda model, _: copy.deepcopy(model),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if "saved" in name else name for name in COPIES]
)
def test_every_id_keeps_its_row_in_a_copy(tmp_path: Path, name: str) -> None:
    model: Any = _odd_model()
    model(model.lookup({"user_id": [3], "item_id": ["x"], "history_item_id": [["y"]], "history_length": [1]}))
    lookup: Any = COPIES[name](model, tmp_path).lookup
    np.testing.assert_array_equal(lookup.encode("item_id", ODD_IDS), np.arange(2, 14))
    np.testing.assert_array_equal(lookup.encode("item_id", [b"a\nb\n", b"x\n", b"\n", b"[UNK]", b"\0"]), [1] * 5)
    np.testing.assert_array_equal(lookup.encode("user_id", [-(2**63), 2**63 - 1, 3, 4]), [2, 3, 4, 1])


def test_adapt_and_encode_take_text_with_trailing_nuls() -> None:
    layer = FeatureLookup(Features(item_id=Feature("item_id", "string")))
    layer.adapt({"item_id": ["a\0", "a\0", "a"]})
    np.testing.assert_array_equal(layer.encode("item_id", [["a\0", "a"], ["a\0\0", ""]]), [[2, 3], [1, 1]])


# Ages


def _aged_lookup() -> FeatureLookup:
    # A user may have an `age` too.
    user = (Feature("user_id"), Feature("age"))
    layer = FeatureLookup(dataclasses.replace(FEATURES, user=user, age=Age((60, 3_600))))
    layer.adapt({**LOG, "age": np.array([25, 30])})
    return layer


def _aged_raw() -> dict[str, np.ndarray]:
    now = 1_700_000_000
    return {
        **_raw(),
        "age": np.array([30, 99, 25]),
        "timestamp": np.array([now, now, now - 10]),
        "history_timestamp": np.array([[now - 59, now - 3_600], [now - 5, now - 7_200], [now - 70, 0]]),
    }


def test_timestamps_become_buckets_of_ages() -> None:
    encoded = {name: column.numpy() for name, column in _aged_lookup()(_aged_raw()).items()}
    # Ages: 59 s and an hour; padding, padding; 60 s, padding.
    np.testing.assert_array_equal(encoded["history_age"], np.array([[1, 3], [0, 0], [2, 0]], np.int32), strict=True)
    np.testing.assert_array_equal(encoded["age"], [3, 1, 2])
    assert set(encoded) == {*_raw(), "age", "history_age"}


def test_lookup_without_age_leaves_timestamps_out(lookup: FeatureLookup) -> None:
    assert set(lookup(_aged_raw())) == set(_raw())


def test_lookup_with_age_is_the_same_everywhere(tmp_path: Path) -> None:
    layer = _aged_lookup()
    data = {**LOG, "age": np.array([25, 30])}
    outputs = check_layer(
        layer, {"inputs": _aged_raw()}, tmp_path, xla=False, copy_state=lambda _, twin: twin.adapt(data)
    )
    names = sorted({*_raw(), "age", "history_age"})
    np.testing.assert_array_equal(outputs[names.index("history_age")], [[1, 3], [0, 0], [2, 0]])
    reloaded = tf.keras.models.load_model(str(tmp_path / "model")).layers[-1]
    assert reloaded.features == layer.features
    assert reloaded.features.age == Age((60, 3_600))


def test_lookup_with_age_refuses_columns_without_timestamps() -> None:
    raw = {name: column for name, column in _aged_raw().items() if "timestamp" not in name}
    message = f"Columns are missing: ['history_timestamp', 'timestamp']. Received: {sorted(raw)}"
    with pytest.raises(ValueError, match=re.escape(message)):
        _aged_lookup()(raw)


def test_lookup_with_age_refuses_timestamps_that_are_no_integers() -> None:
    raw = _aged_raw()
    raw["history_timestamp"] = raw["history_timestamp"].astype(np.float64)
    message = "`history_timestamp` must hold integers that int64 holds. Received: dtype=float64"
    with pytest.raises(TypeError, match=re.escape(message)):
        _aged_lookup()(raw)


# Refusals


def _message(text: str) -> str:
    return f"^{re.escape(text)}$"


def test_lookup_refuses_what_is_no_features() -> None:
    with pytest.raises(TypeError, match=_message("`features` must be a keras_eta.Features. Received: features='item'")):
        FeatureLookup("item")  # type: ignore[arg-type]


def test_lookup_refuses_missing_columns(lookup: FeatureLookup) -> None:
    raw = _raw()
    del raw["history_action"], raw["hour"]
    with pytest.raises(
        ValueError, match=re.escape(f"Columns are missing: ['history_action', 'hour']. Received: {sorted(raw)}")
    ):
        lookup(raw)


def test_features_of_an_unadapted_lookup_say_what_to_do() -> None:
    message = "The vocabulary of feature 'user_id' is empty. Call `adapt` first."
    with pytest.raises(ValueError, match=_message(message)):
        _ = FeatureLookup(FEATURES).features


def test_call_of_an_unadapted_lookup_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"Call `adapt` first\."):
        FeatureLookup(FEATURES)(_raw())


@pytest.mark.parametrize("data", [{"item_id": np.array(["a"])}, {**LOG, "user_id": np.zeros(0, np.int64)}])
def test_adapt_refuses_data_without_a_feature(data: dict[str, np.ndarray]) -> None:
    missing = "category_id" if len(data) == 1 else "user_id"
    with pytest.raises(ValueError, match=r"^`data` holds no value of feature '\w+'\.$") as error:
        FeatureLookup(FEATURES).adapt(data)
    assert missing in str(error.value) or len(data) == 1


@pytest.mark.parametrize("name", ["brand_id", "price"])
@pytest.mark.parametrize("method", ["encode", "set_vocabulary"])
def test_lookup_refuses_a_name_that_is_no_id_feature(lookup: FeatureLookup, method: str, name: str) -> None:
    with pytest.raises((KeyError, ValueError), match=f"{name}"):
        getattr(lookup, method)(name, [1])


def test_set_vocabulary_takes_integers_spelt_in_bytes_as_transform_gives_them(lookup: FeatureLookup) -> None:
    lookup.set_vocabulary("user_id", np.array([b"7", b"-2", b"9007199254740993"], object))
    np.testing.assert_array_equal(lookup.encode("user_id", [7, -2, 2**53 + 1, 2**53]), [2, 3, 4, 1])
    with pytest.raises(ValueError, match=r"1\.7"):
        lookup.set_vocabulary("user_id", [b"1.7"])


NO_INTEGERS: list[tuple[Any, str]] = [
    ([1.7], "1.7 (dtype=float64). Fractions, such as half stars, take a feature of dtype 'float32'"),
    ([1, 2.5], "2.5 (dtype=float64). Fractions, such as half stars, take a feature of dtype 'float32'"),
    ([float("nan")], "nan (dtype=float64)"),
    ([float("inf")], "inf (dtype=float64)"),
    # 2**53 + 1 is rounded to 2**53, 2**24 + 1 as float32 to 2**24.
    ([2.0**53], "9007199254740992.0 (dtype=float64)"),
    ([-(2.0**53)], "-9007199254740992.0 (dtype=float64)"),
    (np.array([1, 2**24], np.float32), "16777216.0 (dtype=float32)"),
    (np.array([3, 2**63 + 5], np.uint64), "9223372036854775813 (dtype=uint64)"),
    ([2**63], "9223372036854775808 (dtype=uint64)"),
    ([2**64], "18446744073709551616 (dtype=object)"),
    ([-(2**63) - 1], "-9223372036854775809 (dtype=object)"),
    (["7"], "7 (dtype=<U1)"),
    ([None], "None (dtype=object)"),
]


@pytest.mark.parametrize("method", ["encode", "set_vocabulary", "adapt"])
@pytest.mark.parametrize(("values", "what"), NO_INTEGERS)
def test_lookup_refuses_values_that_are_no_integers(lookup: FeatureLookup, method: str, values: Any, what: str) -> None:
    message = "Feature 'user_id' must hold integers of 64 bits, as floats only where they are exact. Received: " + what
    methods = {
        "encode": lambda: lookup.encode("user_id", values),
        "set_vocabulary": lambda: lookup.set_vocabulary("user_id", values),
        "adapt": lambda: lookup.adapt({**LOG, "user_id": values}),
    }
    with pytest.raises(ValueError, match=_message(message)):
        methods[method]()


def test_whole_numbers_of_any_type_are_integers(lookup: FeatureLookup) -> None:
    for values in (
        [3.0, -5.0, 2.0**53 - 1],
        np.array([3, -5, 2**24 - 1], np.float32),
        np.array([3, -5, 2**11 - 1], np.float16),
        np.array([3, -5, 9], object),
        np.array([3, -5, 9], np.int8),
    ):
        np.testing.assert_array_equal(lookup.encode("user_id", values), [4, 2, 1])
    np.testing.assert_array_equal(lookup.encode("user_id", np.array([3, 2**63 - 1], np.uint64)), [4, 1])
    assert lookup.encode("user_id", []).shape == (0,)


def test_call_takes_empty_lists_as_a_history() -> None:
    layer = FeatureLookup(Features(item_id=Feature("item_id")))
    layer.set_vocabulary("item_id", [5])
    encoded = layer({"item_id": [5, 6], "history_item_id": [[], []], "history_length": [0, 0]})
    assert encoded["history_item_id"].shape == (2, 0)
    np.testing.assert_array_equal(encoded["item_id"], [2, 1])


@pytest.mark.parametrize("dtype", ["float64", "float32", "uint64"])
def test_call_refuses_columns_whose_type_int64_does_not_hold(lookup: FeatureLookup, dtype: str) -> None:
    for name in ("user_id", "history_category_id", "history_length"):
        raw = _raw()
        raw[name] = raw[name].astype(dtype)
        message = f"Column '{name}' must hold integers that int64 holds. Received: dtype={dtype}"
        with pytest.raises(TypeError, match=re.escape(message)):
            lookup(raw)


def test_floats_stay_what_they_are_under_mixed_precision() -> None:
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        lookup = FeatureLookup(FEATURES)
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    lookup.adapt(LOG)
    price = np.array([1234.56, 0.1, 3.0], np.float32)
    found = lookup({name: tf.constant(values) for name, values in (_raw() | {"price": price}).items()})
    np.testing.assert_array_equal(found["price"], price)
    assert FeatureLookup.from_config(lookup.get_config()).get_config() == lookup.get_config()
