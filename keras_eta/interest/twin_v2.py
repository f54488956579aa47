"""TWIN-V2: TWIN over clusters of behaviours."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_eta.features import Features
from keras_eta.interest.base import Columns, Tables
from keras_eta.interest.twin import TWIN


@tf.keras.utils.register_keras_serializable(package="keras_eta")
class TWINV2(TWIN):
    """TWIN over clusters, in which a cluster counts for as many behaviours as are in it.

    To the relevance of `TWIN`, in both stages and for each head, is added the logarithm of the cluster's size:

        alpha' = alpha + ln n

    so that softmax(alpha') weighs a cluster as n behaviours like it. The clusters are a sequence of `Features`, which
    `keras_eta.datasets.cluster_log` makes of a log. `Retrieved.scores` are the largest alpha' of the heads.

    Args:
        top_k: K, clusters to retrieve.
        sequence: name of the sequence of clusters.
        size: name of its attribute n, a float32. It is in no other part of the relevance and not in the values. Sizes
            below 1, as at padding, count as 1.
        **kwargs: as `TWIN`.

    Raises:
        ValueError: if an argument is out of its range; in a ranker, if its features lack the sequence or its size.

    Reference:
        TWIN-V2, arXiv 2407.16357.
    """

    def __init__(self, top_k: int = 48, *, sequence: str = "clusters", size: str = "size", **kwargs: Any) -> None:
        super().__init__(top_k, sequence=sequence, **kwargs)
        self.size = size

    def bind(self, features: Features, tables: Tables) -> None:
        super().bind(features, tables)
        attributes = features.sequence(self.sequence).attributes
        floats = [feature.name for feature in attributes if feature.dtype == "float32"]
        if self.size not in floats:
            raise ValueError(
                f"Interest unit {self.name!r} needs a `size` among the float32 attributes of sequence "
                f"{self.sequence!r}, {floats}. Received: size={self.size!r}"
            )
        del self._cross[self.size]

    def cross_terms(self, columns: Columns) -> tf.Tensor:
        """The part of the relevance that no candidate has a say in, (K_c W^c) beta + ln n.

        Args:
            columns: of clusters, [R, ...].

        Returns:
            float32 [R, ..., H].
        """
        sizes = tf.cast(columns.ids[self.size], tf.float32)
        return super().cross_terms(columns) + tf.math.log(tf.maximum(sizes, 1.0))[..., tf.newaxis]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "size": self.size}
