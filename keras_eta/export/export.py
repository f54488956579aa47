"""Exports a ranker to one SavedModel with the signatures that serving calls. Stock TensorFlow ops only."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_eta.contract import Contract, LookedUp, check_timestamps
from keras_eta.export.attribute_table import AttributeTable
from keras_eta.export.joins import lookup_for
from keras_eta.export.signatures import Signatures
from keras_eta.export.versions import write_version
from keras_eta.layers.feature_lookup import FeatureLookup
from keras_eta.models.ranker import Ranker


def export_model(
    model: Ranker,
    base_path: str | os.PathLike[str],
    version: int | None = None,
    *,
    warmup: bool = True,
    jit_compile: bool = False,
    timestamps: tuple[int, int] | None = None,
    tables: Sequence[AttributeTable] = (),
) -> Path:
    """Writes a servable version of the model: `base_path/version`, whole or not at all.

    | signature | inputs | outputs |
    |---|---|---|
    | `serving_default` | user, context, item [N]; `history_*` [N, L]; `history_length` [N] | `probability` [N] |
    | `rank` | user, context [R]; item [R, C]; `history_*` [R, L]; `history_length` [R] | `probability` [R, C] |
    | `explain` | as `rank` | as `rank`, and `positions`, the scores of the unit, `weights` [R, C, K] |
    | `examples` | `examples`: serialized tf.Example [N] | `probability` [N] |

    | `user_state` | `history_*` [R, L]; `history_length` [R] | the state of each user, [R, ...] |
    | `rank_from_state` | user, context [R]; item [R, C]; states | `probability` [R, C] |
    | `update_state` | states; `history_*` [R, B] and `history_length` [R] of behaviours since | states |

    A `probability` is what `model.probabilities` makes of the logit: calibrated where the model has a `calibrator`.

    Ids are raw where the model has a `lookup`, else indices, those out of range counting as out-of-vocabulary. A model
    with `features.age` takes `timestamp` int64, as a context column, and `history_timestamp` int64 in any case; one
    with `features.calendar` the former.

    `explain` exists where an interest unit attends to behaviours. `positions` index the history (0 = most recent), and
    the unit's scores, by which it retrieves, go by their meaning: `distances` of `ETAInterest`, `inner_products` ...
    The nearest come first. Entries beyond what was retrieved have position -1, score -1 (0 if it is a float) and weight
    0; weights are means over the heads. Of several units the last has these names, and those of the others begin with
    the unit's: `recent_interest_positions`. `MatchInterest` adds `match_item_id_count` and so on, int32 [R, C].

    The signatures about states exist where an interest unit has a state that depends on the user alone (`SDIM`, `MIMN`,
    `PoolingInterest`), so that a feature service can keep it; `update_state` where all of them can be updated. States
    go by `<unit>_<name>`, e.g. `sdim_buckets`. `rank_from_state` reads the history as well if a unit without a state
    does, and `user_state` the `timestamp` with `features.age`: ages in a state are those of its moment.

    The graph of every signature checks ranks, equal rows, candidates and behaviours, 0 <= `history_length` <= L, and
    that floats are finite, those behind `history_length` left aside. It answers INVALID_ARGUMENT with a message that
    names the input. What a server looks at before the graph it words itself: TF Serving names no input of a wrong
    dtype and, where it joins calls to batches, none with other rows or a rank of 0. `serving.client` checks all of it
    before it sends.

    Args:
        model: a ranker, trained.
        base_path: directory of the model's versions, as TF Serving's `--model_base_path`; made when missing.
        version: positive integer below 2**63, the limit of TF Serving. `None`: one more than the highest version there;
            exports at the same time get different ones.
        warmup: whether to add warm-up requests, which TF Serving replays before a version takes traffic. Needs
            tensorflow-serving-api.
        jit_compile: whether `rank` and `explain` search long histories by a function that XLA compiles when the version
            is loaded, several times faster than without. TF Serving needs `--xla_cpu_compilation_enabled` for it. The
            warm-up requests cover every shape that is ever compiled: keep them.
        timestamps: the first and the last `timestamp` of the training data, so that servers and clients can tell
            requests in another unit (`serving.monitor`). `None`: they can't.
        tables: attributes of items or users by id, which the signatures look up: they lack the columns that a table
            gives (of an item's attribute `category`, `history_category` and that of every other sequence), and have its
            key. An attribute that a table does not know of an id is read as out-of-vocabulary (the first such bucket;
            of several values, one such value), a float as a missing one if the feature is optional, else as its `mean`,
            which is scaled to 0, or as 0 where there is no `mean`. What a request with the same attributes gets, one
            with ids gets to the bit.

    Returns:
        The path of the version.

    Raises:
        TypeError: if `model` is no `Ranker`, or `tables` hold anything but `AttributeTable`s.
        ValueError: if `version` is not a positive integer below 2**63, or there is none left above the highest; or if
            `timestamps` are not two integers, the first not after the last; or if `model` has no `lookup` or not what
            `tables` hold, or two of these have one key or give one feature.
        FileExistsError: if the version exists.
        ImportError: if `warmup` is asked for without tensorflow-serving-api.
    """
    if not isinstance(model, Ranker):
        raise TypeError(f"`model` must be a keras_eta Ranker. Received: model={model!r}")
    check_timestamps(timestamps)
    if tables:
        lookup_for(model, tables)
    looked_up = tuple(LookedUp(table.key, table.names) for table in tables)
    known = {} if model.lookup is None else vocabularies(model.lookup)
    contract = Contract(model.features, known, timestamps, looked_up)

    def trace() -> Signatures:
        if not model.built:
            model.build()
        model.refresh()
        return Signatures(model, jit_compile, tables)

    return write_version(trace, Path(base_path), version, contract, warmup)


def vocabularies(lookup: FeatureLookup) -> dict[str, np.ndarray]:
    """The ids of each vocabulary of a lookup, ascending."""
    return {name: np.sort(table.lookup_table.export()[0].numpy()) for name, table in lookup.tables.items()}
