"""From a directory of raw logs to an artifact of impressions: the first component of the pipeline."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import apache_beam as beam
from absl import logging
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

from tfx_pipeline.config import SPLITS, Evaluation, PipelineConfig, Training
from tfx_pipeline.ingestion import counting, impressions, interactions
from tfx_pipeline.ingestion.blocks import FILE_SUFFIX, WriteBlocks
from tfx_pipeline.ingestion.clusters import ClusterUserLog, Snapshots
from tfx_pipeline.ingestion.files import log_spans, size_and_time, span_names
from tfx_pipeline.ingestion.item_counts import ITEM_COUNTS, PARQUET_SUFFIX, CountItems, item_counts_schema
from tfx_pipeline.ingestion.log_checks import check_data, listed
from tfx_pipeline.ingestion.malformed import NUM_EXAMPLES, check_malformed, log_parts, shortened
from tfx_pipeline.ingestion.negatives import SampleNegatives
from tfx_pipeline.ingestion.quantiles import ExactQuantiles
from tfx_pipeline.ingestion.report import check_report, check_spellings, check_time_units, make_report
from tfx_pipeline.model_config import Model
from tfx_pipeline.retriever_config import Retriever

REPORT_FILE = "report.json"

_FILE_FORMAT = "tfrecords_gzip"


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
    | `sampling_probability`, where `config.layout.negatives` are sampled | float |
    | `history_<name>` of the item and behaviour features, `history_timestamp` | at most L, most recent first |

    A history holds the user's behaviours strictly before the impression; behaviours of the same moment are in the
    descending order of their values, so the output does not depend on the runner. Further sequences have columns like
    the history's; one of clusters holds those of the latest snapshot. Beside the splits lie `report.json`, and as
    Parquet the training impressions and positives of each item. Malformed rows go to `config.dead_letter_dir`.

    A pattern with a `{SPAN}` (or `{YYYY}`, `{MM}`, `{DD}`) reads the newest span and all before it. The component runs
    again when a file of the log, of any span, a joined table or the item vectors change, and when an argument that it
    reads does.

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
        retriever=Retriever(),
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


class _Driver(FileBasedDriver):
    """Resolves the newest span and takes the fingerprint of all files that are read.

    TFX's own takes that of the newest span, and finds no file in a folder whose name has brackets.
    """

    def resolve_exec_properties(
        self, exec_properties: dict[str, Any], pipeline_info: Any, component_info: Any
    ) -> dict[str, Any]:
        config = _config(exec_properties)
        spans = log_spans(config.data, config.layout)
        paths = sorted(spans)
        paths += [os.path.join(config.data, table.file) for table in config.layout.joined_tables]
        if config.layout.clusters is not None:
            paths.append(config.layout.clusters.item_vectors)
        prints = [f"{os.path.relpath(path, config.data)} {size_and_time(path)}" for path in paths]
        exec_properties[SPAN_PROPERTY_NAME] = max(spans.values(), default=0)
        exec_properties[VERSION_PROPERTY_NAME] = None
        exec_properties[FINGERPRINT_PROPERTY_NAME] = hashlib.sha256("\n".join(prints).encode()).hexdigest()
        return exec_properties


class ImpressionGenExecutor(BaseBeamExecutor):
    """Runs the Beam pipeline and judges its report."""

    def Do(  # noqa: N802
        self, input_dict: Mapping[str, Any], output_dict: Mapping[str, Any], exec_properties: Mapping[str, Any]
    ) -> None:
        """Writes the impressions, `report.json` and the malformed rows.

        Raises:
            FileNotFoundError: as `check_data`.
            RuntimeError: if more than `config.max_bad_share` of the rows are malformed, as `check_malformed`.
            ValueError: as `check_data`; if there are fewer than two users, a split has no impressions, train or eval
                have labels of one class only, or a column of strings spells its ids in two ways, as "1" and "1.0".
        """
        config = _config(exec_properties)
        check_data(config)
        artifact = artifact_utils.get_single_instance(output_dict[EXAMPLES_KEY])
        artifact.split_names = artifact_utils.encode_split_names(list(SPLITS))
        spans = span_names(config.data, config.layout, exec_properties.get(SPAN_PROPERTY_NAME))
        files = list(spans)
        run = self._context.pipeline_run_id if self._context else None
        dead_letters = os.path.join(config.dead_letter_dir, run or os.path.basename(artifact.uri))
        report_path = os.path.join(artifact.uri, REPORT_FILE)
        logging.info("Reading %d files: %s", len(files), listed(files))

        with self._make_beam_pipeline() as pipeline:
            outputs = pipeline | GenerateImpressions(config, files)
            for split in SPLITS:
                directory = artifact_utils.get_split_uri([artifact], split)
                outputs[split] | f"Write[{split}]" >> WriteBlocks(directory)
            outputs[counting.MALFORMED] | "WriteMalformed" >> beam.io.WriteToText(
                os.path.join(dead_letters, "rows"), file_name_suffix=".jsonl", skip_if_empty=True
            )
            outputs[ITEM_COUNTS] | "WriteItemCounts" >> beam.io.WriteToParquet(
                os.path.join(artifact.uri, ITEM_COUNTS),
                item_counts_schema(config.layout),
                file_name_suffix=PARQUET_SUFFIX,
            )
            outputs[counting.COUNTS] | "WriteReport" >> beam.io.WriteToText(report_path, shard_name_template="")

        with fileio.open(report_path) as file:
            raw = json.loads(file.read())
        parts = log_parts(raw["counts"], config.data, spans)
        report = make_report(raw, parts, _num_bytes(artifact), dead_letters)
        text = json.dumps(report, indent=2)
        if report["malformed"]:
            with fileio.open(os.path.join(dead_letters, REPORT_FILE), "w") as file:
                file.write(text)
        logging.info("Ingestion: %s", text)
        check_spellings(raw["counts"])
        check_time_units(raw["counts"], config.layout)
        check_malformed(parts, raw["examples"], dead_letters, config.max_bad_share)
        check_report(report, config)
        with fileio.open(report_path, "w") as file:
            file.write(text)
        examples_utils.set_payload_format(artifact, tfx.proto.PayloadFormat.FORMAT_TF_EXAMPLE)
        examples_utils.set_file_format(artifact, _FILE_FORMAT)


class ImpressionGen(FileBasedExampleGen):
    """An example generator of impressions. `impression_gen` makes it."""

    EXECUTOR_SPEC = BeamExecutorSpec(ImpressionGenExecutor)
    DRIVER_CLASS = _Driver


class GenerateImpressions(beam.PTransform):
    """Pipeline -> a dict: under each split's name blocks of tf.Examples, under `ITEM_COUNTS` what `CountItems` gives,
    under `MALFORMED` JSON lines, and under `COUNTS` one JSON object: sums, cuts, and examples of malformed rows.

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
            | "Pack" >> beam.ParDo(interactions.PackRows())
            | "GroupByUser" >> beam.GroupByKey()
            | "Unpack" >> beam.MapTuple(interactions.unpack_rows)
            | "Sort"
            >> beam.ParDo(impressions.SortUserLog(config.layout, self._files)).with_outputs(
                impressions.ITEMS, counting.MALFORMED, counting.COUNTS, main="logs"
            )
        )
        users = logs["logs"]
        of_sampling: tuple[Any, ...] = ()
        if config.layout.negatives is not None:
            sampled = users | "SampleNegatives" >> SampleNegatives(config.layout, config.layout.negatives)
            users, of_sampling = sampled["logs"], (sampled[counting.COUNTS],)
        cuts = self._cuts(pipeline, users)
        clustered = users
        if config.layout.clusters is not None:
            snapshots = users | "TakeSnapshots" >> Snapshots(config.layout.clusters)
            clustered = users | "Cluster" >> beam.ParDo(
                ClusterUserLog(config.layout, config.layout.clusters), beam.pvalue.AsSingleton(snapshots)
            )
        examples = clustered | "MakeExamples" >> beam.ParDo(
            impressions.MakeExamples(config.layout, config.min_history), beam.pvalue.AsSingleton(cuts)
        ).with_outputs(*SPLITS, counting.COUNTS)
        malformed = (
            rows[counting.MALFORMED],
            logs[counting.MALFORMED],
        ) | "FlattenMalformed" >> beam.Flatten()
        num_items = (
            logs[impressions.ITEMS]
            | beam.Distinct()
            | beam.combiners.Count.Globally()
            | "NameItems" >> beam.Map(_pair, impressions.ITEMS)
        )
        counts = (
            (
                rows[counting.COUNTS],
                logs[counting.COUNTS],
                *of_sampling,
                examples[counting.COUNTS],
                num_items,
            )
            | "FlattenCounts" >> beam.Flatten()
            | beam.GroupByKey()
            | beam.MapTuple(_sum)
            | beam.combiners.ToDict()
        )
        first_malformed = (
            malformed
            | beam.Map(_by_file_and_reason, config.data)
            | beam.combiners.Top.SmallestPerKey(NUM_EXAMPLES)
            | "ToListMalformed" >> beam.combiners.ToList()
        )
        report = counts | "Report" >> beam.Map(
            _to_json, beam.pvalue.AsSingleton(cuts), beam.pvalue.AsSingleton(first_malformed)
        )
        return {
            **{split: examples[split] for split in SPLITS},
            ITEM_COUNTS: (users, cuts) | "CountItems" >> CountItems(config.layout, config.min_history),
            counting.MALFORMED: malformed | "ToJson" >> beam.Map(_malformed_to_json),
            counting.COUNTS: report,
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


def _config(exec_properties: Mapping[str, Any]) -> PipelineConfig:
    """The configuration that `impression_gen` packed."""
    custom_config = proto_utils.json_to_proto(exec_properties[CUSTOM_CONFIG_KEY], tfx.proto.CustomConfig())
    parameters = struct_pb2.Struct()
    custom_config.custom_config.Unpack(parameters)
    return PipelineConfig.from_json(parameters["config"])


def _pair(value: Any, key: str) -> tuple[str, Any]:
    return key, value


def _sum(key: str, numbers: Iterable[int]) -> tuple[str, int]:
    return key, sum(numbers)


def _by_file_and_reason(row: counting.Malformed, data: str) -> tuple[tuple[str, str], str]:
    return (os.path.relpath(row.file, data), row.reason), shortened(row.row)


def _malformed_to_json(row: counting.Malformed) -> str:
    return json.dumps(row._asdict(), ensure_ascii=False)


def _cuts_after(quantiles: tuple[int, int] | None) -> impressions.Cuts:
    """Train and validation reach up to a quantile and include it, so a tie never straddles a cut."""
    last_train, last_validation = quantiles or (0, 0)
    return impressions.Cuts(last_train + 1, last_validation + 1)


def _to_json(
    counts: Mapping[str, int], cuts: impressions.Cuts, malformed: Iterable[tuple[tuple[str, str], list[str]]]
) -> str:
    examples: dict[str, dict[str, list[str]]] = {}
    for (file, reason), some in malformed:
        examples.setdefault(file, {})[reason] = some
    return json.dumps({"counts": counts, "cuts": cuts._asdict(), "examples": examples})


def _num_bytes(artifact: Any) -> int:
    """Size of the examples on disk."""
    directories = (artifact_utils.get_split_uri([artifact], split) for split in SPLITS)
    paths = (path for directory in directories for path in fileio.glob(os.path.join(directory, f"*{FILE_SUFFIX}")))
    return sum(fileio.stat(path).length for path in paths)
