"""No search: full attention."""

from __future__ import annotations

import tensorflow as tf

from keras_eta.search.search_unit import Ids, SearchUnit


@tf.keras.utils.register_keras_serializable(package="keras_eta")
class FullSearch(SearchUnit):
    """Retrieves every behaviour: the ranker attends to the whole history, which is what ETA approximates.

    The model over the whole history that the ETA paper compares with (arXiv 2108.04468, Section 4.5).
    """

    def call(self, candidate: Ids, history: Ids, mask: tf.Tensor, jit_compile: bool = False) -> None:
        return None
