"""How popular the candidate is."""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from keras_eta.columns import Feature

_logger = logging.getLogger(__name__)


class Popularity(tf.keras.layers.Layer):
    """The logarithm of how often the training data has an item, standardised over the vocabulary.

    Where a log tells what people took and the rest is sampled, how often an item was taken tells much, and its
    embedding learns it only from its own few impressions. An item out of the vocabulary counts as never taken.

    Args:
        item: the item's id, with a known vocabulary size.
        counts: as `set_counts` takes them; `None`: unknown as yet, and the output is 0.

    Call arguments:
        ids: int32 [R, C], rows of the item's vocabulary.

    Returns:
        [R, C, 1] in the policy's precision.
    """

    def __init__(self, item: Feature, counts: npt.ArrayLike | None = None, name: str = "popularity") -> None:
        super().__init__(name=name)
        self._item = item
        self._initial = None if counts is None else self._checked(counts)

    def build(self, input_shape: tf.TensorShape | None = None) -> None:
        options = {"initializer": "zeros", "trainable": False, "experimental_autocast": False}
        self.counts = self.add_weight(name="counts", shape=[self._item.num_indices], dtype=tf.int64, **options)
        self.moments = self.add_weight(name="moments", shape=[2], dtype=tf.float32, **options)
        super().build(input_shape)
        if self._initial is not None:
            self._assign(self._initial)

    def set_counts(self, counts: npt.ArrayLike) -> None:
        """Sets how often the training data has each item.

        Args:
            counts: integers [num_indices], by row of the item's vocabulary. Those of padding and of the
                out-of-vocabulary buckets, the first ones, are taken for 0.

        Raises:
            ValueError: if the shape is another, or a count is negative or no integer.
        """
        checked = self._checked(counts)
        if not self.built:
            self.build()
        self._assign(checked)

    def row_state(self) -> dict[str, list[tf.Variable]]:
        """The counts, by row of the item's vocabulary; a warm start carries them by id."""
        return {self._item.name: [self.counts]}

    def refresh(self) -> None:
        """Derives what counts are standardised by from them again, after writes to the variable."""
        self._assign(self.counts.numpy())

    def warn_if_unknown(self) -> None:
        """Logs a warning where no counts were given, so that popularity tells nothing."""
        unknown = not np.any(self.counts.numpy()) if self.built else self._initial is None
        if unknown:
            _logger.warning(
                "How popular items are is unknown, and the model does without. Give it a `lookup` that was adapted to "
                "the training data, or call `model.popularity.set_counts`; `popularity=False` leaves it out."
            )

    def call(self, ids: tf.Tensor) -> tf.Tensor:
        logarithms = tf.math.log1p(tf.cast(tf.gather(self.counts, ids), tf.float32))
        mean, std = tf.unstack(self.moments)
        scaled = tf.math.divide_no_nan(logarithms - mean, std)
        return tf.cast(scaled, self.compute_dtype)[..., tf.newaxis]

    def _assign(self, counts: np.ndarray) -> None:
        known = np.log1p(counts[1 + self._item.num_oov_indices :].astype("float64"))
        self.counts.assign(counts)
        self.moments.assign([known.mean(), known.std()])

    def _checked(self, counts: npt.ArrayLike) -> np.ndarray:
        array = np.asarray(counts)
        shape = (self._item.num_indices,)
        if array.shape != shape or array.dtype.kind not in "iu" or array.min() < 0:
            raise ValueError(
                f"`counts` must be integers of at least 0 of shape {shape}, one per row of the vocabulary of "
                f"{self._item.name!r}. Received: shape {array.shape}, dtype {array.dtype}"
                + (f", least {array.min()}" if array.size else "")
            )
        array = array.astype("int64")
        array[: 1 + self._item.num_oov_indices] = 0
        return array
