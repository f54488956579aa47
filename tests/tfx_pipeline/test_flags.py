"""Command-line flags: what configuration they make, and what they refuse."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from keras_eta import Feature
from keras_eta.interest import MIMN, SDIM, RecentInterest, SIMHard
from tfx_pipeline.config import Evaluation, PipelineConfig, Split, Training
from tfx_pipeline.flags import add_flags, config_from_flags
from tfx_pipeline.layouts import Label, movielens, taobao
from tfx_pipeline.model_config import ETAUnits, Model
from tfx_pipeline.retriever_config import Retriever

CUSTOM = ["--data", "d", "--layout", "custom", "--schema", "s.pbtxt", "--pattern", "*.csv", "--label_column", "clicked"]


def _config(*flags: str) -> PipelineConfig:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return config_from_flags(parser.parse_args(flags))


def test_defaults_are_those_of_the_configuration() -> None:
    config = _config("--data", "d")
    assert config == PipelineConfig(
        data="d",
        layout=movielens(),
        schema=config.schema,
        output="build/pipeline",
        serving_dir="build/serving/eta",
    )
    assert Path(config.schema).name == "movielens.pbtxt"
    assert Path(config.schema).is_file()
    assert Path(_config("--data", "d", "--layout", "taobao").schema).is_file()


def test_flags_reach_the_configuration() -> None:
    config = _config(
        *("--data", "d", "--layout", "taobao", "--max_history_length", "9", "--output", "o", "--serving_dir", "s"),
        *("--schema", "x.pbtxt", "--min_history", "2", "--max_bad_share", ".2", "--statistics_sample_rate", ".5"),
        *("--validation_from", "10", "--eval_from", "20", "--epochs", "3", "--max_steps", "4", "--patience", "2"),
        *(
            "--batch_size",
            "8",
            "--no-warm_start",
            "--seed",
            "6",
            "--calibrate",
            "isotonic",
            "--min_auc",
            ".7",
            "--max_auc_drop",
            ".1",
        ),
        *("--min_auc_lead", "-1", "--max_saturated_share", ".2"),
        *("--retriever_dir", "r", "--item_table", "i.csv", "--item_text", "name", "--item_category", "brand", "tags"),
        *(
            "--codebook_size",
            "16",
            "--retriever_epochs",
            "5",
            "--retriever_results",
            "50",
            "--max_recall_drop",
            ".01",
            "--unseen_share",
            ".2",
        ),
        *("--bulk_inference", "--beam_args=--runner=FlinkRunner '--flink_master=a b'"),
    )
    assert config.layout == taobao(9)
    assert (config.output, config.serving_dir, config.schema) == ("o", "s", "x.pbtxt")
    assert (config.min_history, config.max_bad_share, config.statistics_sample_rate) == (2, 0.2, 0.5)
    assert config.split == Split(validation_from=10, eval_from=20)
    assert config.training == Training(8, 3, 4, 2, warm_start=False, calibrate="isotonic", seed=6)
    assert (config.evaluation.min_auc, config.evaluation.max_auc_drop, config.bulk_inference) == (0.7, 0.1, True)
    assert (config.evaluation.min_auc_lead, config.evaluation.max_saturated_share) == (-1.0, 0.2)
    assert config.retriever == Retriever("r", "i.csv", ("name",), ("brand", "tags"), 16, 5, 50, 0.2, 0.01)
    assert config.beam_args == ("--runner=FlinkRunner", "--flink_master=a b")


def test_custom_layout_is_read_from_flags() -> None:
    layout = _config(
        *CUSTOM,
        *("--column", "user_id=uid", "timestamp=ts", "--item_id", "item_id:string", "--item_attribute", "category_id"),
        *("--behaviour_attribute", "action:string", "--user_feature", "--context_feature", "price:float32"),
        *("--slice_column", "country", "--separator", ";", "--header", "uid", "item_id", "category_id", "action"),
        *("price", "country", "ts", "clicked", "--encoding", "latin-1", "--label_minimum", "3"),
    ).layout
    features = layout.features
    assert features.item_id == Feature("item_id", "string")
    assert [(f.name, f.dtype) for f in features.item_attributes] == [("category_id", "int64")]
    assert [(f.name, f.dtype) for f in features.behaviour_attributes] == [("action", "string")]
    assert features.user == ()
    assert [(f.name, f.dtype) for f in features.context] == [("price", "float32")]
    assert layout.columns == (("user_id", "uid"), ("timestamp", "ts"))
    assert layout.label == Label("clicked", minimum=3.0)
    assert (layout.separator, layout.encoding, layout.slice_columns) == (";", "latin-1", ("country",))
    assert layout.header[-1] == "clicked"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--data is missing: the directory of the raw log."),
        (["--data", "d", "--pattern", "*.csv"], "--pattern: only with --layout custom. Received: --layout movielens"),
        (["--data", "d", "--layout", "custom"], "--layout custom needs a --schema."),
        (["--data", "d", "--layout", "custom", "--schema", "s"], "--layout custom needs --pattern, --label_column."),
        ([*CUSTOM, "--column", "user_id"], "--column must be written NAME=COLUMN. Received: ['user_id']"),
        ([*CUSTOM, "--column", "nothing=x"], "`columns` must map columns of the model"),
        ([*CUSTOM, "--item_attribute", "a:int8"], "A feature must be written `name`, `name:dtype`"),
        ([*CUSTOM, "--label_minimum", "1", "--label_positives", "a"], "Give a label either a `minimum` or `positives`"),
        (["--data", "d", "--max_history_length", "513"], "The schema of --layout movielens allows histories of 512."),
        (["--data", "d", "--epochs", "0"], "`epochs` must be a positive integer. Received: epochs=0"),
        (["--data", "d", "--fractions", "1", "1", "1"], "`fractions` must be three positive numbers"),
    ],
)
def test_bad_flags_are_refused(flags: list[str], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        _config(*flags)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["taobao"], ()),
        (["taobao", "--slice_column", "category_id"], ("category_id",)),
        (["movielens"], ("genre",)),
        (["movielens", "--slice_column"], ()),
    ],
)
def test_metrics_are_sliced_by_what_is_asked_for(flags: list[str], expected: tuple[str, ...]) -> None:
    assert _config("--data", "d", "--layout", *flags).layout.slice_columns == expected


def _json(unit: Any, **changes: Any) -> str:
    return json.dumps({**tf.keras.utils.serialize_keras_object(unit), **changes})


def test_every_field_is_a_flag_with_its_default_in_the_help(capsys: pytest.CaptureFixture) -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    flags = {action.dest: action for action in parser._actions}
    own = {"layout", "split", "model", "training", "evaluation", "retriever"}
    for options in (PipelineConfig, Split, Model, ETAUnits, Training, Evaluation, Retriever):
        for field in dataclasses.fields(options):
            if options is PipelineConfig and field.name in own:
                continue
            action = flags[field.name]
            assert action.default == argparse.SUPPRESS
            if isinstance(field.default, (int, float)) and not isinstance(field.default, bool):
                assert str(action.help).endswith(f" (default: {field.default})")
                assert action.type is type(field.default)
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    printed = capsys.readouterr().out
    assert "--warm_start, --no-warm_start" in printed
    assert "(default: 128 64)" in printed
    assert "(default: build/serving/eta)" in printed
    assert "object at" not in printed


def test_no_distances_are_no_counts() -> None:
    (*_, text) = _config("--data", "d", "--distance_edges").model.interests
    assert json.loads(text)["config"]["distance_edges"] == []


def test_flags_of_the_ranker_reach_the_configuration() -> None:
    flags = ["--top_k", "8", "--num_bits", "32", "--no-trainable_planes", "--no-similarity_bias", "--num_heads", "1"]
    flags += ["--short_history_length", "4", "--key_dim", "6", "--seed", "5", "--cosine", "--distance_edges", "0", "3"]
    mlp = ["--hidden_units", "16", "8", "--cross_layers", "1", "--activation", "gelu"]
    mlp += [
        "--id_dropout",
        ".2",
        "--retrieval_weight",
        ".5",
        "--retrieval_temperature",
        ".2",
        "--retrieval_recent",
        "7",
    ]
    rates = ["--embedding_learning_rate", ".2", "--dense_learning_rate", ".01", "--longest_bucket", "50-199"]
    config = _config("--data", "d", *flags, *mlp, *rates)
    recent, _, eta = (json.loads(text) for text in config.model.interests)
    assert recent["registered_name"] == "keras_eta>RecentInterest"
    assert (recent["config"]["length"], recent["config"]["num_heads"], recent["config"]["key_dim"]) == (4, 1, 6)
    found = {name: eta["config"][name] for name in ("top_k", "num_bits", "trainable_planes", "similarity_bias", "seed")}
    assert found == {"top_k": 8, "num_bits": 32, "trainable_planes": False, "similarity_bias": False, "seed": 5}
    assert (recent["config"]["cosine"], eta["config"]["cosine"]) == (True, True)
    assert eta["config"]["distance_edges"] == [0, 3]
    assert (config.model.hidden_units, config.model.cross_layers, config.model.activation) == ((16, 8), 1, "gelu")
    retrieval = config.model.retrieval_weight, config.model.retrieval_temperature, config.model.retrieval_recent
    assert retrieval == (0.5, 0.2, 7)
    assert config.model.id_dropout == 0.2
    assert (config.training.embedding_learning_rate, config.training.dense_learning_rate) == (0.2, 0.01)
    assert config.evaluation == Evaluation(longest_bucket="50-199")
    without = _config("--data", "d", "--no-matches", "--short_history_length", "0").model.interests
    assert [json.loads(text)["class_name"] for text in without] == ["ETAInterest"]


def test_interest_units_come_as_json_or_in_files(tmp_path: Path) -> None:
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    one.write_text(_json(MIMN()))
    two.write_text(f"[{_json(RecentInterest(7))}, {_json(SIMHard(3, category='category_id'))}]")
    taobao = ["--data", "d", "--layout", "taobao"]
    config = _config(*taobao, "--interest", _json(SDIM(seed=9)), f"@{one}", "--interest", f"@{two}")
    assert config.model == Model((SDIM(seed=9), MIMN(), RecentInterest(7), SIMHard(3, category="category_id")))


def test_unit_of_ones_own_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
        import tensorflow as tf
        from keras_eta.interest import Interest, InterestUnit

        @tf.keras.utils.register_keras_serializable(package="flags_test")
        class Genres(InterestUnit):
            def call(self, candidate, history, training=False, jit_compile=False):
                return Interest(candidate.by_name["colour"])
    """
    (tmp_path / "units_of_flags_test.py").write_text(re.sub("^        ", "", code, flags=re.MULTILINE))
    monkeypatch.syspath_prepend(tmp_path)
    unit = {"module": "units_of_flags_test", "class_name": "Genres", "registered_name": "flags_test>Genres"}
    text = _json(SDIM(), **unit, config={"name": "genres"})
    with pytest.raises(ValueError, match=r"The ranker can't be built: KeyError: .*colour"):
        _config("--data", "d", "--interest", text)
    assert "units_of_flags_test" in sys.modules


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["sdim"], "`interests` must hold JSON objects. Received: 'sdim', which is no JSON"),
        (["@nowhere.json"], "--interest @nowhere.json is no file of JSON: [Errno 2] No such file"),
        (
            [_json(SDIM(), module="nowhere", registered_name="mine>Other", class_name="Other")],
            "Interest unit 'Other' can't be made of its JSON. A class of one's own must be registered by "
            "`tf.keras.utils.register_keras_serializable` in a `module` that can be imported. Could not deserialize "
            "class 'Other' because its parent module nowhere cannot be imported.",
        ),
        (
            [_json(SDIM(), config={"num_hashes": 0})],
            "Interest unit 'SDIM' can't be made of its JSON.",
        ),
        ([_json(tf.keras.layers.Dense(3))], "`interests` must hold interest units. Received: Dense, {"),
        (
            [_json(SIMHard(category="colour"))],
            "Interest unit 'sim_hard' needs a `category` among the item attributes that are ids with one value, []. "
            "Received: category='colour'",
        ),
        ([_json(SDIM()), _json(SDIM())], "Every interest unit must have a `name` of its own. Used twice: ['sdim']"),
        (
            [_json(SDIM()), "--top_k", "48", "--no-similarity_bias"],
            "--top_k, --similarity_bias: only without --interest, whose JSON holds the arguments of its units.",
        ),
    ],
)
def test_bad_units_are_refused(flags: list[str], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        _config("--data", "d", "--interest", *flags)


def test_unknown_activation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Unknown activation function.*nope"):
        _config("--data", "d", "--activation", "nope")
