"""What became of a model, in one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tfx_pipeline.components.infra_validator import BLESSED_PROPERTY, REASON_PROPERTY


def outcome(
    artifacts: Mapping[str, Mapping[str, Sequence[Any]]],
    refused: Sequence[str],
    *,
    evaluator: str = "Evaluator",
    infra_validator: str = "LocalInfraValidator",
    pusher: str = "AtomicPusher",
    model: str = "The model",
) -> str:
    """What was pushed, or why nothing was.

    Args:
        artifacts: component -> output -> artifacts.
        refused: why the evaluator did not bless the model, where it did not.
        evaluator: id of that component.
        infra_validator: likewise.
        pusher: likewise.
        model: what it is, to begin a sentence.
    """
    pushed = artifacts[pusher]["pushed_model"][0].custom_properties
    if pushed["pushed"].int_value:
        return f"Pushed: {pushed['pushed_destination'].string_value}"
    reasons = []
    if not artifacts[evaluator]["blessing"][0].custom_properties["blessed"].int_value:
        reasons.append(f"{evaluator} did not bless it: {', '.join(refused)}")
    infra = artifacts[infra_validator]["blessing"][0].custom_properties
    if not infra[BLESSED_PROPERTY].int_value:
        reasons.append(f"{infra_validator} did not bless it: {infra[REASON_PROPERTY].string_value.rstrip('.')}")
    return f"{model} was not pushed. {'; '.join(reasons)}. See the log."
