"""Command-line flags that make a `Layout`."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
from typing import Any, get_args

from keras_eta.datasets.negative_draws import Period, Weighting
from keras_eta.time_units import UNIT_STARTS
from tfx_pipeline.custom_layout import custom
from tfx_pipeline.layouts import CSV, PARQUET, Label, Layout, movielens, taobao

READY_MADE = {"movielens": movielens, "taobao": taobao}
CUSTOM = "custom"

# The flags of a custom layout, by the argument of `custom` that each gives.
_LAYOUT_FLAGS: dict[str, tuple[str, dict[str, Any]]] = {
    "pattern": ("pattern", {"help": "files under --data: 'part-*.parquet', or 'day-{SPAN}/*.csv' for daily drops"}),
    "file_format": ("file_format", {"choices": (CSV, PARQUET), "help": "of the files"}),
    "separator": ("separator", {"help": "between values of a CSV row"}),
    "encoding": ("encoding", {"help": "of a CSV file"}),
    "header": (
        "header",
        {"nargs": "+", "metavar": "NAME", "help": "names of a CSV file's columns, where its first line is data"},
    ),
    "columns": (
        "column",
        {
            "nargs": "+",
            "metavar": "NAME=COLUMN",
            "help": "the file's columns that hold user_id, item_id, timestamp or a feature, where the names differ",
        },
    ),
    "item_id": ("item_id", {"metavar": "NAME:DTYPE", "help": "the item's id; int64 if not said"}),
    **{
        argument: (
            flag,
            {"nargs": "*", "metavar": "NAME:DTYPE", "help": f"features {meaning}; int64 if not said"},
        )
        for argument, flag, meaning in (
            ("item_attributes", "item_attribute", "of an item, e.g. category_id"),
            (
                "behaviour_attributes",
                "behaviour_attribute",
                "of a behaviour, known after an interaction, e.g. action:string",
            ),
            ("user", "user_feature", "of a user"),
            ("context", "context_feature", "of an impression, e.g. hour or price:float32"),
        )
    },
    "user_dtype": ("user_dtype", {"choices": ("int64", "string"), "help": "of the user's id, unless it is a feature"}),
    "positives": (
        "positives",
        {
            "metavar": "ATTRIBUTE:VALUE,VALUE",
            "help": "which behaviours speak for their item, e.g. action:buy or rating>=4, for the retrieval task; all "
            "if not said",
        },
    ),
    "age_boundaries": (
        "age_boundaries",
        {
            "nargs": "*",
            "type": int,
            "metavar": "AGE",
            "help": "between the buckets of a behaviour's age, in the log's units; none: ages are not read",
        },
    ),
    "calendar": (
        "calendar",
        {"choices": tuple(UNIT_STARTS), "help": "unit of the timestamps: the model reads their hour and weekday"},
    ),
    "utc_offset": (
        "utc_offset",
        {
            "type": float,
            "metavar": "HOURS",
            "help": "with it: by how much local time is ahead of UTC (default: 0)",
        },
    ),
    "first_timestamp": (
        "first_timestamp",
        {"type": int, "metavar": "TIME", "help": "rows before it are malformed, in the log's units"},
    ),
    "end_timestamp": (
        "end_timestamp",
        {"type": int, "metavar": "TIME", "help": "rows from it on are malformed, in the log's units"},
    ),
    "history": (
        "history",
        {
            "metavar": "COLUMN:VALUE,VALUE",
            "help": "which interactions are behaviours, e.g. action:view,buy; all if not said",
        },
    ),
    "sequences": (
        "sequence",
        {
            "nargs": "+",
            "metavar": "NAME=COLUMN:VALUE,VALUE",
            "help": "further sequences of behaviours, e.g. purchases=action:buy",
        },
    ),
    "sequence_attributes": (
        "sequence_attribute",
        {
            "nargs": "+",
            "metavar": "NAME=NAME:DTYPE",
            "help": "features of their behaviours, e.g. purchases=price:float32",
        },
    ),
    "list_separator": (
        "list_separator",
        {"help": "between the values of a feature of several (genres:string[6])"},
    ),
    "clusters": (
        "clusters",
        {
            "metavar": "FILE",
            "help": "adds the sequence 'clusters' of clustered behaviours, for TWINV2, made of the vectors of items in "
            "this file of keras_eta.datasets.save_item_vectors",
        },
    ),
    "snapshot_period": (
        "snapshot_period",
        {"type": int, "metavar": "TIME", "help": "between two clusterings, in the log's units, e.g. 1209600 seconds"},
    ),
    "group_by": (
        "group_by",
        {"metavar": "NAME", "help": "feature of numbers whose quantiles clusters keep apart; one group if not said"},
    ),
    "negatives": (
        "negatives",
        {"type": int, "metavar": "N", "help": "negatives sampled per positive, for a log that holds positives only"},
    ),
    "negatives_same": (
        "negatives_same",
        {"nargs": "+", "metavar": "NAME", "help": "columns in which they agree with the positive, e.g. category_id"},
    ),
    "negatives_by": (
        "negatives_by",
        {"choices": get_args(Weighting), "help": "whether they are drawn alike or by their rows in the log"},
    ),
    "negatives_from": (
        "negatives_from",
        {"choices": get_args(Period), "help": "whether they are items seen before the positive, or of all rows"},
    ),
    "min_count": (
        "min_count",
        {
            "type": int,
            "metavar": "N",
            "help": "times that the training split must hold an id; rarer ones count as unknown",
        },
    ),
    **{
        f"join_{whose}": (
            f"join_{whose}",
            {
                "nargs": "+",
                "metavar": ("FILE", "COLUMN"),
                "help": f"CSV file of {whose} under --data with a header, and its columns that are read as if they "
                "stood in the log, by the id; requests to the export lack what is joined",
            },
        )
        for whose in ("items", "users")
    },
}
_LABEL_FLAGS: dict[str, dict[str, Any]] = {
    "label_column": {
        "metavar": "COLUMN",
        "help": "the file's column that tells what is positive; with --negatives, all if not said",
    },
    "label_minimum": {"type": float, "metavar": "VALUE", "help": "values from here on are positive"},
    "label_positives": {
        "nargs": "+",
        "metavar": "VALUE",
        "help": "values that are positive; without this and --label_minimum the column holds 0 and 1",
    },
}


def add_layout_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that `layout_from_flags` reads."""
    layout = parser.add_argument_group("layout")
    how = "how files hold interactions (default: movielens)"
    layout.add_argument("--layout", choices=(*READY_MADE, CUSTOM), default="movielens", help=how)
    parameters = inspect.signature(custom).parameters
    length = {"type": int, "metavar": "L", "help": "behaviours in a history"}
    add_flag(layout, "max_history_length", parameters["max_history_length"].default, length)
    slices = "columns to slice metrics by, e.g. category_id (default: genre for movielens, else none)"
    layout.add_argument("--slice_column", nargs="*", metavar="NAME", default=argparse.SUPPRESS, help=slices)
    own = parser.add_argument_group("custom layout", "only with --layout custom")
    for argument, (flag, options) in _LAYOUT_FLAGS.items():
        add_flag(own, flag, parameters[argument].default, options)
    for flag, options in _LABEL_FLAGS.items():
        add_flag(own, flag, None, options)


def layout_from_flags(flags: argparse.Namespace) -> Layout:
    """The layout that the flags describe.

    Raises:
        ValueError: if a custom layout lacks a flag, or another has one.
    """
    given = {argument: getattr(flags, flag) for argument, (flag, _) in _LAYOUT_FLAGS.items() if flag in flags}
    label = {flag.removeprefix("label_"): getattr(flags, flag) for flag in _LABEL_FLAGS if flag in flags}
    length = {"max_history_length": flags.max_history_length} if "max_history_length" in flags else {}
    slices: dict[str, Any] = {"slice_columns": tuple(flags.slice_column)} if "slice_column" in flags else {}
    if flags.layout != CUSTOM:
        names = [*(_LAYOUT_FLAGS[argument][0] for argument in given), *(f"label_{name}" for name in label)]
        if names:
            raise ValueError(f"{flag_names(names)}: only with --layout custom. Received: --layout {flags.layout}")
        return dataclasses.replace(READY_MADE[flags.layout](**length), **slices)
    required = ("pattern",) if given.get("negatives") else ("pattern", "label_column")
    missing = [name for name in required if name not in flags]
    if missing:
        raise ValueError(f"--layout custom needs {flag_names(missing)}.")
    columns = given.pop("columns", ())
    wrong = [text for text in columns if not all(text.partition("="))]
    if wrong:
        raise ValueError(f"--column must be written NAME=COLUMN. Received: {wrong}")
    return custom(
        label=Label(**{"column": None, **label}),
        columns=dict(text.split("=", 1) for text in columns),
        **given,
        **length,
        **slices,
    )


def add_flag(group: argparse._ArgumentGroup, flag: str, default: Any, argument: dict[str, Any]) -> None:
    """Adds a flag of the type of its default, which the help tells of.

    Args:
        group: of flags, of a parser.
        flag: its name, without dashes.
        default: that of the configuration; the flag itself has none.
        argument: of `add_argument`.
    """
    shown = default
    if isinstance(default, bool):
        argument = {"action": argparse.BooleanOptionalAction, **argument}
        shown = "yes" if default else "no"
    elif isinstance(default, tuple):
        kind = {"type": type(default[0]), "nargs": "+"} if default else {}
        argument = {**kind, **argument}
        shown = " ".join(map(str, default))
    elif isinstance(default, (int, float)):
        argument = {"type": type(default), **argument}
    elif not isinstance(default, str):
        # There is none: the field is optional, or must be given.
        shown = ""
    if shown != "":
        argument = {**argument, "help": f"{argument['help']} (default: {shown})"}
    group.add_argument(f"--{flag}", default=argparse.SUPPRESS, **argument)


def flag_names(names: list[str]) -> str:
    """The flags as they are written."""
    return ", ".join(f"--{name}" for name in names)
