"""ETA, End-to-End Target Attention, for Keras: ranking over very long behaviour sequences (arXiv 2108.04468)."""

from keras_eta import _runtime

_runtime.use_legacy_keras()
_runtime.exempt_keras_from_autograph()

from keras_eta import interest, layers, metrics, models, ops  # noqa: E402
from keras_eta.columns import Age, Feature, Positives, Sequence  # noqa: E402
from keras_eta.features import Features  # noqa: E402
from keras_eta.layers import FeatureLookup  # noqa: E402
from keras_eta.models import ETA, Ranker  # noqa: E402

__version__ = "0.1.0"

__all__ = [
    "ETA",
    "Age",
    "Feature",
    "FeatureLookup",
    "Features",
    "Positives",
    "Ranker",
    "Sequence",
    "interest",
    "layers",
    "metrics",
    "models",
    "ops",
]
