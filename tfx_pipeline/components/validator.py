"""Data validation: impressions that do not fit the schema, drift or skew stop the pipeline before training."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow_data_validation as tfdv
from tensorflow_metadata.proto.v0 import anomalies_pb2, schema_pb2, statistics_pb2
from tfx import v1 as tfx
from tfx.dsl.components.base.base_executor import BaseExecutor
from tfx.dsl.components.base.executor_spec import ExecutorClassSpec
from tfx.types import artifact_utils
from tfx.types.component_spec import ChannelParameter, ComponentSpec

from tfx_pipeline.config import EVAL, SPLITS, TRAIN, PipelineConfig
from tfx_pipeline.schema import read_schema

STATISTICS = "statistics"
SCHEMA = "schema"
BASELINE_STATISTICS = "baseline_statistics"
ANOMALIES = "anomalies"
VALIDATED_STATISTICS = "validated_statistics"

# Names that TFX's own components give to their files.
SCHEMA_FILE = "schema.pbtxt"
STATISTICS_FILE = "FeatureStats.pb"
ANOMALIES_FILE = "SchemaDiff.pb"


class ValidatedStatistics(tfx.dsl.Artifact):
    """Statistics of impressions that passed validation, by split: what later runs measure drift against."""

    # Kubeflow wants a name with a dot, and no properties.
    TYPE_NAME = "keras_eta.ValidatedStatistics"


def statistics_options(config: PipelineConfig) -> tfdv.StatsOptions:
    """Options of StatisticsGen, which must get the schema as well: it says which ids are categories to be counted.

    Frequent values are counted in sketches of bounded size, however many ids there are. A sample is one of batches, of
    up to a thousand impressions, so it needs a large log.
    """
    rate = config.statistics_sample_rate
    return tfdv.StatsOptions(sample_rate=None if rate == 1.0 else rate, use_sketch_based_topk_uniques=True)


def find_anomalies(
    statistics: Mapping[str, statistics_pb2.DatasetFeatureStatisticsList],
    schema: schema_pb2.Schema,
    baseline: Mapping[str, statistics_pb2.DatasetFeatureStatisticsList],
) -> dict[str, anomalies_pb2.Anomalies]:
    """What is wrong with each split, by TensorFlow Data Validation.

    Args:
        statistics: of each split. Where both are there, train is held against eval by the schema's skew thresholds.
        schema: what they must fit.
        baseline: of each split of earlier data, which the schema's drift thresholds compare with. May be empty.
    """
    return {
        split: tfdv.validate_statistics(
            of_split,
            schema,
            previous_statistics=baseline.get(split),
            serving_statistics=statistics.get(EVAL) if split == TRAIN else None,
        )
        for split, of_split in statistics.items()
    }


def describe(
    statistics: Mapping[str, statistics_pb2.DatasetFeatureStatisticsList],
    schema: schema_pb2.Schema,
    anomalies: Mapping[str, anomalies_pb2.Anomalies],
) -> list[str]:
    """One line for each anomaly: the split, the column, and what TensorFlow Data Validation says of it."""
    lines = []
    for split, found in anomalies.items():
        if not sum(dataset.num_examples for dataset in statistics[split].datasets):
            lines.append(
                f"{split}: There are no impressions. If the statistics are of a sample, none was drawn: whole batches "
                "are, up to a thousand impressions each. Raise the sample rate."
            )
            continue
        if found.HasField("dataset_anomaly_info"):
            lines.append(f"{split}: {found.dataset_anomaly_info.description}")
        for name, info in sorted(found.anomaly_info.items()):
            column = ".".join(info.path.step) or name
            lines += [f"{split}: {column}: {_text(reason)}" for reason in info.reason]
        for column in _uncounted(statistics[split], schema):
            lines.append(
                f"{split}: {column}: Its values were not counted, so neither drift nor skew can be seen. "
                "StatisticsGen must be given the schema."
            )
    return lines


def _text(reason: anomalies_pb2.AnomalyInfo.Reason) -> str:
    # TensorFlow Data Validation names the roles that statistics have in general, not the ones they have here.
    text = f"{reason.short_description}. {reason.description}".strip()
    text = text.replace("between current and previous", "between these and the last validated statistics (drift)")
    return text.replace("between training and serving", "between train and eval (skew)")


def _uncounted(statistics: statistics_pb2.DatasetFeatureStatisticsList, schema: schema_pb2.Schema) -> list[str]:
    """Columns with thresholds on shares of their values of which there are statistics as of quantities only.

    TensorFlow Data Validation passes over such thresholds without a word.
    """
    comparators = {column.name: (column.drift_comparator, column.skew_comparator) for column in schema.feature}
    numeric = [
        column.path.step[0]
        for dataset in statistics.datasets
        for column in dataset.features
        if column.HasField("num_stats")
    ]
    return [name for name in numeric if any(c.HasField("infinity_norm") for c in comparators.get(name, ()))]


class ImpressionValidatorExecutor(BaseExecutor):
    """Validates, and raises on any anomaly, so that nothing of the execution is published."""

    def Do(  # noqa: N802
        self,
        input_dict: Mapping[str, Sequence[Any]],
        output_dict: Mapping[str, Sequence[Any]],
        exec_properties: Mapping[str, Any],
    ) -> None:
        """Validates the statistics of all splits.

        Args:
            input_dict: `statistics`, `schema` and maybe `baseline_statistics`, an artifact each.
            output_dict: `anomalies` and `validated_statistics`, an artifact each.
            exec_properties: none.

        Raises:
            RuntimeError: if there is an anomaly; the message names all.
        """
        artifact = input_dict[STATISTICS][0]
        splits = artifact_utils.decode_split_names(artifact.split_names)
        statistics = dict(_load(artifact.uri, splits))
        schema = read_schema(os.path.join(input_dict[SCHEMA][0].uri, SCHEMA_FILE))
        earlier = input_dict.get(BASELINE_STATISTICS) or ()
        baseline = dict(_load(earlier[0].uri, SPLITS)) if earlier else {}
        found = find_anomalies(statistics, schema, baseline)
        lines = describe(statistics, schema, found)
        if lines:
            raise RuntimeError("Data validation found anomalies. Nothing is trained on them.\n" + "\n".join(lines))
        anomalies, validated = output_dict[ANOMALIES][0], output_dict[VALIDATED_STATISTICS][0]
        anomalies.split_names, anomalies.span = artifact.split_names, artifact.span
        for split in statistics:
            _write(anomalies.uri, split, ANOMALIES_FILE, found[split])
            _write(validated.uri, split, STATISTICS_FILE, statistics[split])


class ImpressionValidatorSpec(ComponentSpec):
    """Inputs and outputs of `ImpressionValidator`."""

    PARAMETERS: dict[str, Any] = {}  # noqa: RUF012
    INPUTS = {  # noqa: RUF012
        STATISTICS: ChannelParameter(type=tfx.types.standard_artifacts.ExampleStatistics),
        SCHEMA: ChannelParameter(type=tfx.types.standard_artifacts.Schema),
        BASELINE_STATISTICS: ChannelParameter(type=ValidatedStatistics, optional=True),
    }
    OUTPUTS = {  # noqa: RUF012
        ANOMALIES: ChannelParameter(type=tfx.types.standard_artifacts.ExampleAnomalies),
        VALIDATED_STATISTICS: ChannelParameter(type=ValidatedStatistics),
    }


class ImpressionValidator(tfx.types.BaseComponent):
    """Stops the pipeline where impressions do not fit the schema, drift from earlier data, or differ between splits.

    TFX's ExampleValidator only writes anomalies down; this one fails with an error that names them. Statistics that
    pass are published as `validated_statistics`, which a Resolver hands to the next run as its baseline: data that
    failed never becomes one.

    Args:
        statistics: channel of the `ExampleStatistics` of all splits.
        schema: channel of the curated `Schema`.
        baseline_statistics: channel of the latest `ValidatedStatistics`; may be empty, as in a first run.
    """

    SPEC_CLASS = ImpressionValidatorSpec
    EXECUTOR_SPEC = ExecutorClassSpec(ImpressionValidatorExecutor)

    def __init__(
        self,
        statistics: tfx.types.BaseChannel,
        schema: tfx.types.BaseChannel,
        baseline_statistics: tfx.types.BaseChannel | None = None,
    ) -> None:
        inputs = {STATISTICS: statistics, SCHEMA: schema}
        if baseline_statistics is not None:
            inputs[BASELINE_STATISTICS] = baseline_statistics
        outputs = {
            ANOMALIES: tfx.dsl.Channel(type=tfx.types.standard_artifacts.ExampleAnomalies),
            VALIDATED_STATISTICS: tfx.dsl.Channel(type=ValidatedStatistics),
        }
        super().__init__(ImpressionValidatorSpec(**inputs, **outputs))


def _load(uri: str, splits: Sequence[str]) -> Iterator[tuple[str, statistics_pb2.DatasetFeatureStatisticsList]]:
    for split in splits:
        yield split, tfdv.load_stats_binary(os.path.join(_directory(uri, split), STATISTICS_FILE))


def _write(uri: str, split: str, name: str, message: Any) -> None:
    directory = _directory(uri, split)
    tfx.dsl.io.fileio.makedirs(directory)
    with tfx.dsl.io.fileio.open(os.path.join(directory, name), "wb") as file:
        file.write(message.SerializeToString())


def _directory(uri: str, split: str) -> str:
    """Where TFX keeps the files of a split."""
    return os.path.join(uri, f"Split-{split}")
