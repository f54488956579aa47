"""ETA, End-to-End Target Attention, for Keras: ranking over very long behaviour sequences (arXiv 2108.04468)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from keras_eta import _runtime

_runtime.select_legacy_keras()

if TYPE_CHECKING:
    from keras_eta import calibration, content, interest, layers, metrics, models, ops, quantization
    from keras_eta.columns import Age, Calendar, Feature, Positives, Sequence
    from keras_eta.features import Features
    from keras_eta.layers import FeatureLookup
    from keras_eta.models import ETA, RQVAE, TIGER, Ranker
    from keras_eta.semantic_ids import SemanticIds

__version__ = "0.1.0"

__all__ = [
    "ETA",
    "RQVAE",
    "TIGER",
    "Age",
    "Calendar",
    "Feature",
    "FeatureLookup",
    "Features",
    "Positives",
    "Ranker",
    "SemanticIds",
    "Sequence",
    "calibration",
    "content",
    "interest",
    "layers",
    "metrics",
    "models",
    "ops",
    "quantization",
]

_MODULES = {
    "ETA": "models",
    "Age": "columns",
    "Calendar": "columns",
    "Feature": "columns",
    "FeatureLookup": "layers",
    "Features": "features",
    "Positives": "columns",
    "RQVAE": "models",
    "Ranker": "models",
    "SemanticIds": "semantic_ids",
    "Sequence": "columns",
    "TIGER": "models",
}


def __getattr__(name: str) -> Any:
    # Imported when asked for: clients and command lines take names of columns from here, without TensorFlow.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name not in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
