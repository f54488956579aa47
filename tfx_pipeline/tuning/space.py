"""What a search tries: flags of the ranker and its training, each with choices or a range."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from tfx_pipeline.config import Training
from tfx_pipeline.flags import options_of
from tfx_pipeline.model_config import ETAUnits, Model

Value = str | int | float

_MEANT = (
    "--search takes NAME=VALUE,VALUE or, of a number, NAME=LOWEST..HIGHEST, e.g. top_k=16,32,64 or "
    "'hidden_units=64,128 64' or dense_learning_rate=1e-4..1e-2."
)
# Same data and same weights to start from, so that trials differ by what is searched alone.
_FIXED = ("seed", "warm_start")
_OF_ANY_RANKER = (
    "embedding_learning_rate=0.02..0.5",
    "dense_learning_rate=2e-4..5e-3",
    "id_dropout=0,0.01,0.05",
    "hidden_units=64 32,128 64,256 128",
)
_OF_ETA = ("top_k=16,32,48,96", "num_bits=32,64,128", "short_history_length=8,16,32")


@dataclasses.dataclass(frozen=True)
class Dimension:
    """A flag that is searched, with choices or a range.

    Args:
        name: of the flag.
        default: of the flag.
        choices: what follows the flag, as text; yes and no where it stands alone.
        limits: lowest and highest of a range; integers for a flag that takes them.
    """

    name: str
    default: Any
    choices: tuple[str, ...] = ()
    limits: tuple[Any, ...] = ()

    @property
    def logarithmic(self) -> bool:
        """Whether the range is drawn from by magnitude: one of fractions above 0."""
        return bool(self.limits) and isinstance(self.default, float) and self.limits[0] > 0

    @property
    def examples(self) -> tuple[Value, ...]:
        """Values whose flags are right only if those of all are: the choices, or the ends of the range."""
        return self.choices or self.limits

    def flags(self, value: Value) -> list[str]:
        """The flag with a value, for a command line."""
        if isinstance(self.default, bool):
            return [f"--{self.name}" if value == as_text(True) else f"--no-{self.name}"]
        return [f"--{self.name}", *as_text(value).split(" ")]

    def given(self, flags: argparse.Namespace) -> Value:
        """The value that flags have without a search; of a number in a range, the number."""
        value = getattr(flags, self.name, self.default)
        return value if self.limits else as_text(value)


def space(texts: Sequence[str], of_eta: bool) -> tuple[Dimension, ...]:
    """The dimensions of `--search`.

    Args:
        texts: its values; none: learning rates, dropout of ids and widths and, of ETA, what its units retrieve.
        of_eta: whether the ranker is the one without `--interest`.

    Raises:
        ValueError: if one is not written as it must be, or names no flag that can be searched, or one is named twice.
    """
    known = {field.name: field.default for part in (Training, Model) for field in options_of(part)}
    if of_eta:
        known |= {field.name: field.default for field in options_of(ETAUnits)}
    # Defaults that say nothing of the type have no place in a table of values either.
    searched = {name: x for name, x in known.items() if isinstance(x, bool | int | float | str | tuple)}
    for name in _FIXED:
        del searched[name]
    dimensions = [_dimension(text, searched) for text in texts or (*_OF_ANY_RANKER, *(_OF_ETA if of_eta else ()))]
    names = [dimension.name for dimension in dimensions]
    if len(set(names)) < len(names):
        raise ValueError(f"--search must name a flag once. Received: {' '.join(names)}")
    return tuple(dimensions)


def flags_of(dimensions: Sequence[Dimension], values: Mapping[str, Value]) -> list[str]:
    """The flags with values by name, for a command line."""
    return [word for dimension in dimensions for word in dimension.flags(values[dimension.name])]


def _dimension(text: str, searched: Mapping[str, Any]) -> Dimension:
    name, _, values = text.partition("=")
    if name not in searched:
        raise ValueError(f"--search can't vary {name!r}; it can: {', '.join(sorted(searched))}. Received: {text!r}")
    try:
        return (_with_limits if ".." in values else _with_choices)(name, searched[name], values)
    except ValueError as error:
        raise ValueError(f"{_MEANT} Received: {text!r}: {error}") from error


def _with_choices(name: str, default: Any, values: str) -> Dimension:
    choices = [" ".join(choice.split()) for choice in values.split(",")]
    if isinstance(default, bool):
        if not set(choices) <= {as_text(True), as_text(False)}:
            raise ValueError(f"{name} takes yes,no")
    elif isinstance(default, int | float):
        # Spelt as the values of flags are, which they are compared with.
        choices = [as_text(type(default)(choice)) for choice in choices]
    if not all(choices) or len(set(choices)) < len(choices):
        raise ValueError("values must be there, and differ")
    return Dimension(name, default, tuple(choices))


def _with_limits(name: str, default: Any, values: str) -> Dimension:
    kind = type(default)
    if kind not in (int, float):
        raise ValueError(f"{name} is no number")
    lowest, highest = map(kind, values.split("..", 1))
    if not (math.isfinite(lowest) and math.isfinite(highest) and lowest < highest):
        raise ValueError("the lowest must lie below the highest")
    return Dimension(name, default, limits=(lowest, highest))


def as_text(value: Any) -> str:
    """A value as tables and command lines have it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        # Digits that tell enough of a rate, and that its trial takes.
        return f"{value:.6g}"
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
