"""Options of tf.data pipelines."""

from __future__ import annotations

import tensorflow as tf

from keras_eta.tf_data import without_autotuning


def test_a_pipeline_has_no_autotuner_and_keeps_its_elements() -> None:
    dataset = tf.data.Dataset.range(5)
    # Options of the whole pipeline, also where it goes on.
    found = without_autotuning(dataset).map(lambda x: 2 * x).batch(3)
    assert found.options().autotune.enabled is False
    assert dataset.options().autotune.enabled is not False
    assert [batch.tolist() for batch in found.as_numpy_iterator()] == [[0, 2, 4], [6, 8]]
