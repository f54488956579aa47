"""What each part of ETA is worth: one part changed at a time, all else as the benchmark has it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

import keras_eta
from benchmarks.quality.protocols import Protocol
from benchmarks.quality.results import Result
from benchmarks.quality.training import judged, train
from benchmarks.quality.units import LEARNED, NUM_BITS, TOP_K, ranker_of

if TYPE_CHECKING:
    from keras_eta.interest import ETAInterest

AXES: dict[str, tuple[Any, ...]] = {
    "M": (8, 16, 32, 64, 128, 256),
    "K": (8, 16, 48, 128, 256),
    "L": (64, 256, 512, 2_048),
    "task": ("no", "yes"),
    "planes": ("fixed", "learned"),
    "attention": ("plain", "cosine"),
    "counts": ("off", "on"),
}
# What ETA has where nothing is changed; its history is as long as the data set's usual one.
UNCHANGED = {"M": NUM_BITS, "K": TOP_K, "task": "yes", "planes": "learned", "attention": "cosine", "counts": "on"}


class Variant(NamedTuple):
    """ETA with one part changed.

    Attributes:
        axis: the part, of `AXES`.
        value: what it is in this variant.
    """

    axis: str
    value: Any

    @property
    def name(self) -> str:
        """The variant's name among results: all those in which nothing is changed are one."""
        return "eta" if UNCHANGED.get(self.axis) == self.value else f"eta {self.axis}={self.value}"

    @property
    def task(self) -> bool:
        """Whether it has a retrieval task."""
        return (self.axis, self.value) != ("task", "no")

    @property
    def cosine(self) -> bool:
        """Whether its attention goes by cosines."""
        return (self.axis, self.value) != ("attention", "plain")

    def unit(self) -> ETAInterest:
        """What reads the long history."""
        learned = {} if (self.axis, self.value) == ("planes", "fixed") else LEARNED
        top_k = self.value if self.axis == "K" else TOP_K
        num_bits = self.value if self.axis == "M" else NUM_BITS
        counts = (self.axis, self.value) != ("counts", "off")
        edges = keras_eta.interest.default_distance_edges(num_bits) if counts else ()
        return keras_eta.interest.ETAInterest(top_k, num_bits, distance_edges=edges, cosine=self.cosine, **learned)


def variants(axes: Sequence[str]) -> list[Variant]:
    """The variants along some of `AXES`, each name once."""
    found = {variant.name: variant for axis in axes for variant in (Variant(axis, value) for value in AXES[axis])}
    return list(found.values())


def run_variant(load: Callable[[int | None], Protocol], variant: Variant, seed: int, max_epochs: int) -> Result:
    """Trains and judges a variant.

    Args:
        load: gives the data set with histories of a length, `None` for the usual one.
        variant: the variant.
        seed: of initial weights and of the order of batches.
        max_epochs: passes over the training part at most.
    """
    data = load(variant.value if variant.axis == "L" else None)
    # Takes seconds: not for --help.
    import tensorflow as tf

    tf.keras.utils.set_random_seed(seed)
    model = ranker_of([variant.unit()], variant.name, data, variant.task, variant.cosine)
    trained = train(model, data, seed, max_epochs)
    return judged(model, data, trained, unit=variant.name, seed=seed, task=variant.task, cosine=variant.cosine)


def draw(results: Sequence[Result], path: Path) -> None:
    """Draws the grouped AUC of the test part along each axis, every seed a point."""
    names = {result.unit for result in results}
    axes = [axis for axis in AXES if any(Variant(axis, value).name in names - {"eta"} for value in AXES[axis])]
    figure = Figure(figsize=(3.4 * len(axes), 3.2), layout="constrained")
    panels = figure.subplots(1, len(axes), sharey=True, squeeze=False)[0]
    for panel, axis in zip(panels, axes, strict=True):
        values = [value for value in AXES[axis] if Variant(axis, value).name in names]
        points = [[r.grouped_auc for r in results if r.unit == Variant(axis, value).name] for value in values]
        panel.plot(range(len(values)), [np.mean(of_value) for of_value in points], color="C0")
        for place, of_value in enumerate(points):
            panel.plot([place] * len(of_value), of_value, "o", color="C0", alpha=0.5)
        panel.set_xticks(range(len(values)), [str(value) for value in values])
        panel.set(xlabel=axis)
        panel.grid(alpha=0.3)
    panels[0].set(ylabel="grouped AUC, test")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
