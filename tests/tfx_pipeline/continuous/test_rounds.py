"""Rounds end to end, with a ranker that learns: from files of events to versions, through a full disk and poison."""

from __future__ import annotations

import dataclasses
import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_eta.contract import Contract
from tests.tfx_pipeline.continuous.events import START, make_loop, rows_of, run, write_span
from tfx_pipeline.continuous import training
from tfx_pipeline.continuous.ledger import PUSHED, REFUSED
from tfx_pipeline.continuous.settings import Loop
from tfx_pipeline.training.publishing import served_versions

pytestmark = pytest.mark.slow


def versions(loop: Loop) -> list[int]:
    return sorted(served_versions(loop.config.serving_dir))


def answers(loop: Loop) -> np.ndarray:
    """The probabilities that the newest version gives items 0 to 19, of a user without a history."""
    module = tf.saved_model.load(str(Path(loop.config.serving_dir, str(versions(loop)[-1]))))
    columns: dict[str, Any] = {"item_id": np.arange(20), "history_length": np.zeros(20, "int64")}
    columns |= {f"history_{name}": np.zeros([20, 1], "int64") for name in ("item_id", "clicked")}
    found = module.signatures["serving_default"](**{name: tf.constant(x) for name, x in columns.items()})
    return found["probability"].numpy()


def test_rounds_go_from_events_to_versions_and_recover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = make_loop(tmp_path)
    # Popularity holds where labels are flipped, and one round does not move the rest far enough for the window's gate.
    model = dataclasses.replace(loop.config.model, popularity=False)
    loop = dataclasses.replace(loop, config=dataclasses.replace(loop.config, model=model))
    assert run(loop) is None

    write_span(loop, 1)
    first = run(loop)
    assert (first.status, first.base, first.facts["judged"], first.facts["window"]) == (PUSHED, "", None, {})
    assert first.facts["impressions"] + first.facts["left_out_for_short_history"] == first.facts["events"] > 390
    assert [str(versions(loop)[0])] == [Path(first.facts["version"]).name]
    assert run(loop) is None

    # The second brings ten new items, and a disk that is full when the model is written.
    write_span(loop, 2, rows_of(2, items=30))
    with monkeypatch.context() as patch:

        def full(*arguments: Any, **options: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(training, "export_model", full)
        with pytest.raises(OSError, match="No space left on device"):
            run(loop)
    assert len(versions(loop)) == 1
    second = run(loop)
    assert (second.number, second.status, second.base) == (2, PUSHED, first.facts["version"])
    assert second.facts["new_ids"] == {"item_id": 10, "clicked": 0}
    assert second.facts["judged"]["auc"] > 0.6
    assert second.facts["window"] == {}
    contract = Contract.read(Path(second.facts["version"]))
    assert contract.vocabularies["item_id"].tolist() == list(range(30))
    assert contract.timestamps == (START + 62, START + 179)

    # The third is poisoned: its labels are flipped.
    good = answers(loop)
    assert good[::2].min() > good[1::2].max()
    write_span(loop, 3, rows_of(3, flipped=True))
    third = run(loop)
    assert (third.status, third.base, len(versions(loop))) == (REFUSED, second.facts["version"], 2)
    assert third.facts["window"]["unseen"] == second.facts["judged"]
    judged, gate = third.facts["reasons"]
    assert judged.startswith("The AUC of the served version on the new events is 0.")
    assert gate.startswith("The new model's log loss on the last pushed round is")
    np.testing.assert_array_equal(answers(loop), good)

    # The fourth is good again, and goes on from the second.
    write_span(loop, 4)
    fourth = run(loop)
    assert (fourth.status, fourth.facts["trained_from"]) == (PUSHED, second.facts["version"])
    assert fourth.facts["judged"]["auc"] > 0.8
    better = answers(loop)
    assert better[::2].min() - better[1::2].max() > good[::2].min() - good[1::2].max()
    assert fourth.facts["seconds"]["all"] > fourth.facts["seconds"]["IncrementalTrainer"] > 0

    page = loop.report.read_text()
    assert f"Pushed: {fourth.facts['version']}" in page
    assert judged in page.replace("&#39;", "'")
    assert page.count("<svg") == 1
