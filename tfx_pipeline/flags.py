"""Command-line flags that make a `PipelineConfig`: those of `tfx_pipeline.run` and `tfx_pipeline.compile`.

Flags that are not given are not in the namespace, so that every default stands in the configuration alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tfx_pipeline.config import Evaluation, PipelineConfig, Split, Training
from tfx_pipeline.layout_flags import CUSTOM, add_flag, add_layout_flags, flag_names, layout_from_flags
from tfx_pipeline.model_config import ETAUnits, Model
from tfx_pipeline.retriever_config import Retriever

SCHEMAS = Path(__file__).parent / "schemas"
SCHEMA_HISTORY_LENGTH = 512


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that `config_from_flags` reads."""
    pipeline = parser.add_argument_group("pipeline")
    add_options(pipeline, PipelineConfig)
    add_options(pipeline, Split)
    add_layout_flags(parser)
    add_options(parser.add_argument_group("ranker"), Model)
    add_options(parser.add_argument_group("ETA, the ranker without --interest"), ETAUnits)
    add_options(parser.add_argument_group("training"), Training)
    add_options(parser.add_argument_group("evaluation"), Evaluation)
    add_options(parser.add_argument_group("retriever", "beside the ranker, with --retriever_dir"), Retriever)


def config_from_flags(flags: argparse.Namespace) -> PipelineConfig:
    """The configuration that the flags describe.

    Raises:
        ValueError: if a flag is out of its range, is missing, or does not go with the layout or another flag, or there
            is no such ranker.
    """
    # TensorFlow, which takes seconds: not for --help.
    from tfx_pipeline.ranker import check_ranker

    config = unbuilt_config_from_flags(flags)
    check_ranker(config.model, config.layout.features)
    return config


def unbuilt_config_from_flags(flags: argparse.Namespace) -> PipelineConfig:
    """As `config_from_flags`, which also builds the ranker, to see that there is one."""
    if "data" not in flags:
        raise ValueError("--data is missing: the directory of the raw log.")
    given = given_options(flags, PipelineConfig)
    if flags.layout == CUSTOM and "schema" not in given:
        raise ValueError(
            "--layout custom needs a --schema. `python -m tfx_pipeline.propose_schema --help` says how to get one."
        )
    layout = layout_from_flags(flags)
    if "schema" not in given:
        if layout.features.max_history_length > SCHEMA_HISTORY_LENGTH:
            raise ValueError(
                f"The schema of --layout {flags.layout} allows histories of {SCHEMA_HISTORY_LENGTH}. Give a --schema "
                f"of your own for longer ones. Received: --max_history_length {flags.max_history_length}"
            )
        given["schema"] = str(SCHEMAS / f"{flags.layout}.pbtxt")
    training = Training(**given_options(flags, Training))
    return PipelineConfig(
        layout=layout,
        split=Split(**given_options(flags, Split)),
        model=_model(flags, training.seed),
        training=training,
        evaluation=Evaluation(**given_options(flags, Evaluation)),
        retriever=Retriever(**given_options(flags, Retriever)),
        **given,
    )


def _model(flags: argparse.Namespace, seed: int) -> Model:
    """The ranker: of `--interest`, or ETA's units as its flags say."""
    given, of_eta = given_options(flags, Model), given_options(flags, ETAUnits)
    if "interests" not in given:
        return Model(**{**given, "interests": ETAUnits(**of_eta).make(seed)})
    if of_eta:
        raise ValueError(
            f"{flag_names(list(of_eta))}: only without --interest, whose JSON holds the arguments of its units."
        )
    units = [unit for value in given["interests"] for unit in _units(value)]
    return Model(**{**given, "interests": units})


def _units(value: str) -> list[Any]:
    """The units of a value of `--interest`: JSON, or the JSON of a file, which may be a list."""
    if not value.startswith("@"):
        return [value]
    try:
        content = json.loads(Path(value[1:]).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"--interest {value} is no file of JSON: {error}") from error
    return content if isinstance(content, list) else [content]


def given_options(flags: argparse.Namespace, options: type) -> dict[str, Any]:
    """The fields of a dataclass that flags were given for."""
    return {field.name: getattr(flags, field.name) for field in options_of(options) if field.name in flags}


def options_of(options: type) -> list[dataclasses.Field]:
    """The fields of a dataclass that are flags."""
    return [field for field in dataclasses.fields(options) if "meaning" in field.metadata]


def add_options(group: argparse._ArgumentGroup, options: type, only: Collection[str] | None = None) -> None:
    """Adds a flag for each of `options_of` a dataclass, or for some of these fields alone."""
    for field in options_of(options):
        if only is not None and field.name not in only:
            continue
        argument = {"dest": field.name, "help": field.metadata["meaning"], **field.metadata["argument"]}
        add_flag(group, argument.pop("flag", field.name), field.default, argument)
