import json
import math
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_analysis as tfma
from tfx import v1 as tfx
from tfx.types import standard_artifacts

from keras_eta import metrics
from keras_eta.columns import Feature
from keras_eta.export import export_model
from keras_eta.features import Features
from tests.paper import paper_eta
from tfx_pipeline.components.baselines import BaselineMetrics, Measured, read_baselines
from tfx_pipeline.components.evaluator import GatedEvaluator, GatedEvaluatorExecutor
from tfx_pipeline.config import Evaluation, PipelineConfig
from tfx_pipeline.evaluation import (
    AUC,
    CALIBRATION,
    EXAMPLE_COUNT,
    GROUPED_AUC,
    LOG_LOSS,
    LONGEST_BUCKET_AUC,
    MEAN_LABEL,
    SATURATED_SHARE,
    Gate,
    eval_config,
    gates,
    hold_against_baselines,
    refusals,
)
from tfx_pipeline.grouped_auc import group_hash
from tfx_pipeline.layouts import Label, Layout
from tfx_pipeline.results import read_slices

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")

LENGTH = 6
LAYOUT = Layout(
    Features(
        item_id=Feature("item_id", embedding_dim=4, vocabulary_size=200),
        item_attributes=(Feature("category_id", embedding_dim=2, vocabulary_size=3),),
        user=(Feature("user_id", embedding_dim=2, vocabulary_size=20),),
        max_history_length=LENGTH,
    ),
    pattern="*.csv",
    label=Label("label"),
    slice_columns=("genre", "category_id"),
)
LONGEST = "200+"


# Scores by rule are no probabilities: only the gates that a test is about.
NO_GATES = {
    "min_auc": 0.0,
    "min_grouped_auc": 0.0,
    "max_log_loss": 100.0,
    "max_miscalibration": 100.0,
    "max_saturated_share": 1.0,
}


def config_of(**evaluation):
    return PipelineConfig(
        data="",
        layout=LAYOUT,
        schema="",
        output="",
        serving_dir="",
        evaluation=Evaluation(**{**NO_GATES, **evaluation}),
    )


def make_columns(rows=400, longest_share=0.06, seed=0):
    """Impressions by column. The item id is higher where the label is 1, so it is a score with an AUC of about .9."""
    random = np.random.default_rng(seed)
    label = random.integers(0, 2, rows)
    return {
        "user_id": random.integers(1, 15, rows),
        "item_id": random.integers(1, 100, rows) + 60 * label,
        "category_id": random.integers(1, 4, rows),
        "genre": random.choice([b"Comedy", b"Drama"], rows),
        "history_bucket": random.choice(
            [b"0-9", b"50-199", LONGEST.encode()], rows, p=[0.5, 0.5 - longest_share, longest_share]
        ),
        "label": label,
        "history": [random.integers(1, 160, random.integers(0, LENGTH + 1)) for _ in range(rows)],
    }


def feature_of(values):
    values = np.ravel(values).tolist()
    if values and isinstance(values[0], bytes):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def serialized(columns):
    for row in range(len(columns["label"])):
        values = {name: column[row] for name, column in columns.items()}
        history = values.pop("history")
        values.update(history_item_id=history, history_category_id=history % 3 + 1)
        features = tf.train.Features(feature={name: feature_of(value) for name, value in values.items()})
        yield tf.train.Example(features=features).SerializeToString()


def write(columns, path):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in serialized(columns):
            writer.write(record)
    return str(path)


def evaluate(config, data, output, model, baseline=None):
    """What the Evaluator component does."""
    with_defaults = tfma.utils.update_eval_config_with_defaults(
        eval_config(config), has_baseline=baseline is not None, rubber_stamp=True
    )
    paths = {spec.name: baseline if spec.is_baseline else model for spec in with_defaults.model_specs}
    models = [
        tfma.default_eval_shared_model(str(path), model_name=name, eval_config=with_defaults)
        for name, path in paths.items()
    ]
    tfma.run_model_analysis(
        eval_shared_model=models if baseline else models[0],
        eval_config=with_defaults,
        data_location=data,
        output_path=str(output),
    )
    return tfma.load_validation_result(str(output))


def slices_of(output):
    result = tfma.load_eval_result(str(output))
    return {
        ", ".join(f"{column}={value}" for column, value in key): {
            name: value["doubleValue"] for name, value in values[""][""].items() if "doubleValue" in value
        }
        for key, values in result.slicing_metrics
    }


class ByRule(tf.Module):
    """A model whose scores are a function of the item id and the history bucket."""

    def __init__(self, rule):
        super().__init__()
        self.rule = rule

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def score(self, examples):
        spec = {
            "item_id": tf.io.FixedLenFeature([], tf.int64),
            "history_bucket": tf.io.FixedLenFeature([], tf.string),
        }
        columns = tf.io.parse_example(examples, spec)
        item_id = tf.cast(columns["item_id"], tf.float32) / 160
        return {"probability": self.rule(item_id, columns["history_bucket"] == LONGEST)}


RULES = {
    "good": lambda score, longest: score,
    "bad": lambda score, longest: 1 - score,
    "bad_on_longest": lambda score, longest: tf.where(longest, 1 - score, score),
    "slightly_worse": lambda score, longest: tf.where(score > 0.8, 0.0, score),
    "not_a_number": lambda score, longest: score * float("nan"),
    "saturated": lambda score, longest: tf.cast(score > 0.5, tf.float32),
    "too_high": lambda score, longest: 1 - (1 - score) / 4,
}


@pytest.fixture(scope="module")
def columns():
    return make_columns()


@pytest.fixture(scope="module")
def data(columns, tmp_path_factory):
    return write(columns, tmp_path_factory.mktemp("data") / "eval.tfrecord")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models")
    for name, rule in RULES.items():
        module = ByRule(rule)
        tf.saved_model.save(module, str(directory / name), signatures={"examples": module.score})
    return directory


def failed(validation):
    """(metric, slice) of everything that failed."""
    return [
        (failure.metric_key.name, tuple(key.column for key in part.slice_key.single_slice_keys))
        for part in validation.metric_validations_per_slice
        for failure in part.failures
    ]


def test_metrics_of_an_exported_model_equal_those_of_keras_eta(columns, data, tmp_path):
    tf.keras.utils.set_random_seed(0)
    model = paper_eta(
        LAYOUT.features, lookup=None, top_k=3, num_bits=16, short_history_length=2, num_heads=1, hidden_units=(8,)
    )
    path = export_model(model, tmp_path / "model", warmup=False)
    # There is no baseline: the floor is the only threshold.
    validation = evaluate(config_of(min_auc=0.1), data, tmp_path / "evaluation", path)
    assert validation.validation_ok

    score = tf.saved_model.load(str(path)).signatures["examples"]
    scores = score(examples=tf.constant(list(serialized(columns))))["probability"].numpy()
    assert np.ptp(scores) > 0.01
    slices = slices_of(tmp_path / "evaluation")
    masks = {"": np.ones(len(scores), bool)}
    for column in ("history_bucket", "genre", "category_id"):
        for value in np.unique(columns[column]):
            text = value.decode() if isinstance(value, bytes) else value
            masks[f"{column}={text}"] = columns[column] == value
    assert set(slices) == set(masks)
    for name, mask in masks.items():
        labels, probabilities, found = columns["label"][mask], scores[mask].astype("float64"), slices[name]
        assert found[EXAMPLE_COUNT] == mask.sum()
        assert found[AUC] == pytest.approx(metrics.auc(labels, probabilities), abs=2e-3)
        expected = metrics.grouped_auc(labels, probabilities, columns["user_id"][mask])
        assert found[GROUPED_AUC] == pytest.approx(expected, abs=1e-12)
        logits = np.log(probabilities) - np.log1p(-probabilities)
        assert found[LOG_LOSS] == pytest.approx(metrics.log_loss(labels, logits), abs=1e-6)
        assert found[CALIBRATION] == pytest.approx(probabilities.mean() / labels.mean(), abs=1e-6)
        assert found[MEAN_LABEL] == pytest.approx(labels.mean(), abs=1e-12)
        assert found[SATURATED_SHARE] == 0.0
    longest = columns["history_bucket"] == LONGEST.encode()
    expected = metrics.auc(columns["label"][longest], scores[longest])
    assert slices[""][LONGEST_BUCKET_AUC] == pytest.approx(expected, abs=1e-12)
    assert slices["history_bucket=0-9"][LONGEST_BUCKET_AUC] == 0.5


def test_a_first_model_below_the_floor_is_not_blessed(data, models, tmp_path):
    validation = evaluate(config_of(min_auc=0.95), data, tmp_path, models / "good")
    assert not validation.validation_ok
    assert failed(validation) == [(AUC, ())]
    (failure,) = validation.metric_validations_per_slice[0].failures
    assert failure.metric_threshold.value_threshold.lower_bound.value == 0.95


@pytest.mark.parametrize(
    ("model", "gates", "expected"),
    [
        ("good", {"min_grouped_auc": 0.95}, [GROUPED_AUC]),
        ("too_high", {"max_miscalibration": 1.25}, [CALIBRATION]),
        ("saturated", {"max_log_loss": 0.6931}, [LOG_LOSS]),
        # Its probabilities of 0 make the log loss infinite.
        ("slightly_worse", {"max_saturated_share": 0.01}, [LOG_LOSS, SATURATED_SHARE]),
        ("not_a_number", {"min_grouped_auc": 0.1}, [AUC, CALIBRATION, GROUPED_AUC, LOG_LOSS]),
    ],
)
def test_gates_say_what_was_found_and_what_was_asked(columns, data, models, tmp_path, model, gates, expected):
    config = config_of(**gates)
    validation = evaluate(config, data, tmp_path, models / model)
    assert sorted(name for name, _ in failed(validation)) == expected
    assert validation.validation_ok == (not expected)
    found = refusals(validation, {}, config.evaluation)
    assert [line.split()[0] for line in sorted(found)] == expected
    if expected == [GROUPED_AUC]:
        value = metrics.grouped_auc(columns["label"], columns["item_id"], columns["user_id"])
        assert found == [f"grouped_auc is {value:.4f} and must be at least 0.9500"]
    if expected == [CALIBRATION]:
        value = (1 - (1 - columns["item_id"] / 160) / 4).mean() / columns["label"].mean()
        assert found == [f"calibration is {value:.4f} and must be from 0.8000 to 1.2500"]
    if model == "slightly_worse":
        value = (columns["item_id"] / 160 > 0.8).mean()
        assert f"saturated_share is {value:.4f} and must be from 0.0000 to 0.0100" in found


def test_a_refusal_by_the_last_model_says_how_far_below_it(columns, data, models, tmp_path):
    config = config_of(max_auc_drop=0.05)
    validation = evaluate(config, data, tmp_path, models / "slightly_worse", models / "good")
    score = columns["item_id"] / 160
    worse = np.where(score > 0.8, 0.0, score)
    fall = [metrics.grouped_auc(columns["label"], x, columns["user_id"]) for x in (score, worse)]
    expected = f"grouped_auc is {fall[0] - fall[1]:.4f} below the last blessed model's, more than `max_auc_drop`=0.05"
    assert expected in refusals(validation, {}, config.evaluation)

    result = tfma.load_eval_result(str(tmp_path))
    overall, last = (
        read_slices(found)[0] for found in (result, tfma.load_eval_result(str(tmp_path), model_name=tfma.BASELINE_KEY))
    )
    assert overall.values[GROUPED_AUC] == pytest.approx(fall[1], abs=1e-12)
    for part in read_slices(result):
        assert sum(tenth.impressions for tenth in part.reliability) == part.count
        labels = sum(tenth.impressions * tenth.mean_label for tenth in part.reliability)
        assert labels / part.count == pytest.approx(part.values[MEAN_LABEL])
    assert last.values[GROUPED_AUC] == pytest.approx(fall[0], abs=1e-12)
    found = gates(result.config, validation, overall.values, last.values, {}, config.evaluation)
    lasts = [metrics.auc(columns["label"], score), fall[0], last.values[LONGEST_BUCKET_AUC]]
    asked = [f"at most `max_auc_drop`=0.05 below the last blessed model's {value:.4f}" for value in lasts]
    assert found == [
        Gate(AUC, overall.values[AUC], "at least 0.0000", True),
        Gate(AUC, overall.values[AUC], asked[0], False),
        Gate(GROUPED_AUC, overall.values[GROUPED_AUC], asked[1], False),
        Gate(LOG_LOSS, math.inf, "from 0.0000 to 100.0000", False),
        Gate(CALIBRATION, overall.values[CALIBRATION], "from 0.0100 to 100.0000", True),
        Gate(SATURATED_SHARE, (score > 0.8).mean(), "from 0.0000 to 1.0000", True),
        Gate(LONGEST_BUCKET_AUC, overall.values[LONGEST_BUCKET_AUC], asked[2], False),
    ]
    alone = gates(result.config, validation, overall.values, None, {}, config.evaluation)
    assert [gate.metric for gate in alone] == [AUC, LOG_LOSS, CALIBRATION, SATURATED_SHARE]


@pytest.mark.parametrize(
    ("model", "max_auc_drop", "expected"),
    [
        ("good", 0.0, []),
        # Its probabilities of 0 make the log loss infinite.
        ("slightly_worse", 0.05, [AUC, LONGEST_BUCKET_AUC, GROUPED_AUC, LOG_LOSS]),
        ("bad_on_longest", 0.15, [LONGEST_BUCKET_AUC]),
    ],
)
def test_a_model_is_blessed_only_if_it_is_no_worse_than_the_last(data, models, tmp_path, model, max_auc_drop, expected):
    config = config_of(min_auc=0.0, max_auc_drop=max_auc_drop)
    validation = evaluate(config, data, tmp_path, models / model, models / "good")
    assert sorted(failed(validation)) == [(name, ()) for name in expected]
    assert validation.validation_ok == (not expected)


@pytest.mark.parametrize("model", ["good", "bad"])
def test_data_without_the_longest_bucket_is_judged_by_all_impressions(models, tmp_path, model):
    data = write(make_columns(longest_share=0.0), tmp_path / "eval.tfrecord")
    validation = evaluate(config_of(min_auc=0.0), data, tmp_path / "evaluation", models / model, models / "good")
    assert not validation.missing_slices
    assert sorted(failed(validation)) == ([] if model == "good" else [(AUC, ()), (GROUPED_AUC, ())])
    assert validation.validation_ok == (model == "good")


BASELINES = {"popularity": Measured(0.9, 0.5), "recency": Measured(0.5, 0.625)}


@pytest.mark.parametrize(
    ("gates", "baselines", "expected"),
    [
        ({}, BASELINES, 0.625),
        ({"min_auc_lead": 0.0625}, BASELINES, 0.6875),
        ({"min_grouped_auc": 0.75}, BASELINES, 0.75),
        ({"min_auc_lead": -1.0, "min_grouped_auc": 0.5}, BASELINES, 0.5),
        ({"min_grouped_auc": 0.5}, {"popularity": Measured(0.9, math.nan)}, 0.5),
    ],
)
def test_floor_within_users_is_the_best_baselines(gates, baselines, expected):
    config = config_of(**gates)
    found = eval_config(config)
    hold_against_baselines(found, baselines, config.evaluation.min_auc_lead)
    (metric,) = (metric for metric in found.metrics_specs[0].metrics if '"grouped_auc"' in metric.config)
    assert metric.per_slice_thresholds[0].threshold.value_threshold.lower_bound.value == expected
    found.metrics_specs[0].metrics.remove(metric)
    others = eval_config(config).metrics_specs[0].metrics
    assert list(found.metrics_specs[0].metrics) == [one for one in others if '"grouped_auc"' not in one.config]


def test_without_a_baseline_within_users_there_is_no_floor():
    found = eval_config(config_of())
    hold_against_baselines(found, {"popularity": Measured(0.9, math.nan)}, 0.0)
    assert found == eval_config(config_of())


def artifact_of(kind, uri):
    artifact = kind()
    artifact.uri = str(uri)
    return artifact


@pytest.mark.parametrize("lead", [0.0, 0.001])
def test_model_level_with_the_best_baseline_is_blessed_and_one_below_the_lead_is_not(
    columns, data, models, tmp_path, lead
):
    # Sums in the order of the hashes, as the Evaluator's: level means equal to the last bit.
    groups = [group_hash(user) for user in columns["user_id"].tolist()]
    level = metrics.grouped_auc(columns["label"], columns["item_id"], np.array(groups, "uint64"))
    examples, baselines = artifact_of(standard_artifacts.Examples, tmp_path), artifact_of(BaselineMetrics, tmp_path)
    examples.split_names = '["eval"]'
    (tmp_path / "Split-eval").mkdir()
    shutil.copy(data, tmp_path / "Split-eval" / "data")
    found = {"recency": {"auc": 0.5, "grouped_auc": 0.4}, "click-rate": {"auc": None, "grouped_auc": level}}
    (tmp_path / "baselines.json").write_text(json.dumps(found))
    model = artifact_of(standard_artifacts.Model, tmp_path)
    (tmp_path / "Format-Serving").symlink_to(models / "good")
    kinds = standard_artifacts.Examples, standard_artifacts.Model, standard_artifacts.Model, BaselineMetrics
    config = config_of(min_auc_lead=lead)
    component = GatedEvaluator(config, *(tfx.dsl.Channel(type=kind) for kind in kinds))
    evaluation = artifact_of(standard_artifacts.ModelEvaluation, tmp_path / "evaluation")
    blessing = artifact_of(standard_artifacts.ModelBlessing, tmp_path / "blessing")
    GatedEvaluatorExecutor().Do(
        {"examples": [examples], "model": [model], "baselines": [baselines]},
        {"evaluation": [evaluation], "blessing": [blessing]},
        dict(component.exec_properties),
    )
    assert blessing.get_int_custom_property("blessed") == (lead == 0.0)
    expected = (
        f"grouped_auc is {level:.4f} and must be at least {level + lead:.4f}: the baseline click-rate has {level:.4f}, "
        f"and `min_auc_lead`={lead:g}"
    )
    validation = tfma.load_validation_result(evaluation.uri)
    assert refusals(validation, read_baselines(baselines.uri), config.evaluation) == ([] if lead == 0.0 else [expected])
