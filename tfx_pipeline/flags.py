"""Command-line flags that make a `PipelineConfig`: those of `tfx_pipeline.run` and `tfx_pipeline.compile`."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from tfx_pipeline.config import Evaluation, PipelineConfig, Split, Training
from tfx_pipeline.layouts import CSV, PARQUET, USER_ID, Label, Layout, custom, movielens, taobao

LAYOUTS = ("movielens", "taobao", "custom")
SCHEMAS = Path(__file__).parent / "schemas"
SCHEMA_HISTORY_LENGTH = 512


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that `config_from_flags` reads."""
    where = parser.add_argument_group("where")
    where.add_argument("--data", metavar="DIR", help="directory of the raw log (movielens: fetched if not given)")
    output = "artifacts, metadata, checkpoints and reports (default: build/pipeline)"
    where.add_argument("--output", default="build/pipeline", metavar="DIR", help=output)
    serving_dir = "where versions are pushed (default: build/serving/eta)"
    where.add_argument("--serving_dir", default="build/serving/eta", metavar="DIR", help=serving_dir)
    beam_args = (
        "flags of the Beam runner in one string after '=', e.g. "
        "--beam_args='--direct_running_mode=multi_processing --direct_num_workers=2' (default: one local process)"
    )
    where.add_argument("--beam_args", default="", metavar="ARGS", help=beam_args)

    data = parser.add_argument_group("data")
    schema = "curated schema, text proto; python -m tfx_pipeline.propose_schema makes a draft for a custom layout"
    data.add_argument("--schema", metavar="FILE", help=schema)
    min_history = "interactions with fewer earlier ones of the same user are no impressions (default: 5)"
    data.add_argument("--min_history", type=int, default=5, metavar="N", help=min_history)
    bad = "share of malformed rows above which the run stops (default: 0.01)"
    data.add_argument("--max_bad_share", type=float, default=0.01, metavar="SHARE", help=bad)
    sample = "share of the impressions that statistics are computed of (default: 1)"
    data.add_argument("--statistics_sample_rate", type=float, default=1.0, metavar="SHARE", help=sample)
    data.add_argument(
        "--fractions",
        type=float,
        nargs=3,
        default=Split().fractions,
        metavar=("TRAIN", "VALIDATION", "EVAL"),
        help="temporal split by quantiles (default: 0.8 0.1 0.1)",
    )
    validation_from = "temporal split by dates instead: timestamp of the first validation impression"
    data.add_argument("--validation_from", type=int, metavar="TIME", help=validation_from)
    data.add_argument("--eval_from", type=int, metavar="TIME", help="timestamp of the first eval impression")
    add_layout_flags(parser)

    model = parser.add_argument_group("training and evaluation")
    model.add_argument("--epochs", type=int, default=2, help="default: 2")
    patience = "epochs without a better validation AUC after which training stops (default: 1)"
    model.add_argument("--patience", type=int, default=1, metavar="N", help=patience)
    model.add_argument("--steps", type=int, metavar="N", help="stop training after so many steps")
    model.add_argument("--batch_size", type=int, default=512, help="default: 512")
    model.add_argument("--cold_start", action="store_true", help="do not start from the latest pushed model")
    model.add_argument("--seed", type=int, default=0, help="default: 0")
    evaluation = Evaluation()
    min_auc = f"floor below which no model is blessed (default: {evaluation.min_auc})"
    model.add_argument("--min_auc", type=float, default=evaluation.min_auc, metavar="AUC", help=min_auc)
    drop = f"how far the AUC may lie below the last blessed model's (default: {evaluation.max_auc_drop})"
    model.add_argument("--max_auc_drop", type=float, default=evaluation.max_auc_drop, metavar="AUC", help=drop)
    bulk = "also score the eval part and write the scores as Parquet"
    model.add_argument("--bulk_inference", action="store_true", help=bulk)


def add_layout_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that `layout_from_flags` reads."""
    layout = parser.add_argument_group("layout")
    layout.add_argument(
        "--layout", choices=LAYOUTS, default="movielens", help="how files hold interactions (default: movielens)"
    )
    layout.add_argument(
        "--max_history_length", type=int, default=512, metavar="L", help="behaviours in a history (default: 512)"
    )
    _add_custom_layout_flags(parser.add_argument_group("custom layout", "only with --layout custom"))


def _add_custom_layout_flags(layout: argparse._ActionsContainer) -> None:
    layout.add_argument("--pattern", help="files under --data: 'part-*.parquet', or 'day-{SPAN}/*.csv' for daily drops")
    layout.add_argument("--file_format", choices=(CSV, PARQUET), default=CSV, help=f"default: {CSV}")
    layout.add_argument("--separator", default=",", help="between values of a CSV row (default: ,)")
    layout.add_argument("--encoding", default="utf-8", help="of a CSV file (default: utf-8)")
    header = "names of a CSV file's columns, where its first line is data"
    layout.add_argument("--header", nargs="+", default=[], metavar="NAME", help=header)
    column = "the file's columns that hold user_id, item_id, timestamp or a feature, where the names differ"
    layout.add_argument("--column", nargs="+", default=[], metavar="NAME=COLUMN", help=column)
    item_id = "the item's id (default: item_id, which is item_id:int64)"
    layout.add_argument("--item_id", default="item_id", metavar="NAME:DTYPE", help=item_id)
    for role, default, meaning in (
        ("item_attribute", [], "of an item, e.g. category_id"),
        ("behaviour_attribute", [], "of a behaviour, known after an interaction, e.g. action:string"),
        ("user_feature", [USER_ID], "of a user (default: user_id)"),
        ("context_feature", [], "of an impression, e.g. hour or price:float32"),
    ):
        layout.add_argument(
            f"--{role}", nargs="*", default=default, metavar="NAME:DTYPE", help=f"features {meaning}; int64 if not said"
        )
    layout.add_argument("--label_column", metavar="COLUMN", help="the file's column that tells what is positive")
    layout.add_argument("--label_minimum", type=float, metavar="VALUE", help="values from here on are positive")
    positives = "values that are positive; without this and --label_minimum the column holds 0 and 1"
    layout.add_argument("--label_positives", nargs="+", default=[], metavar="VALUE", help=positives)
    slices = "further columns to slice metrics by"
    layout.add_argument("--slice_column", nargs="+", default=[], metavar="NAME", help=slices)


def config_from_flags(flags: argparse.Namespace) -> PipelineConfig:
    """The configuration that the flags describe.

    Raises:
        ValueError: if a flag is out of its range, is missing, or does not go with the layout.
    """
    if not flags.data:
        raise ValueError("--data is missing: the directory of the raw log.")
    schema = flags.schema or str(SCHEMAS / f"{flags.layout}.pbtxt")
    if flags.layout == "custom" and not flags.schema:
        raise ValueError(
            "--layout custom needs a --schema. `python -m tfx_pipeline.propose_schema --help` says how to get one."
        )
    if not flags.schema and flags.max_history_length > SCHEMA_HISTORY_LENGTH:
        raise ValueError(
            f"The schema of --layout {flags.layout} allows histories of {SCHEMA_HISTORY_LENGTH}. Give a --schema of "
            f"your own for longer ones. Received: --max_history_length {flags.max_history_length}"
        )
    return PipelineConfig(
        data=flags.data,
        layout=layout_from_flags(flags),
        schema=schema,
        output=flags.output,
        serving_dir=flags.serving_dir,
        split=Split(tuple(flags.fractions), flags.validation_from, flags.eval_from),
        min_history=flags.min_history,
        max_bad_share=flags.max_bad_share,
        statistics_sample_rate=flags.statistics_sample_rate,
        training=Training(
            batch_size=flags.batch_size,
            epochs=flags.epochs,
            max_steps=flags.steps,
            patience=flags.patience,
            warm_start=not flags.cold_start,
            seed=flags.seed,
        ),
        evaluation=Evaluation(min_auc=flags.min_auc, max_auc_drop=flags.max_auc_drop),
        bulk_inference=flags.bulk_inference,
        beam_args=tuple(shlex.split(flags.beam_args)),
    )


def layout_from_flags(flags: argparse.Namespace) -> Layout:
    """The layout that the flags describe.

    Raises:
        ValueError: if a custom layout lacks a flag, or another has one.
    """
    parser = argparse.ArgumentParser()
    _add_custom_layout_flags(parser)
    given = [name for name, value in vars(parser.parse_args([])).items() if getattr(flags, name) != value]
    if flags.layout != "custom":
        if given:
            raise ValueError(f"{_flag_names(given)}: only with --layout custom. Received: --layout {flags.layout}")
        return {"movielens": movielens, "taobao": taobao}[flags.layout](flags.max_history_length)
    missing = [name for name in ("pattern", "label_column") if not getattr(flags, name)]
    if missing:
        raise ValueError(f"--layout custom needs {_flag_names(missing)}.")
    wrong = [text for text in flags.column if not all(text.partition("="))]
    if wrong:
        raise ValueError(f"--column must be written NAME=COLUMN. Received: {wrong}")
    return custom(
        flags.pattern,
        Label(flags.label_column, flags.label_minimum, tuple(flags.label_positives)),
        dict(text.split("=", 1) for text in flags.column),
        item_id=flags.item_id,
        item_attributes=flags.item_attribute,
        behaviour_attributes=flags.behaviour_attribute,
        user=flags.user_feature,
        context=flags.context_feature,
        slice_columns=flags.slice_column,
        file_format=flags.file_format,
        separator=flags.separator,
        header=flags.header,
        encoding=flags.encoding,
        max_history_length=flags.max_history_length,
    )


def _flag_names(names: list[str]) -> str:
    return ", ".join(f"--{name}" for name in names)
