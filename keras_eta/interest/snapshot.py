"""An index that lags behind the model, as one that is built offline does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from keras_eta.interest.base import Tables, Tensors


class EmbeddingSnapshot(tf.keras.layers.Layer):
    """A copy of embedding tables, taken every `period` steps and searched in between: SIM's offline index.

    The copy is saved with the model's weights. It passes no gradient.

    Args:
        period: steps between two copies.
        tables: the embedding tables by feature name.
        projections: dense layers whose kernels belong to the index and are copied with it, by any name.

    Reference:
        SIM, arXiv 2006.05639, Sections 3.3 and 4.5: the index is built offline and updated with a delay.
    """

    def __init__(
        self,
        period: int,
        tables: Tables,
        projections: Mapping[str, tf.keras.layers.Dense] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.period = period
        self._tables = dict(tables)
        self._projections = dict(projections or {})

    def build(self, input_shape: Any = None) -> None:
        def copy(name: str, shape: Any) -> tf.Variable:
            arguments: dict[str, Any] = {"initializer": "zeros", "trainable": False, "experimental_autocast": False}
            return self.add_weight(name=name, shape=shape, dtype=tf.float32, **arguments)

        self.copies = {
            name: copy(f"snapshot_{index}", [table.input_dim, table.output_dim])
            for index, (name, table) in enumerate(self._tables.items())
        }
        self.projections = {name: copy(f"snapshot_{name}", x.kernel.shape) for name, x in self._projections.items()}
        self.take()
        super().build(input_shape)

    def lookup(self, ids: Tensors) -> Tensors:
        """The copied embeddings of rows, float32 [..., D], by feature name."""
        return {name: tf.gather(copy, ids[name]) for name, copy in self.copies.items()}

    def take(self) -> None:
        """Copies the tables and the kernels now."""
        for name, copy in self.copies.items():
            copy.assign(self._tables[name].embeddings)
        for name, copy in self.projections.items():
            copy.assign(self._projections[name].kernel)

    def after_step(self, step: tf.Tensor) -> None:
        """Copies them where `step` is a multiple of the period."""
        tf.cond(tf.equal(step % self.period, 0), self.take, lambda: None)
