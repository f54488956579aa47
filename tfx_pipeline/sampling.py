"""How negatives are sampled for a log that holds positives only."""

from __future__ import annotations

import dataclasses

from keras_eta.datasets.negative_draws import Period, Weighting, check_choices
from keras_eta.validation import check_integers_from_zero, check_positive_integers


@dataclasses.dataclass(frozen=True)
class NegativeSampling:
    """The arguments of `keras_eta.datasets.sample_negatives` that ingestion takes.

    Args:
        rate: negatives per positive.
        same: columns in which the candidates agree with the positive, among those of the item, the user and the
            context, e.g. `("category_id",)`. Empty: any item.
        by: `"uniform"`, every candidate alike, or `"popularity"`, in proportion to its rows.
        candidates: `"earlier"`, items of rows strictly before the positive, or `"all"`.
        seed: of the draws.

    Raises:
        ValueError: if an argument is out of its range.
    """

    rate: int
    same: tuple[str, ...] = ()
    by: Weighting = "uniform"
    candidates: Period = "earlier"
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "same", tuple(self.same))
        check_positive_integers(rate=self.rate)
        check_choices(by=self.by, candidates=self.candidates)
        check_integers_from_zero(seed=self.seed)
