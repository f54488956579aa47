"""The data contract in code: what is derived from features, what is refused, and that JSON keeps it."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest

from keras_eta import Age, Feature, Features, Positives
from keras_eta.columns import history_name

ITEM = Feature("item_id", vocabulary_size=100)


def test_history_name_prefixes_the_feature() -> None:
    assert history_name("item_id") == "history_item_id"


def test_feature_defaults() -> None:
    feature = Feature("item_id")
    assert (feature.dtype, feature.embedding_dim, feature.vocabulary_size, feature.num_oov_indices) == (
        "int64",
        32,
        None,
        1,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": ""}, "`name` must be a non-empty string of printable characters. Received: name=''"),
        ({"name": 3}, "`name` must be a non-empty string of printable characters. Received: name=3"),
        (
            {"name": "item_id", "dtype": "int32"},
            "`dtype` of feature 'item_id' must be one of ('int64', 'string', 'float32'). Received: dtype='int32'",
        ),
        (
            {"name": "item_id", "embedding_dim": 0},
            "`embedding_dim` of feature 'item_id' must be a positive integer. Received: embedding_dim=0",
        ),
        (
            {"name": "item_id", "embedding_dim": 2.0},
            "`embedding_dim` of feature 'item_id' must be a positive integer. Received: embedding_dim=2.0",
        ),
        (
            {"name": "item_id", "embedding_dim": True},
            "`embedding_dim` of feature 'item_id' must be a positive integer. Received: embedding_dim=True",
        ),
        (
            {"name": "item_id", "num_oov_indices": 0},
            "`num_oov_indices` of feature 'item_id' must be a positive integer. Received: num_oov_indices=0",
        ),
        (
            {"name": "item_id", "vocabulary_size": 0},
            "`vocabulary_size` of feature 'item_id' must be a positive integer or None. Received: vocabulary_size=0",
        ),
        (
            {"name": "item_id", "vocabulary_size": True},
            "`vocabulary_size` of feature 'item_id' must be a positive integer or None. Received: vocabulary_size=True",
        ),
        (
            {"name": "item_id", "vocabulary_size": "10"},
            "`vocabulary_size` of feature 'item_id' must be a positive integer or None. Received: vocabulary_size='10'",
        ),
    ],
)
def test_feature_refuses_a_bad_argument(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Feature(**arguments)


@pytest.mark.parametrize("dtype", ["int64", "string"])
def test_num_indices_counts_padding_unknown_and_vocabulary(dtype: str) -> None:
    feature = Feature("item_id", dtype, embedding_dim=7, vocabulary_size=10, num_oov_indices=3)
    assert feature.is_id
    assert feature.num_indices == 1 + 3 + 10
    assert feature.width == 7


def test_float_feature_has_one_column_and_no_vocabulary() -> None:
    feature = Feature("price", "float32")
    assert not feature.is_id
    assert feature.width == 1
    with pytest.raises(ValueError, match=r"^Feature 'price' has dtype 'float32' and no vocabulary\.$"):
        _ = feature.num_indices


def test_num_indices_of_an_unknown_vocabulary_says_what_to_do() -> None:
    message = (
        "The vocabulary size of feature 'item_id' is not known. Set `vocabulary_size`, or adapt a `FeatureLookup` "
        "and use its `features`."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        _ = Feature("item_id").num_indices


def test_roles_derive_names_in_order() -> None:
    features = Features(
        item_id=ITEM,
        item_attributes=(Feature("category_id"), Feature("price", "float32")),
        behaviour_attributes=(Feature("action", "string"),),
        user=(Feature("user_id"),),
        context=(Feature("hour", "float32"), Feature("page")),
    )
    assert features.row_names == ("user_id", "hour", "page", "item_id", "category_id", "price")
    assert features.history_names == (
        "history_item_id",
        "history_category_id",
        "history_price",
        "history_action",
    )
    assert [feature.name for feature in features.item_features] == ["item_id", "category_id", "price"]
    assert [feature.name for feature in features.history_features] == ["item_id", "category_id", "price", "action"]
    assert [feature.name for feature in features.all_features] == [
        "user_id",
        "hour",
        "page",
        "item_id",
        "category_id",
        "price",
        "action",
    ]


def test_defaults_hash_the_item_id_alone_over_512_behaviours() -> None:
    features = Features(item_id=ITEM, item_attributes=(Feature("category_id"),))
    assert features.hashed == ("item_id",)
    assert features.max_history_length == 512


def test_sequences_become_tuples() -> None:
    attributes: Any = [Feature("category_id")]
    hashed: Any = ["category_id", "item_id"]
    features = Features(item_id=ITEM, item_attributes=attributes, hashed=hashed)
    assert features.item_attributes == (Feature("category_id"),)
    assert features.hashed == ("category_id", "item_id")
    assert hash(features) == hash(dataclasses.replace(features))


ATTRIBUTES = (Feature("category_id"), Feature("price", "float32"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"item_id": Feature("price", "float32")},
            "`item_id` must be a Feature of dtype 'int64' or 'string' with one value. Received: "
            "item_id=Feature(name='price', dtype='float32', embedding_dim=32, "
            "vocabulary_size=None, num_oov_indices=1, max_values=None, min_count=1, mean=None, std=None, "
            "optional=False)",
        ),
        (
            {"item_id": "item_id"},
            "`item_id` must be a Feature of dtype 'int64' or 'string' with one value. Received: item_id='item_id'",
        ),
        (
            {"item_id": ITEM, "item_attributes": ATTRIBUTES, "hashed": ("brand_id",)},
            "`hashed` must name different id features of the item with one value, among ['item_id', 'category_id']. "
            "Received: hashed=('brand_id',)",
        ),
        (
            {"item_id": ITEM, "item_attributes": ATTRIBUTES, "hashed": ("item_id", "price")},
            "`hashed` must name different id features of the item with one value, among ['item_id', 'category_id']. "
            "Received: hashed=('item_id', 'price')",
        ),
        (
            {"item_id": ITEM, "hashed": ("item_id", "item_id")},
            "`hashed` must name different id features of the item with one value, among ['item_id']. "
            "Received: hashed=('item_id', 'item_id')",
        ),
        (
            {"item_id": ITEM, "behaviour_attributes": (Feature("action"),), "hashed": ("action",)},
            "`hashed` must name different id features of the item with one value, among ['item_id']. "
            "Received: hashed=('action',)",
        ),
        (
            {"item_id": ITEM, "max_history_length": 0},
            "`max_history_length` must be a positive integer. Received: max_history_length=0",
        ),
        (
            {"item_id": ITEM, "max_history_length": 1.5},
            "`max_history_length` must be a positive integer. Received: max_history_length=1.5",
        ),
        (
            {"item_id": ITEM, "user": (Feature("item_id"),)},
            "Every column must have a name of its own. Used twice: ['item_id']",
        ),
        (
            {"item_id": ITEM, "item_attributes": (Feature("action"),), "behaviour_attributes": (Feature("action"),)},
            "Every column must have a name of its own. Used twice: ['history_action']",
        ),
        (
            {"item_id": ITEM, "context": (Feature("label"), Feature("timestamp"))},
            "Every column must have a name of its own. Used twice: ['label', 'timestamp']",
        ),
        (
            {"item_id": ITEM, "user": (Feature("history_item_id"), Feature("history_length"))},
            "Every column must have a name of its own. Used twice: ['history_item_id', 'history_length']",
        ),
        (
            {"item_id": Feature("length")},
            "Every column must have a name of its own. Used twice: ['history_length']",
        ),
    ],
)
def test_features_refuse_a_bad_argument(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Features(**arguments)


@pytest.mark.parametrize("role", ["item_attributes", "behaviour_attributes", "user", "context"])
def test_features_refuse_what_is_no_feature(role: str) -> None:
    roles: dict[str, Any] = {role: ("category_id",)}
    with pytest.raises((TypeError, ValueError), match=f"`{role}` must .*category_id"):
        Features(item_id=ITEM, **roles)


AGE = Age((60, 3_600))


def test_age_counts_padding_and_one_bucket_more_than_boundaries() -> None:
    age = Age([60, 3_600, 86_400])  # type: ignore[arg-type]
    assert (age.boundaries, age.embedding_dim, age.num_indices) == ((60, 3_600, 86_400), 8, 5)
    assert hash(age) == hash(Age((60, 3_600, 86_400)))


@pytest.mark.parametrize(
    "boundaries",
    [(), (0, 60), (-1,), (60, 60), (3_600, 60), (60.0, 3_600), (True, 60), (None,), ("60",), 60, "60", None],
)
def test_age_refuses_bad_boundaries(boundaries: Any) -> None:
    message = (
        f"`boundaries` must be positive integers, at least one, strictly ascending. Received: boundaries={boundaries!r}"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Age(boundaries)


@pytest.mark.parametrize("embedding_dim", [0, 2.0, True])
def test_age_refuses_a_bad_embedding_dim(embedding_dim: Any) -> None:
    message = f"`embedding_dim` must be a positive integer. Received: embedding_dim={embedding_dim!r}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Age((60,), embedding_dim)


def test_age_exchanges_timestamps_for_a_bucket() -> None:
    features = Features(
        item_id=ITEM, behaviour_attributes=(Feature("action"),), user=(Feature("age"), Feature("user_id")), age=AGE
    )
    assert features.row_names == ("age", "user_id", "item_id", "timestamp")
    assert features.history_names == ("history_item_id", "history_action", "history_timestamp")
    assert features.encoded_row_names == ("age", "user_id", "item_id")
    assert features.encoded_sequence_names(features.sequence("history")) == (
        "history_item_id",
        "history_action",
        "history_age",
    )
    assert "timestamp" not in [feature.name for feature in features.all_features]


def test_without_age_raw_and_encoded_names_are_the_same() -> None:
    # The names that an age would take are free.
    behaviour = (Feature("timestamp", "float32"), Feature("age"))
    features = Features(item_id=ITEM, behaviour_attributes=behaviour, user=(Feature("age"),))
    assert features.row_names == features.encoded_row_names == ("age", "item_id")
    names = ("history_item_id", "history_timestamp", "history_age")
    assert features.history_names == features.encoded_sequence_names(features.sequence("history")) == names


@pytest.mark.parametrize(
    ("roles", "name"),
    [
        ({"behaviour_attributes": (Feature("age"),)}, "history_age"),
        ({"behaviour_attributes": (Feature("timestamp"),)}, "history_timestamp"),
        ({"user": (Feature("history_age"),)}, "history_age"),
        ({"context": (Feature("history_timestamp"),)}, "history_timestamp"),
        ({"context": (Feature("timestamp"),)}, "timestamp"),
        ({"item_attributes": (Feature("age"),)}, "history_age"),
    ],
)
def test_age_refuses_a_column_of_its_own_names(roles: dict[str, Any], name: str) -> None:
    message = f"Every column must have a name of its own. Used twice: ['{name}']"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Features(item_id=ITEM, age=AGE, **roles)


def test_features_refuse_an_age_that_is_none() -> None:
    message = "`age` must be a keras_eta.Age or None. Received: age=(60, 3600)"
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        Features(item_id=ITEM, age=(60, 3_600))  # type: ignore[arg-type]


def test_from_dict_reads_an_age_through_json() -> None:
    features = Features(item_id=ITEM, age=Age((60, 3_600), embedding_dim=3))
    read = Features.from_dict(json.loads(json.dumps(features.to_dict())))
    assert read == features
    assert read.age == Age((60, 3_600), embedding_dim=3)
    assert read.with_vocabulary_sizes({"item_id": 7}).age == features.age


def test_from_dict_reads_descriptions_from_before_there_was_an_age() -> None:
    features = Features(item_id=ITEM, max_history_length=9)
    description = features.to_dict()
    del description["age"]
    assert Features.from_dict(description) == features


# Positives

ACTION, RATING = Feature("action", "string"), Feature("rating", "float32")


@pytest.mark.parametrize(
    "positives", [Positives("action", ("buy", "cart")), Positives("rating", minimum=3.5), Positives("stars", (4, 5))]
)
def test_positives_survive_json_and_new_vocabularies(positives: Positives) -> None:
    features = Features(item_id=ITEM, behaviour_attributes=(ACTION, RATING, Feature("stars")), positives=positives)
    read = Features.from_dict(json.loads(json.dumps(features.to_dict())))
    assert read == features
    assert read.positives == positives
    assert features.with_vocabulary_sizes({"action": 3}).positives == positives


def test_from_dict_reads_descriptions_from_before_there_were_positives() -> None:
    features = Features(item_id=ITEM)
    description = features.to_dict()
    del description["positives"]
    assert Features.from_dict(description) == features


@pytest.mark.parametrize(
    ("positives", "error", "message"),
    [
        (
            lambda: Positives("action"),
            ValueError,
            "Give either `values` or a `minimum` of positive behaviours. Received: values=(), minimum=None",
        ),
        (
            lambda: Positives("action", ("buy",), 1.0),
            ValueError,
            "Give either `values` or a `minimum` of positive behaviours. Received: values=('buy',), minimum=1.0",
        ),
        (
            lambda: Positives("rating", minimum=float("nan")),
            ValueError,
            "`minimum` must be a finite number or None. Received: minimum=nan",
        ),
        (
            lambda: Positives("action", "buy"),  # type: ignore[arg-type]
            TypeError,
            "`values` must be a tuple of raw ids. Received: values='buy'",
        ),
        (
            lambda: "action",
            TypeError,
            "`positives` must be a keras_eta.Positives or None. Received: positives='action'",
        ),
        (
            lambda: Positives("item_id", (1,)),
            ValueError,
            "`positives` must go by a behaviour attribute with one value, among ['action', 'rating', 'stars']. "
            f"Received: {Positives('item_id', (1,))}",
        ),
        (
            lambda: Positives("tags", ("a",)),
            ValueError,
            "`positives` must go by a behaviour attribute with one value, among ['action', 'rating', 'stars']. "
            f"Received: {Positives('tags', ('a',))}",
        ),
        (
            lambda: Positives("rating", (4,)),
            ValueError,
            "`positives` must have `values` of an id and a `minimum` of a float32. "
            f"Received: {Positives('rating', (4,))} of float32",
        ),
        (
            lambda: Positives("stars", minimum=4),
            ValueError,
            "`positives` must have `values` of an id and a `minimum` of a float32. "
            f"Received: {Positives('stars', minimum=4)} of int64",
        ),
        (
            lambda: Positives("stars", (4, "5", True)),
            ValueError,
            "`positives` must have values of int64, the dtype of 'stars'. Received: ['5', True]",
        ),
        (
            lambda: Positives("action", ("buy", 3)),
            ValueError,
            "`positives` must have values of string, the dtype of 'action'. Received: [3]",
        ),
    ],
)
def test_positives_that_no_behaviour_can_have_are_refused(positives: Any, error: Any, message: str) -> None:
    attributes = (ACTION, RATING, Feature("stars"), Feature("tags", "string", max_values=3))
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        Features(item_id=ITEM, behaviour_attributes=attributes, positives=positives())


def test_with_vocabulary_sizes_fills_every_role() -> None:
    features = Features(
        item_id=Feature("item_id"),
        item_attributes=(Feature("category_id"),),
        behaviour_attributes=(Feature("action"),),
        user=(Feature("user_id"),),
        context=(Feature("page"), Feature("hour", "float32"), Feature("device", vocabulary_size=9)),
        hashed=("item_id", "category_id"),
        max_history_length=7,
    )
    sizes = {"item_id": 1, "category_id": 2, "action": 3, "user_id": 4, "page": 5}
    sized = features.with_vocabulary_sizes(sizes)
    assert {feature.name: feature.vocabulary_size for feature in sized.all_features} == {
        **sizes,
        "hour": None,
        "device": 9,
    }
    assert (sized.hashed, sized.max_history_length) == (("item_id", "category_id"), 7)
    assert features.item_id.vocabulary_size is None


def test_from_dict_reads_to_dict_through_json() -> None:
    features = Features(
        item_id=Feature("item_id", "string", embedding_dim=5, vocabulary_size=3, num_oov_indices=2),
        item_attributes=(Feature("category_id"), Feature("price", "float32")),
        behaviour_attributes=(Feature("action"),),
        user=(Feature("user_id"),),
        context=(Feature("page"),),
        hashed=("item_id", "category_id"),
        max_history_length=9,
    )
    assert Features.from_dict(json.loads(json.dumps(features.to_dict()))) == features


def test_features_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ITEM.embedding_dim = 3  # type: ignore[misc]
