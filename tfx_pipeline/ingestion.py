"""From a directory of raw logs to an artifact of impressions: the first component of the pipeline."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet
import tensorflow as tf
from absl import logging
from apache_beam.io.filesystems import FileSystems
from google.protobuf import struct_pb2
from tfx import v1 as tfx
from tfx.components.example_gen.component import FileBasedExampleGen
from tfx.components.example_gen.driver import FileBasedDriver
from tfx.components.example_gen.utils import (
    FINGERPRINT_PROPERTY_NAME,
    SPAN_PROPERTY_NAME,
    VERSION_PROPERTY_NAME,
)
from tfx.components.util import examples_utils
from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor
from tfx.dsl.components.base.executor_spec import BeamExecutorSpec
from tfx.dsl.io import fileio
from tfx.types import artifact_utils
from tfx.types.standard_component_specs import CUSTOM_CONFIG_KEY, EXAMPLES_KEY
from tfx.utils import proto_utils

from keras_eta.features import TIMESTAMP
from tfx_pipeline import impressions, interactions
from tfx_pipeline.config import EVAL, SPLITS, TRAIN, Evaluation, Model, PipelineConfig, Training
from tfx_pipeline.layouts import PARQUET, Layout
from tfx_pipeline.quantiles import ExactQuantiles

REPORT_FILE = "report.json"

# What TFX's own example generators call their files.
_FILE_PREFIX = "data_tfrecord"
_FILE_SUFFIX = ".gz"
_FILE_FORMAT = "tfrecords_gzip"
_NUM_EXAMPLES = 3
_NUM_LISTED = 10


def impression_gen(config: PipelineConfig) -> FileBasedExampleGen:
    """The component that reads `config.data` after `config.layout` and publishes impressions.

    Its output `examples` is an `Examples` artifact with the splits train, validation and eval: gzipped TFRecords of
    tf.Examples. They stand in random order, but in blocks of up to 32 successive impressions of one user, whose
    histories overlap: so they are many times smaller on disk. A shuffle buffer of some thousands of impressions parts
    them. All columns but the histories have one value:

    | column | type |
    |---|---|
    | `user_id` | as the feature; bytes if it is none |
    | user, context and item features | as the feature: int64, bytes or float |
    | slice columns, `history_bucket` | bytes |
    | `timestamp`, `label` | int64 |
    | `history_<name>` of the item and behaviour features, `history_timestamp` | at most L, most recent first |

    A history holds the user's behaviours strictly before the impression; behaviours of the same moment are in the
    descending order of their values, so the output does not depend on the runner. `report.json` lies beside the splits.
    Malformed rows go to `config.dead_letter_dir`.

    A pattern with a `{SPAN}` (or `{YYYY}`, `{MM}`, `{DD}`) reads the newest span and all before it. The component runs
    again when a file of the log, of any span, or the item table has changed, and when an argument that it reads has.

    Args:
        config: of the pipeline.
    """
    # The executor sees what it reads and no more: else a change to the training would make it run again.
    read = dataclasses.replace(
        config,
        schema="",
        serving_dir="",
        statistics_sample_rate=1.0,
        model=Model(),
        training=Training(),
        evaluation=Evaluation(),
        bulk_inference=False,
        beam_args=(),
    )
    parameters = struct_pb2.Struct()
    parameters["config"] = read.to_json()
    custom_config = tfx.proto.CustomConfig()
    custom_config.custom_config.Pack(parameters)
    return ImpressionGen(
        input_base=config.data,
        input_config=tfx.proto.Input(splits=[tfx.proto.Input.Split(name="log", pattern=config.layout.pattern)]),
        # The number of buckets is required and not read: the split is by time.
        output_config=tfx.proto.Output(
            split_config=tfx.proto.SplitConfig(
                splits=[tfx.proto.SplitConfig.Split(name=name, hash_buckets=1) for name in SPLITS]
            )
        ),
        custom_config=custom_config,
    )


def check_data(config: PipelineConfig) -> None:
    """Refuse, before any work is done, a log that can't be read. Only headers are looked at.

    Args:
        config: of the pipeline.

    Raises:
        FileNotFoundError: if the directory, the log's files or the item table are missing.
        ValueError: if a file lacks a column that the layout reads or holds it in a type that can't be read, or if the
            log is empty.
    """
    layout = config.layout
    if not fileio.isdir(config.data):
        raise FileNotFoundError(f"`data` must be the directory of the raw log. There is no directory {config.data!r}")
    files = interactions.log_files(config.data, layout)
    if not files:
        raise FileNotFoundError(
            f"No file in {config.data} matches the layout's pattern {layout.pattern!r}. "
            f"Present: {_listed([str(name) for name in fileio.listdir(config.data)])}"
        )
    if layout.items is not None:
        path = os.path.join(config.data, layout.items.file)
        if not fileio.exists(path):
            raise FileNotFoundError(f"The layout's table of items is missing: {path}")
    check = _check_parquet if layout.file_format == PARQUET else _check_csv
    if not any([check(path, layout) for path in files]):
        raise ValueError(f"The log is empty: {_listed(files)} have no rows.")


class _Driver(FileBasedDriver):
    """Resolves the newest span and takes the fingerprint of all files that are read.

    TFX's own takes that of the newest span, and finds no file in a folder whose name has brackets.
    """

    def resolve_exec_properties(
        self, exec_properties: dict[str, Any], pipeline_info: Any, component_info: Any
    ) -> dict[str, Any]:
        config = _config(exec_properties)
        spans = interactions.log_spans(config.data, config.layout)
        paths = sorted(spans)
        if config.layout.items is not None:
            paths.append(os.path.join(config.data, config.layout.items.file))
        prints = [f"{os.path.relpath(path, config.data)} {_size_and_time(path)}" for path in paths]
        exec_properties[SPAN_PROPERTY_NAME] = max(spans.values(), default=0)
        exec_properties[VERSION_PROPERTY_NAME] = None
        exec_properties[FINGERPRINT_PROPERTY_NAME] = hashlib.sha256("\n".join(prints).encode()).hexdigest()
        return exec_properties


class Executor(BaseBeamExecutor):
    """Runs the Beam pipeline and judges its report."""

    def Do(  # noqa: N802
        self, input_dict: Mapping[str, Any], output_dict: Mapping[str, Any], exec_properties: Mapping[str, Any]
    ) -> None:
        """Writes the impressions, `report.json` and the malformed rows.

        Raises:
            FileNotFoundError: as `check_data`.
            RuntimeError: if more than `config.max_bad_share` of the rows are malformed.
            ValueError: as `check_data`; if there are fewer than two users, a split has no impressions, train or eval
                have labels of one class only, or a column of strings spells its ids in two ways, as "1" and "1.0".
        """
        config = _config(exec_properties)
        check_data(config)
        artifact = artifact_utils.get_single_instance(output_dict[EXAMPLES_KEY])
        artifact.split_names = artifact_utils.encode_split_names(list(SPLITS))
        files = interactions.log_files(config.data, config.layout, exec_properties.get(SPAN_PROPERTY_NAME))
        run = self._context.pipeline_run_id if self._context else None
        dead_letters = os.path.join(config.dead_letter_dir, run or os.path.basename(artifact.uri))
        report_path = os.path.join(artifact.uri, REPORT_FILE)
        logging.info("Reading %d files: %s", len(files), _listed(files))

        with self._make_beam_pipeline() as pipeline:
            outputs = pipeline | GenerateImpressions(config, files)
            for split in SPLITS:
                directory = artifact_utils.get_split_uri([artifact], split)
                outputs[split] | f"Write[{split}]" >> _WriteShuffled(directory)
            outputs[interactions.MALFORMED] | "WriteMalformed" >> beam.io.WriteToText(
                os.path.join(dead_letters, "rows"), file_name_suffix=".jsonl", skip_if_empty=True
            )
            outputs[interactions.COUNTS] | "WriteReport" >> beam.io.WriteToText(report_path, shard_name_template="")

        with fileio.open(report_path) as file:
            raw = json.loads(file.read())
        report = _report(raw, len(files), _num_bytes(artifact), dead_letters)
        text = json.dumps(report, indent=2)
        if report["malformed"]:
            with fileio.open(os.path.join(dead_letters, REPORT_FILE), "w") as file:
                file.write(text)
        logging.info("Ingestion: %s", text)
        _check_spellings(raw["counts"])
        _check_report(report, raw["examples"], config)
        with fileio.open(report_path, "w") as file:
            file.write(text)
        examples_utils.set_payload_format(artifact, tfx.proto.PayloadFormat.FORMAT_TF_EXAMPLE)
        examples_utils.set_file_format(artifact, _FILE_FORMAT)


class ImpressionGen(FileBasedExampleGen):
    """An example generator of impressions. `impression_gen` makes it."""

    EXECUTOR_SPEC = BeamExecutorSpec(Executor)
    DRIVER_CLASS = _Driver


class GenerateImpressions(beam.PTransform):
    """Pipeline -> a dict: under each split's name blocks of tf.Examples, under `MALFORMED` JSON lines, and under
    `COUNTS` one JSON object: sums, cuts, and examples of malformed rows.

    Args:
        config: of the pipeline.
        files: those to read.
    """  # noqa: D205

    def __init__(self, config: PipelineConfig, files: Sequence[str]) -> None:
        super().__init__()
        self._config = config
        self._files = tuple(files)

    def expand(self, pipeline: Any) -> dict[str, Any]:
        config = self._config
        rows = pipeline | "Read" >> interactions.ReadInteractions(config.layout, config.data, self._files)
        logs = (
            rows["interactions"]
            | "GroupByUser" >> beam.GroupByKey()
            | "Sort"
            >> beam.ParDo(impressions.SortUserLog(config.layout, self._files)).with_outputs(
                impressions.ITEMS, interactions.MALFORMED, interactions.COUNTS, main="logs"
            )
        )
        cuts = self._cuts(pipeline, logs["logs"])
        examples = logs["logs"] | "MakeExamples" >> beam.ParDo(
            impressions.MakeExamples(config.layout, config.min_history), beam.pvalue.AsSingleton(cuts)
        ).with_outputs(*SPLITS, interactions.COUNTS)
        malformed = (
            rows[interactions.MALFORMED],
            logs[interactions.MALFORMED],
        ) | "FlattenMalformed" >> beam.Flatten()
        num_items = (
            logs[impressions.ITEMS]
            | beam.Distinct()
            | beam.combiners.Count.Globally()
            | "NameItems" >> beam.Map(_pair, impressions.ITEMS)
        )
        counts = (
            (rows[interactions.COUNTS], logs[interactions.COUNTS], examples[interactions.COUNTS], num_items)
            | "FlattenCounts" >> beam.Flatten()
            | beam.GroupByKey()
            | beam.MapTuple(_sum)
            | beam.combiners.ToDict()
        )
        first_malformed = (
            malformed
            | beam.Map(_by_reason)
            | beam.combiners.Top.SmallestPerKey(_NUM_EXAMPLES)
            | "ToDictMalformed" >> beam.combiners.ToDict()
        )
        report = counts | "Report" >> beam.Map(
            _to_json, beam.pvalue.AsSingleton(cuts), beam.pvalue.AsSingleton(first_malformed)
        )
        return {
            **{split: examples[split] for split in SPLITS},
            interactions.MALFORMED: malformed | "ToJson" >> beam.Map(_malformed_to_json),
            interactions.COUNTS: report,
        }

    def _cuts(self, pipeline: Any, logs: Any) -> Any:
        """PCollection of one `Cuts`."""
        split = self._config.split
        if split.validation_from is not None and split.eval_from is not None:
            return pipeline | "Dates" >> beam.Create([impressions.Cuts(split.validation_from, split.eval_from)])
        train, validation, _ = split.fractions
        return (
            logs
            | "Times" >> beam.Map(impressions.impression_times, self._config.min_history)
            | ExactQuantiles((train, train + validation))
            | "Cuts" >> beam.Map(_cuts_after)
        )


class _WriteShuffled(beam.PTransform):
    """Writes blocks of tf.Examples as gzipped TFRecords, the blocks in random order."""

    def __init__(self, directory: str) -> None:
        super().__init__()
        self._directory = directory

    def expand(self, blocks: Any) -> Any:
        # They are shuffled compressed: histories overlap, so they are many times larger than the log.
        return (
            blocks
            | beam.Reshuffle()
            | beam.FlatMap(impressions.read_block)
            | beam.io.WriteToTFRecord(os.path.join(self._directory, _FILE_PREFIX), file_name_suffix=_FILE_SUFFIX)
        )


def _config(exec_properties: Mapping[str, Any]) -> PipelineConfig:
    """The configuration that `impression_gen` packed."""
    custom_config = proto_utils.json_to_proto(exec_properties[CUSTOM_CONFIG_KEY], tfx.proto.CustomConfig())
    parameters = struct_pb2.Struct()
    custom_config.custom_config.Unpack(parameters)
    return PipelineConfig.from_json(parameters["config"])


def _size_and_time(path: str) -> str:
    """Bytes of a file, and when it was written."""
    found = tf.io.gfile.stat(path)
    return f"{found.length} {found.mtime_nsec}"


def _check_csv(path: str, layout: Layout) -> bool:
    """Whether a file has rows."""
    if not layout.header:
        header = interactions.read_header(path, layout)
        if header:
            _check_columns(path, header, layout)
    with FileSystems.open(path) as file:
        lines = [file.readline(), file.readline()]
    return bool(lines[0] if layout.header else lines[1])


def _check_parquet(path: str, layout: Layout) -> bool:
    """Whether a file has rows."""
    try:
        with FileSystems.open(path) as file:
            parquet = pa.parquet.ParquetFile(file)
            schema, num_rows = parquet.schema_arrow, parquet.metadata.num_rows
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a Parquet file: {error}") from error
    _check_columns(path, schema.names, layout)
    for name in layout.sources:
        dtype = schema.field(name).type
        moments = name == layout.source(TIMESTAMP) and (pa.types.is_timestamp(dtype) or pa.types.is_date(dtype))
        if (pa.types.is_temporal(dtype) and not moments) or pa.types.is_nested(dtype):
            raise ValueError(
                f"The column {name!r} of {path} must hold integers, floats or strings, or dates where it is the "
                f"timestamp. Received: {dtype}"
            )
    return num_rows > 0


def _check_columns(path: str, present: Sequence[str], layout: Layout) -> None:
    missing = [name for name in layout.sources if name not in present]
    if missing:
        raise ValueError(f"{path} lacks columns that the layout reads: {missing}. Present: {list(present)}")
    twice = sorted({name for name in layout.sources if list(present).count(name) > 1})
    if twice:
        raise ValueError(f"{path} has several columns of the same name: {twice}")


def _pair(value: Any, key: str) -> tuple[str, Any]:
    return key, value


def _sum(key: str, numbers: Iterable[int]) -> tuple[str, int]:
    return key, sum(numbers)


def _by_reason(row: interactions.Malformed) -> tuple[str, tuple[str, str]]:
    return row.reason, (row.file, row.row)


def _malformed_to_json(row: interactions.Malformed) -> str:
    return json.dumps(row._asdict(), ensure_ascii=False)


def _cuts_after(quantiles: tuple[int, int] | None) -> impressions.Cuts:
    """Train and validation reach up to a quantile and include it, so a tie never straddles a cut."""
    last_train, last_validation = quantiles or (0, 0)
    return impressions.Cuts(last_train + 1, last_validation + 1)


def _to_json(counts: Mapping[str, int], cuts: impressions.Cuts, examples: Mapping[str, Any]) -> str:
    return json.dumps({"counts": counts, "cuts": cuts._asdict(), "examples": examples})


def _num_bytes(artifact: Any) -> int:
    """Size of the examples on disk."""
    directories = (artifact_utils.get_split_uri([artifact], split) for split in SPLITS)
    paths = (path for directory in directories for path in fileio.glob(os.path.join(directory, f"*{_FILE_SUFFIX}")))
    return sum(fileio.stat(path).length for path in paths)


def _report(raw: Mapping[str, Any], num_files: int, num_bytes: int, dead_letters: str) -> dict[str, Any]:
    """What became of the rows."""
    counts = raw["counts"]

    def by_split(name: str) -> dict[str, int]:
        return {split: counts.get(f"{name}/{split}", 0) for split in SPLITS}

    prefix = f"{interactions.MALFORMED}/"
    malformed = {name.removeprefix(prefix): count for name, count in counts.items() if name.startswith(prefix)}
    malformed = dict(sorted(malformed.items(), key=lambda item: (-item[1], item[0])))
    rows_read = counts.get(interactions.ROWS_READ, 0)
    num_impressions = by_split(impressions.IMPRESSIONS)
    return {
        "files": num_files,
        "rows_read": rows_read,
        "rows_kept": rows_read - sum(malformed.values()),
        "malformed": malformed,
        "dead_letters": dead_letters if malformed else None,
        "users": counts.get(impressions.USERS, 0),
        "items": counts[impressions.ITEMS],
        "left_out_for_short_history": counts.get(impressions.LEFT_OUT, 0),
        "impressions": num_impressions,
        "positives": by_split(impressions.POSITIVES),
        "split": raw["cuts"],
        "bytes": num_bytes,
        "bytes_per_impression": round(num_bytes / max(sum(num_impressions.values()), 1), 1),
    }


def _check_spellings(counts: Iterable[str]) -> None:
    """Refuses a log in which one column spells its numbers in two ways: they would be different ids."""
    files: dict[str, dict[str, str]] = {}
    for name in sorted(counts):
        kind, *rest = name.split("\t", 3)
        if kind == interactions.SPELLING:
            spelling, column, path = rest
            files.setdefault(column, {}).setdefault(spelling, path)
    for column, by_spelling in files.items():
        if len(by_spelling) > 1:
            raise ValueError(
                f"The column {column!r} spells ids as integers, e.g. in {by_spelling[interactions.INTEGER]}, and as "
                f"'1.0', e.g. in {by_spelling[interactions.DECIMAL]}: one id would be two. Write them in one spelling, "
                "or make the feature int64, which reads both."
            )


def _check_report(report: Mapping[str, Any], examples: Mapping[str, Any], config: PipelineConfig) -> None:
    """Refuses data that no model can be trained and judged on."""
    rows_read, malformed = report["rows_read"], report["malformed"]
    num_malformed = sum(malformed.values())
    share = num_malformed / max(rows_read, 1)
    if share > config.max_bad_share:
        reasons = []
        for reason, count in malformed.items():
            rows = "; ".join(f"{os.path.basename(file)}: {row!r}" for file, row in examples[reason])
            reasons.append(f"  {count:,} {reason}, e.g. {rows}")
        raise RuntimeError(
            f"{num_malformed:,} of {rows_read:,} rows are malformed, a share of {share:.2%}; "
            f"`max_bad_share` allows {config.max_bad_share:.2%}.\n"
            + "\n".join(reasons)
            + f"\nAll of them: {report['dead_letters']}"
        )
    if report["users"] < 2:
        raise ValueError(f"The log must hold at least two users. Found: {report['users']}")
    sizes, positives = report["impressions"], report["positives"]
    empty = [split for split in SPLITS if not sizes[split]]
    if empty:
        raise ValueError(
            f"The split by time leaves {', '.join(empty)} without impressions: {sizes}, cut at {report['split']}; "
            f"{report['left_out_for_short_history']:,} interactions had fewer than `min_history`={config.min_history} "
            "behaviours before them. Use another `split` or `min_history`, or more data."
        )
    for split in (TRAIN, EVAL):
        if positives[split] in (0, sizes[split]):
            raise ValueError(
                f"All {sizes[split]:,} impressions of {split} have the label {int(positives[split] > 0)}; a model "
                f"needs both classes. The label is made of the column {config.layout.label.column!r}: check its rule."
            )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NUM_LISTED:,} more" if len(names) > _NUM_LISTED else ""
    return f"{list(names[:_NUM_LISTED])}{more}"
