"""Starts a retriever from the served version: its semantic ids, its weights, and what it was trained on."""

from __future__ import annotations

import io
import json
import logging
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from keras_eta import TIGER, SemanticIds
from tfx_pipeline.retrieval.item_tokenizer import LEVELS, ItemTokenizer
from tfx_pipeline.retrieval.items import Items
from tfx_pipeline.training.publishing import served_versions
from tfx_pipeline.training.warm_start import signature

_FOLDER = os.path.join("assets.extra", "retriever")
_ARCHITECTURE, _SEEN = "architecture.json", "seen.npy"
# Arguments of TIGER that may differ between a version and what goes on from it; those of the items are compared apart.
_NO_ARCHITECTURE = {"name", "ids", "dropout", "label_smoothing"}

_logger = logging.getLogger(__name__)


class Start(NamedTuple):
    """What a training starts from, and what the next one can.

    Attributes:
        model: its ids are those of the present items.
        tokenizer: of items.
        seen: bool [issued], by row of the tokenizer's `issued`: whether the weights have learned a positive of the
            item.
        base_version: the version that it goes on from; `None` for a cold start.
    """

    model: TIGER
    tokenizer: ItemTokenizer
    seen: np.ndarray
    base_version: int | None

    def save(self, version_dir: Path) -> None:
        """Writes what a warm start needs beside the weights into a version, where no server reads it.

        Args:
            version_dir: of the SavedModel.
        """
        folder = version_dir / _FOLDER
        folder.mkdir(parents=True)
        self.tokenizer.save(folder)
        np.save(folder / _SEEN, self.seen)
        (folder / _ARCHITECTURE).write_text(json.dumps(_architecture(self.model), indent=2))


def cold_start(items: Items, codebook_size: int, seed: int, make_model: Callable[[SemanticIds], TIGER]) -> Start:
    """New semantic ids and new weights.

    Args:
        items: and what is known of them.
        codebook_size: codes of each level.
        seed: of the semantic ids.
        make_model: makes a model of the ids of the items.

    Raises:
        ValueError: as `ItemTokenizer.fit`.
    """
    tokenizer = ItemTokenizer.fit(items, codebook_size, seed)
    return Start(make_model(tokenizer.issued), tokenizer, np.zeros(len(items.ids), bool), None)


def warm_start(
    items: Items, codebook_size: int, serving_dir: str, make_model: Callable[[SemanticIds], TIGER]
) -> Start | None:
    """Goes on from the latest version in a serving directory: its semantic ids, its codebooks and all its weights.

    Items that have an id keep it, whatever is known of them now. New items get ids from the version's codebooks, by the
    version's terms. Where more items share their codes than before, there are more collision tokens, whose weights are
    the model's initial ones.

    Nothing happens, but for a line in the log that says why, where there is no version, or it can't be gone on from.

    Args:
        items: and what is known of them.
        codebook_size: codes of each level.
        serving_dir: directory of versions, as TF Serving's `--model_base_path`.
        make_model: makes a model of the ids of the items.

    Returns:
        The start; `None` where it is to be a cold one.

    Raises:
        ValueError: if the version's files are broken.
    """
    present = served_versions(serving_dir)
    if not present:
        _logger.info("Cold start of the retriever: there is no version in %s.", serving_dir or "no serving directory")
        return None
    version = max(present)
    try:
        start = _go_on(os.path.join(serving_dir, present[version]), version, items, codebook_size, make_model)
    except _ColdStartError as reason:
        _logger.warning("Cold start of the retriever: version %d in %s %s.", version, serving_dir, reason)
        return None
    _logger.info("Warm start of the retriever from version %d in %s.", version, serving_dir)
    return start


class _ColdStartError(Exception):
    """Why a version can't be gone on from."""


def _go_on(
    path: str, version: int, items: Items, codebook_size: int, make_model: Callable[[SemanticIds], TIGER]
) -> Start:
    folder = os.path.join(path, _FOLDER)
    if not tf.io.gfile.exists(os.path.join(folder, _ARCHITECTURE)):
        raise _ColdStartError("has no semantic ids to go on with")
    try:
        tokenizer = ItemTokenizer.load(folder)
        with tf.io.gfile.GFile(os.path.join(folder, _SEEN), "rb") as file:
            seen = np.load(io.BytesIO(file.read()))
        with tf.io.gfile.GFile(os.path.join(folder, _ARCHITECTURE)) as file:
            architecture = json.load(file)
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{folder} is broken: {error!r}. --no-warm_start does without it.") from error

    issued, vectorizer, quantizer = tokenizer.issued, tokenizer.vectorizer, tokenizer.quantizer
    kinds = {True: "integers", False: "strings"}
    _compare("ids of items", kinds[issued.item_ids.dtype != object], kinds[isinstance(items.ids[0], int)])
    _compare("columns of texts", [*vectorizer.text], [*items.text])
    _compare("columns of categories", [*vectorizer.categories], [*items.categories])
    _compare("levels", quantizer.levels, LEVELS)
    _compare("codebook_size", quantizer.codebook_size, codebook_size)
    try:
        extended = tokenizer.extended(items)
    except ValueError as error:
        raise _ColdStartError(f"has no ids left for new items: {error}") from error
    model = make_model(extended.ids_of(items.ids))
    for name, value in _architecture(model).items():
        _compare(name, architecture.get(name), value)
    _carry_weights_over(model, path)

    new = len(extended.issued) - len(issued)
    kept = len(items.ids) - new
    _logger.info("%d items keep their semantic ids, %d are new, %d have left.", kept, new, len(issued) - kept)
    return Start(model, extended, np.pad(seen, [0, new]), version)


def _compare(name: str, theirs: Any, ours: Any) -> None:
    if theirs != ours:
        raise _ColdStartError(f"has other {name}: {theirs}, not {ours}")


def _architecture(model: TIGER) -> dict[str, Any]:
    """The arguments that decide what the weights mean, as JSON has them."""
    arguments = {name: value for name, value in model.get_config().items() if name not in _NO_ARCHITECTURE}
    found: dict[str, Any] = json.loads(json.dumps(arguments))
    return found


def _carry_weights_over(model: TIGER, path: str) -> None:
    """Gives the model the weights of a version, all of them or none."""
    model.build()
    # Collision tokens come last among the tokens, and their logits are the last head.
    growing = {variable.ref() for variable in (model.tokens.embeddings, *model.heads[-1].trainable_variables)}
    ours = model.trainable_variables
    theirs = [variable for variable in tf.saved_model.load(path).model_variables if variable.trainable]
    if len(ours) != len(theirs):
        raise _ColdStartError(f"has {len(theirs)} trained variables, not {len(ours)}")
    weights = []
    for variable, source in zip(ours, theirs, strict=True):
        (name, shape), (their_name, their_shape) = signature(variable), signature(source)
        grown = variable.ref() in growing and all(map(int.__le__, their_shape, shape))
        if name != their_name or not (grown or shape == their_shape):
            raise _ColdStartError(f"has other weights: {their_name} {their_shape}, not {name} {shape}")
        value = variable.numpy()
        value[tuple(map(slice, their_shape))] = source.numpy()
        weights.append(value)
    for variable, value in zip(ours, weights, strict=True):
        variable.assign(value)
