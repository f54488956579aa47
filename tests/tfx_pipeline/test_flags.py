"""Command-line flags: what configuration they make, and what they refuse."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from keras_eta import Feature
from tfx_pipeline.config import PipelineConfig, Split, Training
from tfx_pipeline.flags import add_flags, config_from_flags
from tfx_pipeline.layouts import Label, movielens, taobao

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
        *("--validation_from", "10", "--eval_from", "20", "--epochs", "3", "--steps", "4", "--patience", "2"),
        *("--batch_size", "8", "--cold_start", "--seed", "6", "--min_auc", ".7", "--max_auc_drop", ".1"),
        *("--bulk_inference", "--beam_args=--runner=FlinkRunner '--flink_master=a b'"),
    )
    assert config.layout == taobao(9)
    assert (config.output, config.serving_dir, config.schema) == ("o", "s", "x.pbtxt")
    assert (config.min_history, config.max_bad_share, config.statistics_sample_rate) == (2, 0.2, 0.5)
    assert config.split == Split(validation_from=10, eval_from=20)
    assert config.training == Training(8, 3, 4, 2, warm_start=False, seed=6)
    assert (config.evaluation.min_auc, config.evaluation.max_auc_drop, config.bulk_inference) == (0.7, 0.1, True)
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
        ([*CUSTOM, "--item_attribute", "a:int8"], "A feature must be written `name` or `name:dtype`"),
        ([*CUSTOM, "--label_minimum", "1", "--label_positives", "a"], "Give a label either a `minimum` or `positives`"),
        (["--data", "d", "--max_history_length", "513"], "The schema of --layout movielens allows histories of 512."),
        (["--data", "d", "--epochs", "0"], "`epochs` must be a positive integer. Received: epochs=0"),
        (["--data", "d", "--fractions", "1", "1", "1"], "`fractions` must be three positive numbers"),
    ],
)
def test_bad_flags_are_refused(flags: list[str], message: str) -> None:
    with pytest.raises(ValueError, match="^" + "".join(f"\\{c}" if c in "[]()*.$^+?|" else c for c in message)):
        _config(*flags)
