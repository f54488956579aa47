"""What `--search` means."""

from __future__ import annotations

import argparse
import re
from typing import Any

import pytest

from tfx_pipeline.flags import add_flags
from tfx_pipeline.tuning.space import Dimension, as_text, flags_of, space


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return parser.parse_args(words)


def test_choices_and_ranges_become_flags_of_a_run() -> None:
    texts = ["top_k=8, 16", "hidden_units=64,128  64", "cosine=yes,no", "activation=relu,gelu", "batch_size=64..512"]
    top_k, hidden_units, cosine, activation, batch_size, rate = dimensions = space(
        [*texts, "dense_learning_rate=1e-4..1e-2"], of_eta=True
    )
    assert (top_k.choices, hidden_units.choices, cosine.choices) == (("8", "16"), ("64", "128 64"), ("yes", "no"))
    assert (activation.choices, activation.limits) == (("relu", "gelu"), ())
    assert (batch_size.limits, batch_size.choices, batch_size.logarithmic) == ((64, 512), (), False)
    assert (rate.limits, rate.logarithmic) == ((1e-4, 1e-2), True)
    assert not space(["id_dropout=0..0.1"], of_eta=False)[0].logarithmic
    values: dict[str, Any] = {
        "top_k": "16",
        "hidden_units": "128 64",
        "cosine": "no",
        "activation": "gelu",
        "batch_size": 100,
    }
    flags = flags_of(dimensions, {**values, "dense_learning_rate": 0.00123456789})
    of_model = "--top_k 16 --hidden_units 128 64 --no-cosine --activation gelu"
    assert " ".join(flags) == f"{of_model} --batch_size 100 --dense_learning_rate 0.00123457"
    assert cosine.flags("yes") == ["--cosine"]
    namespace = parsed(*flags)
    assert (namespace.top_k, namespace.hidden_units, namespace.cosine) == (16, [128, 64], False)
    assert (top_k.examples, batch_size.examples) == (("8", "16"), (64, 512))


def test_given_values_are_those_of_the_flags_or_the_defaults() -> None:
    hidden_units, cosine, rate, dropout = space(
        ["hidden_units=8,16", "cosine=yes,no", "dense_learning_rate=1e-4..1e-2", "id_dropout=0,.010"], of_eta=True
    )
    assert dropout.choices == ("0", "0.01")
    flags = parsed("--hidden_units", "32", "16", "--dense_learning_rate", ".02")
    assert [x.given(flags) for x in (hidden_units, cosine, rate, dropout)] == ["32 16", "yes", 0.02, "0.01"]
    assert hidden_units.given(parsed()) == "128 64"


@pytest.mark.parametrize("of_eta", [True, False])
def test_default_search_leaves_out_what_another_ranker_lacks(of_eta: bool) -> None:
    names = [dimension.name for dimension in space([], of_eta)]
    of_any = ["embedding_learning_rate", "dense_learning_rate", "id_dropout", "hidden_units"]
    assert names == of_any + ["top_k", "num_bits", "short_history_length"] * of_eta
    flags = parsed()
    # What is searched holds what the flags have without it.
    for dimension in space([], of_eta):
        given = dimension.given(flags)
        if dimension.choices:
            assert given in dimension.choices
        else:
            assert dimension.limits[0] < given < dimension.limits[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("min_auc=0.1,0.2", "--search can't vary 'min_auc'; it can: activation, batch_size, cosine, cross_layers, "),
        ("seed=1,2", "--search can't vary 'seed'"),
        ("key_dim=8,16", "--search can't vary 'key_dim'"),
        ("top_k", "Received: 'top_k': invalid literal for int() with base 10: ''"),
        ("hidden_units=8,", "Received: 'hidden_units=8,': values must be there, and differ"),
        ("top_k=8,08", "--search takes NAME=VALUE,VALUE or, of a number, NAME=LOWEST..HIGHEST"),
        ("top_k=8,08", "Received: 'top_k=8,08': values must be there, and differ"),
        ("cosine=1,0", "Received: 'cosine=1,0': cosine takes yes,no"),
        ("activation=a..b", "Received: 'activation=a..b': activation is no number"),
        ("cosine=0..1", "cosine is no number"),
        ("top_k=8..1.5", "Received: 'top_k=8..1.5': invalid literal for int()"),
        ("top_k=8..8", "Received: 'top_k=8..8': the lowest must lie below the highest"),
        ("id_dropout=0..inf", "Received: 'id_dropout=0..inf': the lowest must lie below the highest"),
    ],
)
def test_what_cannot_be_searched_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        space([text], of_eta=True)


def test_a_flag_is_searched_once_and_only_of_its_ranker() -> None:
    with pytest.raises(ValueError, match=r"--search must name a flag once\. Received: top_k top_k"):
        space(["top_k=1,2", "top_k=3,4"], of_eta=True)
    with pytest.raises(ValueError, match="--search can't vary 'top_k'"):
        space(["top_k=1,2"], of_eta=False)


def test_values_as_text() -> None:
    assert [as_text(x) for x in (True, False, 0.1, 3, (128, 64), "relu")] == ["yes", "no", "0.1", "3", "128 64", "relu"]
    assert Dimension("cosine", True, ("yes", "no")).flags("no") == ["--no-cosine"]
