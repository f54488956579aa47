"""An exported retriever, asked by its signature as a server does."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_eta.columns import HISTORY_LENGTH, ITEM_ID, history_name
from keras_eta.contract import Contract
from keras_eta.export.retriever import EXCLUDED, LOG_PROBABILITY, RETRIEVE


class ServedRetriever:
    """A version of a retriever, loaded.

    Args:
        path: of the version, a local directory.

    Attributes:
        items: ids of all items that it can find, ascending: int64, or bytes as objects.
        max_history_length: behaviours that it reads.

    Raises:
        ValueError: if it is no retriever.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._loaded = tf.saved_model.load(os.fspath(path))
        if RETRIEVE not in self._loaded.signatures:
            raise ValueError(
                f"{path} is no version of a retriever: it has no signature {RETRIEVE!r}, "
                f"but {sorted(self._loaded.signatures)}"
            )
        self._retrieve = self._loaded.signatures[RETRIEVE]
        contract = Contract.read(Path(path))
        self.items = contract.vocabularies[ITEM_ID]
        self.max_history_length = contract.features.max_history_length

    def find(self, histories: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The likeliest items that are not in the history, of R requests.

        Args:
            histories: raw ids [R, L], most recent first.
            lengths: integers [R].

        Returns:
            Ids [R, C] and log probabilities float32 [R, C], the likeliest first.
        """
        found = self._retrieve(**{name: tf.constant(values) for name, values in request(histories, lengths).items()})
        return found[ITEM_ID].numpy(), found[LOG_PROBABILITY].numpy()


def request(histories: np.ndarray, lengths: np.ndarray) -> dict[str, np.ndarray]:
    """The inputs of `retrieve` that leave out the items of the history, as `RankingClient.recommend` does.

    Args:
        histories: raw ids [R, L], most recent first.
        lengths: integers [R].
    """
    lengths = lengths.astype(np.int64)
    return {
        history_name(ITEM_ID): histories,
        HISTORY_LENGTH: lengths,
        EXCLUDED.column(ITEM_ID): histories,
        EXCLUDED.length: lengths,
    }
