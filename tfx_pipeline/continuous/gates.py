"""The gates of a round: why a trained model is not pushed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tfx_pipeline.continuous.judging import Judged
from tfx_pipeline.continuous.settings import Gates

# Fewer judged rounds have no median to speak of.
_FEWEST_ROUNDS = 3
_STANDARD_ERRORS = 3.0
_CHANCE = 0.5


class Window(NamedTuple):
    """Versions on the impressions of the last pushed round.

    Args:
        unseen: metrics of the version that was served before that round, and had not seen them.
        served: metrics of the served version.
        candidate: metrics of the new model.
    """

    unseen: Judged
    served: Judged
    candidate: Judged


def refusals(gates: Gates, judged: Judged | None, earlier: Sequence[Judged], window: Window | None) -> list[str]:
    """Why a round is not pushed: a sentence per gate that it does not pass.

    Args:
        gates: their bounds.
        judged: the served version on the new impressions; `None` in a first round.
        earlier: the same of earlier rounds, the latest last.
        window: `None` where no round was pushed yet that had been judged before.
    """
    reasons = []
    if judged is not None:
        reasons += _progressive(gates, judged, earlier[-gates.compared_rounds :])
    if window is not None:
        reasons += _on_window(gates, window)
    return reasons


def _progressive(gates: Gates, judged: Judged, earlier: Sequence[Judged]) -> list[str]:
    reasons = []
    compared = len(earlier) >= _FEWEST_ROUNDS
    aucs = [one.auc for one in earlier if not math.isnan(one.auc)]
    noise = _STANDARD_ERRORS * judged.auc_error
    if not (compared and aucs):
        if judged.auc < _CHANCE - noise:
            reasons.append(
                f"The AUC of the served version on the new events is {judged.auc:.4f}, worse than chance by more than "
                f"{_STANDARD_ERRORS:g} standard errors."
            )
    else:
        usual = float(np.median(aucs))
        least = usual - max(gates.max_auc_fall, noise)
        if judged.auc < least:
            reasons.append(
                f"The AUC of the served version on the new events is {judged.auc:.4f}, against a median of {usual:.4f} "
                f"in the rounds before; `max_auc_fall` is {gates.max_auc_fall:g}, which makes {least:.4f} the least."
            )
    if not compared:
        return reasons
    usual = float(np.median([one.log_loss for one in earlier]))
    most = usual + max(gates.max_loss_rise * usual, _STANDARD_ERRORS * judged.log_loss_error)
    if judged.log_loss > most:
        reasons.append(
            f"The log loss of the served version on the new events is {judged.log_loss:.4f}, against a median of "
            f"{usual:.4f} in the rounds before; `max_loss_rise` is {gates.max_loss_rise:g}, which makes {most:.4f} the "
            "most."
        )
    usual, rate = float(np.median([one.label_rate for one in earlier])), judged.label_rate
    ratio = _ratio(rate, usual)
    if ratio > gates.max_label_drift and abs(rate - usual) > _STANDARD_ERRORS * judged.label_rate_error:
        reasons.append(
            f"{rate:.2%} of the new impressions are positive, against a median of {usual:.2%} in the rounds before: a "
            f"ratio of {ratio:.2f}; `max_label_drift` is {gates.max_label_drift:g}."
        )
    return reasons


def _on_window(gates: Gates, window: Window) -> list[str]:
    reasons = []
    unseen, served, candidate = window
    # The served version has learned from them, and forgets some of it with the next round, as any model does.
    usual = max(unseen.log_loss, served.log_loss)
    most = usual + max(gates.max_window_loss * usual, candidate.log_loss_error)
    if candidate.log_loss > most:
        reasons.append(
            f"The new model's log loss on the last pushed round is {candidate.log_loss:.4f}, against {usual:.4f} of a "
            f"version that had not seen it; `max_window_loss` is {gates.max_window_loss:g}, which makes {most:.4f} the "
            "most."
        )
    miscalibration = _ratio(candidate.mean_probability, candidate.label_rate)
    if miscalibration > max(gates.max_miscalibration, _ratio(served.mean_probability, served.label_rate)):
        reasons.append(
            f"The new model's mean probability on the last pushed round is {candidate.mean_probability:.4f}, against a "
            f"mean label of {candidate.label_rate:.4f}: a ratio of {miscalibration:.2f}; `max_miscalibration` is "
            f"{gates.max_miscalibration:g}."
        )
    return reasons


def _ratio(x: float, y: float) -> float:
    """The larger by the smaller; 1 where both are 0, infinite where one is."""
    if x == y:
        return 1.0
    return max(x, y) / min(x, y) if min(x, y) > 0 else math.inf
