"""SIM's soft search: top-k by learned projections, which a click loss of their own trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from keras_eta.features import Features
from keras_eta.interest.base import Columns, Interest, Retrieved, Tables, Tensors
from keras_eta.interest.snapshot import EmbeddingSnapshot
from keras_eta.interest.top_k import TopKUnit, largest_k
from keras_eta.validation import check_positive_integers, is_integer, is_number


@tf.keras.utils.register_keras_serializable(package="keras_eta")
class SIMSoft(TopKUnit):
    """Attends to the K behaviours of the largest r_i = (W_b e_i) . (W_a e_a); ties go to the more recent behaviour.

    e are the embeddings of `features.hashed`. The choice of K behaviours passes no gradient, so the projections have a
    click loss of their own: in training, all real behaviours are pooled to U = sum_i r_i e_i, without a softmax, and
    [U, e_a] goes through a small MLP to `Interest.auxiliary_logits`. That loss moves W_a, W_b and the embeddings.

    What it attends to includes the age of a behaviour where `features.age` is set, as in the paper.

    Args:
        top_k: K, behaviours to retrieve.
        search_dim: width of the projections. `None`: that of e.
        auxiliary_units: widths of the hidden layers of the MLP behind the click loss.
        alpha: weight of the click loss. The paper's beta, the weight of the ranker's own loss, is 1: Adam and Adagrad
            divide the gradient by its scale, so only the ratio alpha / beta counts.
        index_period: steps between two snapshots of the embeddings and projections, by which it searches: the lag of an
            offline index. `None`: it searches by the weights of the moment, end to end.
        **kwargs: as `AttentionUnit`.

    Raises:
        ValueError: if an argument is out of its range.

    Reference:
        SIM, arXiv 2006.05639, Section 3.2, Eqs. (2) to (4) (soft search), and Section 3.3.
    """

    score_name = "inner_products"
    has_own_loss = True

    def __init__(
        self,
        top_k: int = 48,
        search_dim: int | None = None,
        auxiliary_units: Sequence[int] = (64,),
        alpha: float = 1.0,
        index_period: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(top_k, **kwargs)
        optional = {"search_dim": search_dim, "index_period": index_period}
        check_positive_integers(**{name: value for name, value in optional.items() if value is not None})
        if not auxiliary_units or not all(is_integer(units, 1) for units in auxiliary_units):
            raise ValueError(
                f"`auxiliary_units` must be positive integers. Received: auxiliary_units={auxiliary_units!r}"
            )
        if not is_number(alpha) or alpha <= 0:
            raise ValueError(
                "`alpha` must be a positive number: without the click loss, no gradient reaches the projections. "
                f"Received: alpha={alpha!r}"
            )
        self.search_dim = search_dim
        self.auxiliary_units = tuple(auxiliary_units)
        self.alpha = self.auxiliary_weight = float(alpha)
        self.index_period = index_period
        self.snapshot: EmbeddingSnapshot | None = None
        hidden = [tf.keras.layers.Dense(units, "relu", name=f"hidden_{i}") for i, units in enumerate(auxiliary_units)]
        self.click_layers = [*hidden, tf.keras.layers.Dense(1, name="click", dtype=tf.float32)]

    def bind(self, features: Features, tables: Tables) -> None:
        super().bind(features, tables)
        self.searched = features.hashed
        searched = {name: tables[name] for name in self.searched}
        self._searched_width = sum(table.output_dim for table in searched.values())
        width = self.search_dim or self._searched_width
        self.candidate_projection = tf.keras.layers.Dense(width, use_bias=False, name="candidate_projection")
        self.behaviour_projection = tf.keras.layers.Dense(width, use_bias=False, name="behaviour_projection")
        if self.index_period is not None:
            projections = {"candidate": self.candidate_projection, "behaviour": self.behaviour_projection}
            self.snapshot = EmbeddingSnapshot(self.index_period, searched, projections, name="index")

    def build(self, input_shape: Any = None) -> None:
        width = self._searched_width
        widths = [width, width, 2 * width, *self.auxiliary_units]
        layers = [self.candidate_projection, self.behaviour_projection, *self.click_layers]
        for layer, units in zip(layers, widths, strict=True):
            # Keras scopes names only where it builds by itself; H5 files need them to differ.
            with tf.name_scope(layer.name):
                layer.build([None, units])
        if self.snapshot is not None:
            self.snapshot.build()
        super().build(input_shape)

    def call(self, candidate: Columns, history: Columns, training: bool = False, jit_compile: bool = False) -> Interest:
        interest = super().call(candidate, history, training, jit_compile)
        return interest._replace(auxiliary_logits=self._click_logits(candidate, history)) if training else interest

    def search(self, candidate: Columns, history: Columns, jit_compile: bool) -> Retrieved:
        if self.snapshot is None:
            scores = self._scores(self._searched(candidate.by_name), self._searched(history.by_name))
        else:
            kernels = self.snapshot.projections
            queries = self._searched(self.snapshot.lookup(candidate.ids))
            keys = self._searched(self.snapshot.lookup(history.ids))
            scores = _inner_products(queries, keys, kernels["candidate"], kernels["behaviour"])
        return largest_k(scores, history.mask[:, tf.newaxis, :], self.top_k)

    def _scores(self, candidate: tf.Tensor, behaviours: tf.Tensor) -> tf.Tensor:
        kernels = (self.candidate_projection.kernel, self.behaviour_projection.kernel)
        return _inner_products(candidate, behaviours, *(tf.cast(kernel, tf.float32) for kernel in kernels))

    def _click_logits(self, candidate: Columns, history: Columns) -> tf.Tensor:
        """Logits [R, C] of the click loss."""
        target, behaviours = self._searched(candidate.by_name), self._searched(history.by_name)
        scores = self._scores(target, behaviours)
        pooled = tf.linalg.matmul(tf.where(history.mask[:, tf.newaxis, :], scores, tf.zeros_like(scores)), behaviours)
        hidden = tf.concat([pooled, target], axis=-1)
        for layer in self.click_layers:
            hidden = layer(hidden)
        return hidden[..., 0]

    def _searched(self, vectors: Tensors) -> tf.Tensor:
        return tf.concat([tf.cast(vectors[name], tf.float32) for name in self.searched], axis=-1)

    def row_state(self) -> dict[str, list[tf.Variable]]:
        return {} if self.snapshot is None else {name: [copy] for name, copy in self.snapshot.copies.items()}

    def after_step(self, step: tf.Tensor) -> None:
        if self.snapshot is not None:
            self.snapshot.after_step(step)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "search_dim": self.search_dim,
            "auxiliary_units": self.auxiliary_units,
            "alpha": self.alpha,
            "index_period": self.index_period,
        }


def _inner_products(
    candidate: tf.Tensor, behaviours: tf.Tensor, candidate_kernel: tf.Tensor, behaviour_kernel: tf.Tensor
) -> tf.Tensor:
    """(W_b e_i) . (W_a e_a), [R, C, L], of embeddings [R, C, D] and [R, L, D]."""
    queries = tf.tensordot(candidate, candidate_kernel, axes=1)
    if candidate.shape[1] == 1:
        # (W_b e_i) . q = e_i . (W_b^T q): one vector is projected in place of L.
        keys, queries = behaviours, tf.tensordot(queries, tf.transpose(behaviour_kernel), axes=1)
    else:
        keys = tf.tensordot(behaviours, behaviour_kernel, axes=1)
    return tf.linalg.matmul(queries, keys, transpose_b=True)
