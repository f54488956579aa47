"""What the library knows of `tf.distribute`: which strategies it supports, and sums over their replicas."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

# With each of these every replica holds all variables and its Python methods apply every update to them.
_SUPPORTED = (
    tf.distribute.MirroredStrategy,
    tf.distribute.MultiWorkerMirroredStrategy,
    tf.distribute.OneDeviceStrategy,
)


def check_strategy() -> None:
    """Refuses to build where a table of fingerprints could not follow its embeddings.

    Raises:
        NotImplementedError: under a strategy that is not supported, with what to use in its place.
        RuntimeError: in one of several replicas, which has no hold on the tables of the others.
    """
    strategy = tf.distribute.get_strategy()
    if tf.distribute.has_strategy() and not isinstance(strategy, _SUPPORTED):
        raise NotImplementedError(
            f"FingerprintedEmbedding does not support {type(strategy).__name__}: its embeddings would change on "
            "servers or devices that do not hash them again, and retrieval would go by old fingerprints. Use "
            "tf.distribute.MultiWorkerMirroredStrategy (several machines) or tf.distribute.MirroredStrategy (several "
            "devices of one machine), where every replica holds the whole model."
        )
    replica = tf.distribute.get_replica_context()
    if replica is not None and replica.num_replicas_in_sync > 1:
        raise RuntimeError(
            "Build the model in `strategy.scope()` before its replicas run: call its `build`, or the `compile` of a "
            f"keras_eta model. FingerprintedEmbedding was about to be built in one of {replica.num_replicas_in_sync} "
            "replicas."
        )


def replica_variables(variable: tf.Variable) -> tuple[tf.Variable, ...]:
    """The variables that `variable` stands for in this process: one for each replica, itself without a strategy."""
    return tf.distribute.get_strategy().experimental_local_results(variable)


def replica_number() -> Any:
    """The number of this replica among those in sync, int64; 0 without a strategy."""
    replica = tf.distribute.get_replica_context()
    return 0 if replica is None else tf.cast(replica.replica_id_in_sync_group, tf.int64)


def gather_over_replicas(values: tf.Tensor) -> tf.Tensor:
    """A tensor [n, ...] of this replica and those of all others, [N, ...]; gradients flow back to each."""
    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        return values
    return replica.all_gather(values, axis=0)


def sum_over_replicas(values: Any) -> Any:
    """Tensors, in any structure, summed over the values that all replicas have of them."""
    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        return values
    return replica.all_reduce(tf.distribute.ReduceOp.SUM, values)
