"""What a run found of its retriever, read from its artifacts."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from tfx.dsl.io import fileio

from tfx_pipeline.components.retriever_evaluator import read_verdict
from tfx_pipeline.outcome import outcome
from tfx_pipeline.retrieval.judging import Verdict
from tfx_pipeline.training.trainer import TRAINING_REPORT


@dataclasses.dataclass(frozen=True)
class RetrieverResults:
    """The retriever of a run.

    Args:
        outcome: what was pushed, or why nothing was.
        verdict: how it was judged.
        training: `training.json` of its trainer.
    """

    outcome: str
    verdict: Verdict
    training: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """What `summary.json` has of it."""
        verdict = self.verdict._asdict()
        verdict["measures"] = {name: found._asdict() for name, found in self.verdict.measures.items()}
        verdict["gates"] = [gate._asdict() for gate in self.verdict.gates]
        return {"outcome": self.outcome, **verdict, "training": self.training}

    def lines(self) -> list[str]:
        """What the summary says beside the table of measures."""
        verdict, positives = self.verdict, self.training["positives"]
        base = self.training.get("base_version")
        unknown = self.training["positives_of_unknown_items"]
        return [
            f"Retriever: {verdict.items:,} items, {verdict.cold_items:,} of which training never saw; trained on "
            f"{positives['training']:,} positives, {unknown['training']:,} of unknown items left out"
            + ("" if base is None else f"; warm start from version {base}"),
            f"Judged by {verdict.judged:,} of {verdict.positives:,} positives of the eval part: {verdict.unknown:,} of "
            f"unknown items, {verdict.cold:,} of items that training never saw; {verdict.repeats:,} more are of items "
            "in the user's history, which are not to be found",
            *(
                f"Gate {'passed' if gate.passed else 'refused'}: {gate.metric} is {gate.shown} and must be {gate.asked}"
                for gate in verdict.gates
            ),
            self.outcome,
        ]


def read_retriever_results(artifacts: Mapping[str, Mapping[str, Sequence[Any]]]) -> RetrieverResults | None:
    """The results of the retriever; `None` if the run had none.

    Args:
        artifacts: component -> output -> artifacts.
    """
    if "RetrieverEvaluator" not in artifacts:
        return None
    verdict = read_verdict(artifacts["RetrieverEvaluator"]["evaluation"][0].uri)
    with fileio.open(os.path.join(artifacts["RetrieverTrainer"]["model_run"][0].uri, TRAINING_REPORT)) as file:
        training = json.loads(file.read())
    refused = [f"{gate.metric} is {gate.shown} and must be {gate.asked}" for gate in verdict.gates if not gate.passed]
    return RetrieverResults(
        outcome(
            artifacts,
            refused,
            evaluator="RetrieverEvaluator",
            infra_validator="RetrieverInfraValidator",
            pusher="RetrieverPusher",
            model="The retriever",
        ),
        verdict,
        training,
    )
