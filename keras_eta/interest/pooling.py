"""Mean pooling."""

from __future__ import annotations

import tensorflow as tf

from keras_eta.interest.base import Columns, Interest, InterestUnit, Tensors


@tf.keras.utils.register_keras_serializable(package="keras_eta")
class PoolingInterest(InterestUnit):
    """The mean of all behaviours, the same for every candidate: the baseline that knows no target.

    Its user state is that mean, `mean` float32 [R, D].

    Args:
        **kwargs: as `InterestUnit`.

    Reference:
        "Avg-Pooling DNN" of SIM, arXiv 2006.05639, Section 4.2.
    """

    state_names = ("mean",)

    def call(self, candidate: Columns, history: Columns, training: bool = False, jit_compile: bool = False) -> Interest:
        return self.from_state(candidate, self.user_state(history))

    def user_state(self, history: Columns) -> Tensors:
        # Summed per feature: the vectors side by side would be the largest tensor of the model.
        parts = [tf.cast(vectors, history.dtype) for vectors in history.by_name.values()]
        real = tf.cast(history.mask, history.dtype)[:, tf.newaxis, :]
        total = tf.concat([tf.linalg.matmul(real, part)[:, 0] for part in parts], axis=-1)
        return {"mean": tf.math.divide_no_nan(total, tf.reduce_sum(real, axis=-1))}

    def from_state(self, candidate: Columns, state: Tensors) -> Interest:
        mean = state["mean"]
        shape = tf.shape(next(iter(candidate.ids.values())))
        return Interest(tf.broadcast_to(mean[:, tf.newaxis, :], [shape[0], shape[1], mean.shape[-1]]))
