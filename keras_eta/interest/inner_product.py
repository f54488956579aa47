"""Retrieval by inner product."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_eta.features import Features
from keras_eta.interest.base import Columns, Retrieved, Tables, Tensors
from keras_eta.interest.snapshot import EmbeddingSnapshot
from keras_eta.interest.top_k import TopKUnit, largest_k
from keras_eta.validation import check_positive_integers


@tf.keras.utils.register_keras_serializable(package="keras_eta")
class InnerProductInterest(TopKUnit):
    """Attends to the K behaviours whose embeddings have the largest inner product with the candidate's.

    The exact search that SimHash approximates, by the embeddings of `features.hashed`; it gathers the whole history as
    floats. Ties go to the more recent behaviour.

    Args:
        top_k: K, behaviours to retrieve.
        normalize: whether embeddings are L2-normalised first.
        index_period: steps between two snapshots of the embeddings, by which it searches: the lag of an offline index.
            `None`: it searches by the embeddings of the moment.
        **kwargs: as `AttentionUnit`.

    Raises:
        ValueError: if an argument is out of its range.

    Reference:
        ETA, arXiv 2108.04468, Section 4.5; SIM, arXiv 2006.05639, Section 3.2 (soft search, on pre-trained embeddings).
    """

    def __init__(
        self, top_k: int = 48, normalize: bool = False, index_period: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(top_k, **kwargs)
        if index_period is not None:
            check_positive_integers(index_period=index_period)
        self.normalize = normalize
        self.index_period = index_period
        self.snapshot: EmbeddingSnapshot | None = None

    @property
    def score_name(self) -> str:  # type: ignore[override]
        """What `Retrieved.scores` are: the name of that output of `explain`."""
        return "cosines" if self.normalize else "inner_products"

    def bind(self, features: Features, tables: Tables) -> None:
        super().bind(features, tables)
        self.searched = features.hashed
        if self.index_period is not None:
            searched = {name: tables[name] for name in self.searched}
            self.snapshot = EmbeddingSnapshot(self.index_period, searched, name="index")

    def build(self, input_shape: Any = None) -> None:
        if self.snapshot is not None:
            self.snapshot.build()
        super().build(input_shape)

    def search(self, candidate: Columns, history: Columns, jit_compile: bool) -> Retrieved:
        scores = tf.linalg.matmul(self._vectors(candidate), self._vectors(history), transpose_b=True)
        return largest_k(scores, history.mask[:, tf.newaxis, :], self.top_k)

    def _vectors(self, columns: Columns) -> tf.Tensor:
        by_name: Tensors = columns.by_name if self.snapshot is None else self.snapshot.lookup(columns.ids)
        vectors = tf.concat([by_name[name] for name in self.searched], axis=-1)
        return tf.math.l2_normalize(vectors, axis=-1) if self.normalize else vectors

    def row_state(self) -> dict[str, list[tf.Variable]]:
        return {} if self.snapshot is None else {name: [copy] for name, copy in self.snapshot.copies.items()}

    def after_step(self, step: tf.Tensor) -> None:
        if self.snapshot is not None:
            self.snapshot.after_step(step)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "normalize": self.normalize, "index_period": self.index_period}
