"""Drafts of schemas, from the statistics of a data set's own impressions."""

from __future__ import annotations

import json
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import apache_beam as beam
import tensorflow_data_validation as tfdv
from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2, statistics_pb2
from tfx_bsl.public import tfxio

from keras_eta.columns import LABEL, TIMESTAMP
from tfx_pipeline.components.validator import statistics_options
from tfx_pipeline.config import HISTORY_BUCKET, SPLITS, PipelineConfig
from tfx_pipeline.ingestion import counting
from tfx_pipeline.ingestion.blocks import read_block
from tfx_pipeline.ingestion.files import log_files, span_names
from tfx_pipeline.ingestion.impression_gen import GenerateImpressions
from tfx_pipeline.ingestion.log_checks import check_data
from tfx_pipeline.ingestion.malformed import log_parts, most_first
from tfx_pipeline.layouts import USER_ID, Layout
from tfx_pipeline.schema import make_schema

# Sets of strings and ranges of integers up to this size are proposed as domains.
MAX_DOMAIN_SIZE = 100


def propose_schema(layout: Layout, statistics: statistics_pb2.DatasetFeatureStatisticsList) -> schema_pb2.Schema:
    """The schema of a layout, with the domains that the data shows.

    Columns that hold at most `MAX_DOMAIN_SIZE` different strings get them as their domain, those of integers that lie
    as close together get their range. Ids of items and users, timestamps, and what `make_schema` has a domain for are
    left as they are.

    Args:
        layout: of the data.
        statistics: of its impressions, computed with `make_schema(layout)`.
    """
    schema = make_schema(layout)
    ids = (USER_ID, layout.features.item_id.name, TIMESTAMP)
    of_behaviours = (sequence.column(name) for sequence in layout.features.all_sequences for name in ids)
    fixed = {*ids, *of_behaviours, LABEL, HISTORY_BUCKET}
    found = _by_column(statistics)
    for column in schema.feature:
        if column.name in fixed or column.name not in found:
            continue
        of_column = found[column.name]
        if column.type == schema_pb2.BYTES and 0 < of_column.string_stats.unique <= MAX_DOMAIN_SIZE:
            column.string_domain.value.extend(_strings(of_column))
        elif column.type == schema_pb2.INT and of_column.num_stats.max - of_column.num_stats.min < MAX_DOMAIN_SIZE:
            column.int_domain.min, column.int_domain.max = int(of_column.num_stats.min), int(of_column.num_stats.max)
    return schema


def proposal_text(schema: schema_pb2.Schema, statistics: statistics_pb2.DatasetFeatureStatisticsList) -> str:
    """The schema as text proto, with what the data shows of each column as a comment before it."""
    found = _by_column(statistics)
    number = sum(dataset.num_examples for dataset in statistics.datasets)
    rest = schema_pb2.Schema()
    rest.CopyFrom(schema)
    rest.ClearField("feature")
    parts = [f"# A draft made from {number:,} impressions. Check every column.\n", text_format.MessageToString(rest)]
    for column in schema.feature:
        seen = "; ".join(_seen(found[column.name])) if column.name in found else "not in the data"
        comment = textwrap.wrap(f"In the data: {seen}.", 100, break_on_hyphens=False)
        message = text_format.MessageToString(schema_pb2.Schema(feature=[column]))
        parts.append("".join(f"# {line}\n" for line in comment) + message)
    return "\n".join(parts)


def impression_statistics(
    config: PipelineConfig, directory: str
) -> tuple[statistics_pb2.DatasetFeatureStatisticsList, dict[str, int]]:
    """Ingests a log and computes the statistics of all its impressions.

    Args:
        config: `data`, `layout`, `split` and `min_history` are read.
        directory: for temporary files.

    Returns:
        The statistics, and the numbers of rows by what became of them.
    """
    statistics_path, counts_path = Path(directory) / "statistics.pb", Path(directory) / "counts.json"
    options = statistics_options(config)
    options.schema = make_schema(config.layout)
    with beam.Pipeline() as pipeline:
        outputs = pipeline | GenerateImpressions(config, log_files(config.data, config.layout))
        _ = (
            [outputs[split] for split in SPLITS]
            | beam.Flatten()
            | "ReadBlocks" >> beam.FlatMap(read_block)
            | tfxio.TFExampleBeamRecord(["propose_schema"]).BeamSource()
            | tfdv.GenerateStatistics(options)
            | tfdv.WriteStatisticsToBinaryFile(str(statistics_path))
        )
        _ = outputs[counting.COUNTS] | beam.io.WriteToText(str(counts_path), shard_name_template="")
    return tfdv.load_stats_binary(str(statistics_path)), json.loads(counts_path.read_text())["counts"]


def write_draft(data: str, layout: Layout, file: Path) -> None:
    """Drafts the schema of a log and says what was read.

    Args:
        data: directory of the log.
        layout: of the data.
        file: where to write; must not exist.

    Raises:
        ValueError: if the data can't be what the layout says, or no row could be made an impression.
        OSError: if the file can't be written.
    """
    if file.exists():
        raise FileExistsError(f"{file} exists, maybe with edits. Choose another --file.")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"There is no directory {file.parent}, where --file should be written.")
    config = PipelineConfig(data=data, layout=layout, schema="", output="", serving_dir="", min_history=0)
    check_data(config)
    print(f"Reading {data} ...", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        statistics, counts = impression_statistics(config, directory)
    number = sum(dataset.num_examples for dataset in statistics.datasets)
    log = log_parts(counts, data, span_names(data, layout)).log
    print(f"{log.rows_read:,} rows, {log.malformed:,} malformed; {number:,} impressions")
    for reason, count in most_first(log.reasons).items():
        print(f"  {count:,} {reason}")
    if not number:
        raise ValueError(f"No row of {data} could be made an impression.")
    file.write_text(proposal_text(propose_schema(layout, statistics), statistics))
    print(f"{file} written. Check it, then run the pipeline with --schema {file}")


def _by_column(
    statistics: statistics_pb2.DatasetFeatureStatisticsList,
) -> dict[str, statistics_pb2.FeatureNameStatistics]:
    return {column.path.step[0]: column for dataset in statistics.datasets for column in dataset.features}


def _strings(column: statistics_pb2.FeatureNameStatistics) -> list[str]:
    return sorted(bucket.label for bucket in column.string_stats.rank_histogram.buckets)


def _seen(column: statistics_pb2.FeatureNameStatistics) -> Iterator[str]:
    """What the data shows of a column, in a few words each."""
    counted = column.HasField("string_stats")
    common = column.string_stats.common_stats if counted else column.num_stats.common_stats
    if common.max_num_values != 1 or common.min_num_values != 1:
        yield f"{common.min_num_values} to {common.max_num_values} values, {common.avg_num_values:.1f} on average"
    if counted:
        yield f"{column.string_stats.unique:,} different values"
        top = [f"{value.value} ({value.frequency:,.0f})" for value in column.string_stats.top_values[:5]]
        yield f"most frequent {', '.join(top)}"
    elif common.tot_num_values:
        yield f"from {column.num_stats.min:.10g} to {column.num_stats.max:.10g}"
