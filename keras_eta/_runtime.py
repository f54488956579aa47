"""What must hold before TensorFlow's Keras loads. The one place that knows TensorFlow versions."""

from __future__ import annotations

import functools
import os

_LEGACY_KERAS = "TF_USE_LEGACY_KERAS"


def select_legacy_keras() -> None:
    """Makes `tf.keras` Keras 2 (the package tf_keras), which TFRS, TFT and TFMA are built on, once TensorFlow loads."""
    os.environ.setdefault(_LEGACY_KERAS, "1")


@functools.cache
def prepare_tensorflow() -> None:
    """Checks that `tf.keras` is Keras 2, and keeps AutoGraph from converting it.

    Raises:
        ImportError: if this process has already loaded Keras 3 as `tf.keras`, or asks for it.
    """
    advice = (
        "keras_eta runs on Keras 2 (the package tf_keras), as TFRS and TFX do. Set the environment variable "
        "TF_USE_LEGACY_KERAS=1 before TensorFlow is imported, or import keras_eta before anything touches tf.keras "
        "(in a notebook: restart the kernel and make `import keras_eta` the first import)."
    )
    requested = os.environ[_LEGACY_KERAS]
    if requested.lower() not in ("1", "true"):
        raise ImportError(f"{_LEGACY_KERAS}={requested} asks for Keras 3. {advice}")
    import tensorflow as tf

    package = tf.keras.Model.__module__.split(".")[0]
    if package != "tf_keras":
        raise ImportError(f"Keras 3 (the package {package}) is already loaded as tf.keras. {advice}")
    _exempt_keras_from_autograph(tf.__version__)


def _exempt_keras_from_autograph(version: str) -> None:
    """Keeps AutoGraph from converting tf_keras, TFRS and this package, which takes seconds at the first traced step.

    TensorFlow 2.16 exempts a package named `keras` but not `tf_keras`; later versions exempt both. This package needs
    no conversion; layers that users derive from its own are still converted. The rules are private API, so a
    TensorFlow without them is left alone.
    """
    if tuple(map(int, version.split(".")[:2])) >= (2, 17):
        return
    from tensorflow.python.autograph.core import config

    rules = tuple(config.DoNotConvert(package) for package in ("tf_keras", "tensorflow_recommenders", "keras_eta"))
    config.CONVERSION_RULES = rules + tuple(config.CONVERSION_RULES)
