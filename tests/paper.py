"""ETA as the paper has it: without what this project's defaults add."""

from __future__ import annotations

from typing import Any

from keras_eta import ETA

PAPER = {
    "similarity_bias": False,
    "trainable_planes": False,
    "cosine": False,
    "distance_edges": (),
    "matches": False,
    "popularity": False,
    "retrieval_task": None,
    "id_dropout": 0.0,
}


def paper_eta(*args: Any, **kwargs: Any) -> ETA:
    """`ETA` with the paper's choices where none is given."""
    return ETA(*args, **{**PAPER, **kwargs})
