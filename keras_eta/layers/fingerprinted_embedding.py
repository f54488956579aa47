"""An embedding table with the fingerprints of its rows beside it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_eta import ops
from keras_eta.distribution import check_strategy, replica_variables
from keras_eta.layers.simhash import SimHash
from keras_eta.validation import check_positive_integers

# The methods by which Keras optimisers, `set_weights`, H5 files, checkpoints and users change a variable.
_ROW_UPDATES = (
    "scatter_add",
    "scatter_sub",
    "scatter_update",
    "scatter_mul",
    "scatter_div",
    "scatter_min",
    "scatter_max",
)
_DELTA_UPDATES = ("assign_add", "assign_sub")
_TABLE_UPDATES = (
    "assign",
    "batch_scatter_update",
    "scatter_nd_add",
    "scatter_nd_sub",
    "scatter_nd_update",
    "scatter_nd_min",
    "scatter_nd_max",
    "_strided_slice_assign",
    "_restore_from_tensors",
)

_REFRESH_BLOCK_ROWS = 65_536


@tf.keras.utils.register_keras_serializable(package="keras_eta")
class FingerprintedEmbedding(tf.keras.layers.Embedding):
    """An `Embedding` that keeps one packed SimHash fingerprint for each of its rows.

    The table `fingerprints_table` equals `SimHash(embeddings)` bit for bit after every change of the embeddings or the
    planes: both variables refresh it themselves. An update of some rows (`scatter_*`, as Adagrad applies a sparse
    gradient) hashes those rows again, a sum (`assign_add`, `assign_sub`: SGD, Adam, dense gradients) the rows to which
    it adds anything but zero; any other update (`assign`, a restored checkpoint, moved planes) hashes the whole table.
    Only code that writes to a variable's raw handle goes unseen: `tf.keras.optimizers.legacy` does, and needs a
    `refresh()` after each step, which `keras_eta.models` calls.

    Under `tf.distribute.MirroredStrategy` and `MultiWorkerMirroredStrategy` every replica has its own embeddings and
    its own table, and this holds for each of them.

    Looking fingerprints up reads 8 bytes a row where hashing embeddings reads 4 * D, which is what makes retrieval
    over a long history cheap in training.

    Args:
        input_dim: V, rows of the table.
        output_dim: D, width of an embedding.
        num_bits: M, bits of a fingerprint.
        seed: seed of the hash's planes.
        trainable_planes: whether an optimiser may move the planes. Each move hashes the whole table again.
        planes_period: as `SimHash`: above 1 the planes, and with them the table, change at `move_planes` only.
        **kwargs: as `tf.keras.layers.Embedding`.

    Call arguments:
        inputs: int32 or int64 [...], row numbers.

    Returns:
        float32 [..., D] embeddings, as they are hashed: not rounded under a policy of half precision either.

    Raises:
        ValueError: if an argument is out of its range.
        NotImplementedError: if built under another `tf.distribute` strategy, e.g. `ParameterServerStrategy`.
        RuntimeError: if built in one of several replicas and not in their strategy's scope.

    Example:
        >>> layer = keras_eta.layers.FingerprintedEmbedding(1000, 32, num_bits=64)
        >>> layer(tf.constant([1, 2])).shape, layer.fingerprints(tf.constant([1, 2])).shape
        (TensorShape([2, 32]), TensorShape([2, 1]))

    Reference:
        ETA, arXiv 2108.04468, Section 3.3, where the fingerprints are stored beside the embeddings.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        num_bits: int = 64,
        seed: int = 0,
        trainable_planes: bool = False,
        planes_period: int = 1,
        **kwargs: Any,
    ) -> None:
        check_positive_integers(input_dim=input_dim, output_dim=output_dim)
        # Under a mixed policy Keras would round the rows to half precision, and their codes would not be the table's.
        dtype = tf.keras.mixed_precision.global_policy().variable_dtype
        super().__init__(input_dim, output_dim, **{"dtype": dtype, **kwargs})
        self.hash = SimHash(num_bits, seed, trainable_planes, planes_period, name="hash")

    def build(self, input_shape: tf.TensorShape | None = None) -> None:
        check_strategy()
        super().build(input_shape)
        with tf.name_scope(self.hash.name):
            self.hash.build([None, self.output_dim])
        self.fingerprints_table = self.add_weight(
            name="fingerprints",
            shape=[self.input_dim, ops.num_words(self.hash.num_bits)],
            dtype=tf.int64,
            initializer="zeros",
            trainable=False,
            experimental_autocast=False,
        )
        for embeddings in replica_variables(self.embeddings):
            _after_updates(embeddings, _ROW_UPDATES, lambda slices: self.refresh(slices.indices))
            _after_updates(embeddings, _DELTA_UPDATES, self._refresh_where)
            _after_updates(embeddings, _TABLE_UPDATES, lambda _: self.refresh())
        for planes in replica_variables(self.hash.planes):
            _after_updates(planes, _ROW_UPDATES + _DELTA_UPDATES + _TABLE_UPDATES, lambda _: self.refresh())
        self.refresh()

    def fingerprints(self, ids: tf.Tensor) -> tf.Tensor:
        """Looks fingerprints up.

        Args:
            ids: int32 or int64 [...], row numbers; the layer must be built.

        Returns:
            int64 [..., W].
        """
        return tf.gather(self.fingerprints_table, ids)

    def codes(self, embeddings: tf.Tensor) -> tf.Tensor:
        """Embeddings as +1/-1 codes with the straight-through gradient; see `SimHash.codes`.

        Args:
            embeddings: float32 [..., D].

        Returns:
            float32 [..., M].
        """
        return self.hash.codes(embeddings)

    def move_planes(self) -> None:
        """Takes the learned planes into use and hashes the whole table by them; see `SimHash.move_planes`."""
        self.hash.move_planes()

    def refresh(self, ids: tf.Tensor | None = None) -> None:
        """Hashes rows again. Updates of the layer's variables do this by themselves.

        Args:
            ids: int32 or int64 [n], the rows whose embeddings changed. `None`: all rows.
        """
        if ids is not None:
            fingerprints = self.hash(tf.gather(self.embeddings, ids))
            self.fingerprints_table.scatter_update(tf.IndexedSlices(fingerprints, ids))
        elif self.input_dim <= _REFRESH_BLOCK_ROWS:
            self.fingerprints_table.assign(self.hash(self.embeddings))
        else:
            # In blocks, so that the projections of all rows never exist at once.
            tf.while_loop(
                lambda start: start < self.input_dim,
                self._refresh_block,
                [tf.constant(0)],
                parallel_iterations=1,
            )

    def _refresh_where(self, delta: tf.Tensor) -> None:
        """Hashes the rows again to which a sum adds `delta`, [V, D], where that is not zero."""
        delta = tf.convert_to_tensor(delta, self.embeddings.dtype)
        ids = tf.where(tf.reduce_any(delta != 0, axis=1))[:, 0]
        tf.cond(tf.size(ids) <= _REFRESH_BLOCK_ROWS, lambda: self.refresh(ids), self.refresh)

    def _refresh_block(self, start: tf.Tensor) -> list[tf.Tensor]:
        # A block of fixed size, as XLA needs; the last one repeats the last row.
        self.refresh(tf.minimum(start + tf.range(_REFRESH_BLOCK_ROWS), self.input_dim - 1))
        return [start + _REFRESH_BLOCK_ROWS]

    def __deepcopy__(self, memo: dict[int, Any]) -> FingerprintedEmbedding:
        # A copied variable would not refresh the table.
        parts = ("embeddings_initializer", "embeddings_regularizer", "embeddings_constraint")
        twin = memo[id(self)] = type(self).from_config({**self.get_config(), **dict.fromkeys(parts)})
        for part in parts:
            setattr(twin, part, getattr(self, part))
        if self.built:
            twin.build()
            twin.set_weights(self.get_weights())
        return twin

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_bits": self.hash.num_bits,
            "seed": self.hash.seed,
            "trainable_planes": self.hash.trainable_planes,
            "planes_period": self.hash.planes_period,
        }


def _after_updates(variable: tf.Variable, names: tuple[str, ...], refresh: Callable[[Any], None]) -> None:
    """Makes the methods `names` of `variable` hand their first argument, the update, to `refresh` when they are done.

    The methods of the one variable object are wrapped, since optimisers are handed that object.
    """

    def wrap(method: Callable[..., Any]) -> Callable[..., Any]:
        first = next(iter(inspect.signature(method).parameters))

        @functools.wraps(method)
        def update(*args: Any, **kwargs: Any) -> Any:
            change = args[0] if args else kwargs[first]
            if isinstance(change, tf.Variable):
                # Read now: it may be the variable that is about to change.
                change = tf.convert_to_tensor(change)
            result = method(*args, **kwargs)
            refresh(change)
            return result

        return update

    for name in names:
        setattr(variable, name, wrap(getattr(variable, name)))
