"""Options of `tf.data` pipelines."""

from __future__ import annotations

import tensorflow as tf


def without_autotuning(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """The dataset without an autotuner.

    With it, an iterator that is dropped waits for the tuner, which sleeps up to a minute.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
