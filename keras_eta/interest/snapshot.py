"""An index that lags behind the model, as one that is built offline does."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_eta.interest.base import Tables, Tensors


class EmbeddingSnapshot(tf.keras.layers.Layer):
    """A copy of embedding tables, taken every `period` steps and searched in between: SIM's offline index.

    The copy is saved with the model's weights. It passes no gradient.

    Args:
        period: steps between two copies.
        tables: the embedding tables by feature name.

    Reference:
        SIM, arXiv 2006.05639, Sections 3.3 and 4.5: the index is built offline and updated with a delay.
    """

    def __init__(self, period: int, tables: Tables, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.period = period
        self._tables = dict(tables)

    def build(self, input_shape: Any = None) -> None:
        self.copies = {
            name: self.add_weight(
                name=f"snapshot_{index}",
                shape=[table.input_dim, table.output_dim],
                dtype=tf.float32,
                initializer="zeros",
                trainable=False,
                experimental_autocast=False,
            )
            for index, (name, table) in enumerate(self._tables.items())
        }
        self.take()
        super().build(input_shape)

    def lookup(self, ids: Tensors) -> Tensors:
        """The copied embeddings of rows, float32 [..., D], by feature name."""
        return {name: tf.gather(copy, ids[name]) for name, copy in self.copies.items()}

    def take(self) -> None:
        """Copies the tables now."""
        for name, copy in self.copies.items():
            copy.assign(self._tables[name].embeddings)

    def after_step(self, step: tf.Tensor) -> None:
        """Copies the tables where `step` is a multiple of the period."""
        tf.cond(tf.equal(step % self.period, 0), self.take, lambda: None)
