import math
import pickle

import apache_beam as beam
import numpy as np
import pytest
import tensorflow_model_analysis as tfma
from apache_beam.testing.util import assert_that
from tensorflow_model_analysis.proto import config_pb2

from keras_eta import metrics
from tfx_pipeline.grouped_auc import GroupedAUC, Rows, SubsetAUC
from tfx_pipeline.probabilities import LogOddsAUC

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")


def element(label, score, **features):
    """An impression as TensorFlow Model Analysis hands it to a metric."""
    return {
        "labels": np.array([label]),
        "predictions": np.array([score], "float32"),
        "features": {name: np.array([value]) for name, value in features.items()},
    }


def run(metric, elements, bundles=3):
    """The metric over elements in several bundles, whose accumulators travel between processes."""
    computation, *derived = metric.computations(eval_config=config_pb2.EvalConfig())
    combiner = computation.combiner
    accumulators = []
    for start in range(bundles):
        accumulator = combiner.create_accumulator()
        for one in elements[start::bundles]:
            accumulator = combiner.add_input(accumulator, tfma.metrics.StandardMetricInputs(one))
        accumulators.append(pickle.loads(pickle.dumps(accumulator)))
    results = combiner.extract_output(combiner.merge_accumulators(accumulators))
    for one in derived:
        results |= one.result(results)
    return results[[computation, *derived][-1].keys[0]]


def test_log_odds_auc_by_hand():
    # Pairs (positive, negative): .0002 beats .0001 and ties .0002, 1 beats both.
    elements = [element(*row) for row in [(0, 1e-4), (1, 2e-4), (0, 2e-4), (1, 1.0)]]
    assert run(LogOddsAUC(), elements) == 3.5 / 4
    assert run(LogOddsAUC(), [element(0, 0.0), element(1, 1e-30)]) == 1.0
    assert math.isnan(run(LogOddsAUC(), elements[1::2]))


@pytest.mark.parametrize("click_rate", [0.5, 0.01, 1e-3])
def test_log_odds_auc_is_within_a_thousandth_of_the_exact_one(click_rate):
    random = np.random.default_rng(0)
    logits = np.log(click_rate / (1 - click_rate)) + 1.2 * random.normal(size=20_000)
    scores = (1 / (1 + np.exp(-logits))).astype("float32")
    labels = (random.random(20_000) < scores).astype(int)
    elements = [element(*row) for row in zip(labels, scores, strict=True)]
    assert run(LogOddsAUC(), elements) == pytest.approx(metrics.auc(labels, scores), abs=1e-3)


def test_grouped_auc_by_hand():
    # User 1: 3 of 4 pairs in order -> .75, 4 rows. User 2: a tie -> .5, 2 rows. User 3: one class, left out.
    rows = [
        (1, 0, 0.1), (1, 1, 0.2), (1, 0, 0.3), (1, 1, 0.4),
        (2, 0, 0.6), (2, 1, 0.6),
        (3, 1, 0.0), (3, 1, 0.9),
    ]  # fmt: skip
    elements = [element(label, score, user_id=user) for user, label, score in rows]
    assert run(GroupedAUC(), elements) == pytest.approx((4 * 0.75 + 2 * 0.5) / 6, abs=1e-15)


@pytest.mark.parametrize("kind", [int, lambda user: f"u{user}".encode()])
def test_grouped_auc_equals_that_of_keras_eta(kind):
    random = np.random.default_rng(3)
    users, labels = random.integers(0, 40, 500), random.integers(0, 2, 500)
    # Scores of 16 values: ties within users.
    scores = (random.integers(0, 16, 500) / 16).astype("float32")
    elements = [element(*row, member=kind(user)) for *row, user in zip(labels, scores, users, strict=True)]
    expected = metrics.grouped_auc(labels, scores, users)
    assert run(GroupedAUC(group_key="member"), elements) == pytest.approx(expected, abs=1e-12)


def test_grouped_auc_without_a_group_of_two_classes_is_nan():
    assert math.isnan(run(GroupedAUC(), [element(user % 2, 0.5, user_id=user) for user in range(6)]))


def test_grouped_auc_without_its_column_names_it():
    with pytest.raises(ValueError, match=r"The impressions have no column 'user_id'. Columns: \['item_id'\]"):
        run(GroupedAUC(), [element(1, 0.5, item_id=1)])


def test_grouped_auc_reads_the_predictions_of_its_model():
    metric = GroupedAUC()
    computations = metric.computations(eval_config=config_pb2.EvalConfig(), model_names=["candidate", "baseline"])
    rows = [(0, 0.2, 0.8), (1, 0.4, 0.6)]
    found = {}
    for computation in computations:
        accumulator = computation.combiner.create_accumulator()
        for label, candidate, baseline in rows:
            one = element(label, 0.0, user_id=1)
            one["predictions"] = {"candidate": np.array([candidate]), "baseline": np.array([baseline])}
            accumulator = computation.combiner.add_input(accumulator, tfma.metrics.StandardMetricInputs(one))
        found.update(computation.combiner.extract_output(accumulator))
    assert {key.model_name: value for key, value in found.items()} == {"candidate": 1.0, "baseline": 0.0}


def test_grouped_auc_of_more_rows_than_kept_is_that_of_whole_groups():
    random = np.random.default_rng(5)
    users, labels = random.integers(0, 300, 6000), random.integers(0, 2, 6000)
    scores = (labels + random.normal(size=6000)).astype("float32")
    elements = [element(*row, user_id=user) for *row, user in zip(labels, scores, users, strict=True)]
    found = run(GroupedAUC(max_rows=1000), elements)
    # Groups by hash: those of one pass over everything, whatever the bundles.
    assert found == pytest.approx(run(GroupedAUC(max_rows=1000), elements[::-1], bundles=7), abs=1e-12)
    exact = metrics.grouped_auc(labels, scores, users)
    assert found != exact
    assert found == pytest.approx(exact, abs=0.05)


def test_rows_keep_whole_groups_within_their_bound():
    rows, random = Rows(max_rows=50), np.random.default_rng(0)
    added = random.integers(0, 2**63, 40).repeat(5)
    random.shuffle(added)
    longest = 0
    for group in added.tolist():
        rows.add(group, 1, 0.5)
        longest = max(longest, len(rows))
    rows.thin()
    groups, counts = np.unique(rows.columns()[2], return_counts=True)
    assert longest <= 100
    # 40 groups of 5 rows, room for 10: those with the smallest hashes, each whole.
    np.testing.assert_array_equal(groups, np.unique(added)[:10])
    assert counts.tolist() == [5] * 10


def test_rows_keep_one_group_whatever_its_size():
    rows = Rows(max_rows=10)
    for _ in range(100):
        rows.add(7, 0, 0.5)
    rows.thin()
    assert len(rows) == 100


def test_subset_auc_is_that_of_the_impressions_with_the_value():
    rows = [(b"a", 0, 0.1), (b"a", 1, 0.3), (b"a", 0, 0.6), (b"b", 0, 0.9), (b"b", 1, 0.0)]
    elements = [element(label, score, user_id=1, part=part) for part, label, score in rows]
    assert run(SubsetAUC("part", "a"), elements) == 0.5
    assert run(SubsetAUC("part", "b"), elements) == 0.0
    assert run(SubsetAUC("part", "a"), elements[:2]) == 1.0


@pytest.mark.parametrize("rows", [[], [(b"a", 1, 0.3), (b"b", 0, 0.1)]])
def test_subset_auc_without_two_classes_is_one_half(rows):
    elements = [element(label, score, user_id=1, part=part) for part, label, score in rows]
    assert run(SubsetAUC("part", "a"), elements) == 0.5


def test_grouped_auc_runs_on_beam():
    elements = [element(label, score, user_id=1) for label, score in [(0, 0.1), (1, 0.4), (0, 0.3), (1, 0.2)]]
    (computation,) = GroupedAUC().computations(eval_config=config_pb2.EvalConfig())

    def check(outputs):
        ((key, value),) = outputs[0].items()
        assert (key.name, value) == ("grouped_auc", 0.75)

    with beam.Pipeline() as pipeline:
        outputs = (
            pipeline
            | beam.Create([tfma.metrics.StandardMetricInputs(one) for one in elements])
            | beam.CombineGlobally(computation.combiner)
        )
        assert_that(outputs, check)
