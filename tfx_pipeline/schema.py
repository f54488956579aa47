"""The curated schema of impressions, made from a layout: what data validation and Transform hold the data to."""

from __future__ import annotations

from pathlib import Path

from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2

from keras_eta.columns import LABEL, TIMESTAMP, length_name
from keras_eta.datasets.negative_draws import SAMPLING_PROBABILITY
from tfx_pipeline.config import HISTORY_BUCKET, HISTORY_BUCKETS
from tfx_pipeline.layouts import USER_ID, Layout

# How far the share of any one candidate may lie from its share in the statistics compared with: an item id that stands
# for "unknown", or a log with one item repeated, moves far more. Between MovieLens-1M's own temporal splits the largest
# difference is 0.003; of 100 impressions drawn from them, 0.04.
MAX_ITEM_SHARE_DRIFT = 0.05
MAX_ITEM_SHARE_SKEW = 0.05

_TYPES = {"int64": schema_pb2.INT, "string": schema_pb2.BYTES, "float32": schema_pb2.FLOAT}


def make_schema(layout: Layout) -> schema_pb2.Schema:
    """The schema that every impression of a layout must fit.

    | column | type | values |
    |---|---|---|
    | `timestamp` | int64 | 1 |
    | `label` | int64, 0 or 1 | 1 |
    | `history_bucket` | bytes, one of `HISTORY_BUCKETS` | 1 |
    | `sampling_probability`, where negatives are sampled | float32 | 1 |
    | others of `layout.row_columns` | the feature's; of no feature bytes, the user's id by `layout.user_dtype` | 1 |
    | of a sequence | the feature's; `<sequence>_timestamp` int64 | 0 to its `max_length` |

    Floats are finite; NaN is a missing value of an optional feature. Features of several values have 0 to `max_values`,
    and in a sequence as many per behaviour, side by side, with `<name>_length`, int64, beside them.

    Shapes are written out, never inferred from data, so that Transform parses columns with one value into dense
    [N, 1] tensors and histories into ragged ones, whatever lengths the data happens to have. The item id is
    categorical, and thresholds hold its drift against earlier data and its skew between train and eval.

    Args:
        layout: the layout.

    Returns:
        A `tensorflow_metadata` Schema.
    """
    features = layout.features
    by_name = {feature.name: feature for feature in features.all_features}
    schema = schema_pb2.Schema(represent_variable_length_as_ragged=True)
    for name in layout.row_columns:
        feature = by_name.get(name)
        if feature and feature.max_values:
            _add_list(schema, name, feature.dtype, feature.max_values)
        else:
            dtype = feature.dtype if feature else layout.user_dtype if name == USER_ID else "string"
            _add_row_column(
                schema, name, "int64" if name == TIMESTAMP else dtype, optional=bool(feature and feature.optional)
            )
    label = _add_row_column(schema, LABEL, "int64")
    label.int_domain.CopyFrom(schema_pb2.IntDomain(min=0, max=1))
    bucket = _add_row_column(schema, HISTORY_BUCKET, "string")
    bucket.string_domain.value.extend(HISTORY_BUCKETS)
    if layout.negatives is not None:
        _add_row_column(schema, SAMPLING_PROBABILITY, "float32")
    for sequence in features.all_sequences:
        for feature in features.sequence_features(sequence):
            name, most = sequence.column(feature.name), sequence.max_length
            _add_list(schema, name, feature.dtype, most * (feature.max_values or 1), feature.optional)
            if feature.max_values:
                _add_list(schema, length_name(name), "int64", most)
        _add_list(schema, sequence.timestamp, "int64", sequence.max_length)

    item_id = next(column for column in schema.feature if column.name == features.item_id.name)
    if features.item_id.dtype == "int64":
        # Else its ids are taken for quantities, whose most frequent values nobody counts.
        item_id.int_domain.is_categorical = True
    item_id.drift_comparator.infinity_norm.threshold = MAX_ITEM_SHARE_DRIFT
    item_id.skew_comparator.infinity_norm.threshold = MAX_ITEM_SHARE_SKEW
    return schema


def schema_text(schema: schema_pb2.Schema) -> str:
    """The schema as text proto, as `read_schema` and TFX's ImportSchemaGen read it."""
    return text_format.MessageToString(schema)


def read_schema(path: str | Path) -> schema_pb2.Schema:
    """The schema in a text proto file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no schema.
    """
    try:
        return text_format.Parse(Path(path).read_text(), schema_pb2.Schema())
    except text_format.ParseError as error:
        raise ValueError(f"{path} holds no schema as text proto: {error}") from error


def _add_row_column(schema: schema_pb2.Schema, name: str, dtype: str, optional: bool = False) -> schema_pb2.Feature:
    column = _add_column(schema, name, dtype, optional)
    column.shape.dim.add(size=1)
    return column


def _add_list(schema: schema_pb2.Schema, name: str, dtype: str, max_length: int, optional: bool = False) -> None:
    column = _add_column(schema, name, dtype, optional)
    column.value_count.min, column.value_count.max = 0, max_length


def _add_column(schema: schema_pb2.Schema, name: str, dtype: str, optional: bool) -> schema_pb2.Feature:
    column = schema.feature.add(name=name, type=_TYPES[dtype])
    column.presence.min_fraction, column.presence.min_count = 1.0, 1
    if dtype == "float32":
        # NaN is a missing value of an optional feature.
        column.float_domain.disallow_nan, column.float_domain.disallow_inf = not optional, True
    return column
