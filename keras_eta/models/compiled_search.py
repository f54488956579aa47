"""A beam search that XLA compiles: one request at a time, so that there is one shape to compile."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import tensorflow as tf

from keras_eta.models.beam_search import Beams, Excluded

Inputs = Mapping[str, tf.Tensor]


def search_each(
    search: Callable[[Inputs, Excluded], Beams], inputs: Inputs, excluded: tf.Tensor, num_rows: int, num_results: int
) -> Beams:
    """Searches for each request by a function that XLA compiles, once for all numbers of requests and excluded items.

    Args:
        search: what is found of the inputs of one request, [1, ...], without what is excluded.
        inputs: of R requests, [R, ...]; all axes but the first of fixed size.
        excluded: int64 [R, E], rows of items that must not be found; those below 2 exclude nothing.
        num_rows: rows of items, with the two of none.
        num_results: C, items that `search` gives.

    Returns:
        `Beams` of C items.
    """

    @tf.function(jit_compile=True, autograph=False)
    def compiled(of_one: Inputs, left_out: tf.Tensor) -> Beams:
        found = search(of_one, lambda rows: tf.gather(left_out, rows))
        return Beams(*(tf.squeeze(part, axis=0) for part in found))

    def one(request: tuple[Inputs, tf.Tensor]) -> Beams:
        of_one, rows = request
        left_out = tf.scatter_nd(rows[:, tf.newaxis], tf.ones_like(rows), [num_rows]) > 0
        return compiled({name: column[tf.newaxis] for name, column in of_one.items()}, left_out)

    specs = Beams(tf.TensorSpec([num_results], tf.int64), tf.TensorSpec([num_results], tf.float32))
    return tf.map_fn(one, (dict(inputs), excluded), fn_output_signature=specs)
