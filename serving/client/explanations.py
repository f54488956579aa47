"""Reads explanations from the outputs of `explain`, whichever units the model has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from serving.client.answers import Attention, Explanation

_COUNT = "_count"


def read_explanation(outputs: Mapping[str, np.ndarray], model_version: int, model_name: str) -> Explanation:
    """Sorts the outputs by unit.

    Args:
        outputs: `probability`; `positions`, `weights` and maybe scores of the last unit that attends to behaviours;
            those of other units with the name of the unit and `_` before theirs; `<unit>_<feature>_count`.
        model_version: the version that gave them.
        model_name: the model that was asked.

    Returns:
        The explanation.

    Raises:
        ValueError: if a unit has scores of several names.
    """
    counts = {name: array for name, array in outputs.items() if name.endswith(_COUNT)}
    outputs = {name: array for name, array in outputs.items() if name not in counts}
    others = {
        name.removesuffix("_positions")
        for name in outputs
        if name.endswith("_positions") and f"{name.removesuffix('_positions')}_weights" in outputs
    }
    parts: dict[str, dict[str, np.ndarray]] = {unit: {} for unit in ("", *sorted(others))}
    for name, array in outputs.items():
        # The name of one unit may begin with that of another.
        unit = max((unit for unit in others if name.startswith(f"{unit}_")), key=len, default="")
        parts[unit][name.removeprefix(f"{unit}_") if unit else name] = array
    last = parts.pop("")
    probability = last.pop("probability")
    return Explanation(
        probability,
        model_version,
        **_attention(last, model_name),
        others={unit: Attention(**_attention(part, model_name)) for unit, part in parts.items()},
        counts={name.removesuffix(_COUNT): array for name, array in counts.items()},
    )


def _attention(part: Mapping[str, np.ndarray], model_name: str) -> dict[str, Any]:
    """The arguments of an `Attention`, of the outputs of one unit."""
    scores = {name: array for name, array in part.items() if name not in ("positions", "weights")}
    if len(scores) > 1:
        raise ValueError(
            f"Signature 'explain' of model {model_name!r} gives one unit several scores: {', '.join(sorted(scores))}."
        )
    score_name, array = next(iter(scores.items()), (None, None))
    return {"positions": part["positions"], "weights": part["weights"], "scores": array, "score_name": score_name}
