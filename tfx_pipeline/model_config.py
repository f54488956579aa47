"""The ranker's part of the configuration of a pipeline run."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from keras_eta.validation import check_hidden_units, check_integers_from_zero, check_positive_integers, is_number
from tfx_pipeline.options import option

if TYPE_CHECKING:
    from keras_eta.interest import InterestUnit
    from keras_eta.models import RetrievalTask


@dataclasses.dataclass(frozen=True)
class ETAUnits:
    """Arguments of the default interest units, those of `keras_eta.ETA`.

    Raises:
        ValueError: if a number is out of its range.
    """

    top_k: int = option(48, "behaviours retrieved per candidate", metavar="K")
    num_bits: int = option(64, "bits of a fingerprint", metavar="M")
    similarity_bias: bool = option(True, "whether the similarity of fingerprints enters the attention")
    trainable_planes: bool = option(True, "whether the planes of the hash learn; needs --similarity_bias")
    planes_period: int = option(1, "steps between two moves of learned planes", metavar="N")
    short_history_length: int = option(16, "most recent behaviours attended to besides; 0: none", metavar="S")
    num_heads: int = option(2, "heads of both attentions", metavar="H")
    key_dim: int | None = option(
        None, "width of a head (default: the candidate's width divided by the heads)", type=int, metavar="D"
    )
    cosine: bool = option(True, "whether the logits of both attentions are scaled cosines")
    distance_edges: tuple[int, ...] | None = option(
        None,
        "count what is retrieved up to each of these distances and beyond the one before, for the MLP; no distance: no "
        "counts (default: nine distances in proportion to --num_bits)",
        type=int,
        nargs="*",
        metavar="DISTANCE",
    )
    matches: bool = option(True, "whether the behaviours with the candidate's item, category and so on are counted")

    def __post_init__(self) -> None:
        check_integers_from_zero(short_history_length=self.short_history_length)
        self.make()

    def make(self, seed: int = 0) -> tuple[InterestUnit, ...]:
        """The units.

        Args:
            seed: of the planes.
        """
        from keras_eta.interest import ETAInterest, MatchInterest, RecentInterest, default_distance_edges

        arguments = dataclasses.asdict(self)
        short_history_length, matches = arguments.pop("short_history_length"), arguments.pop("matches")
        if self.distance_edges is None:
            arguments["distance_edges"] = default_distance_edges(self.num_bits)
        heads = {name: arguments[name] for name in ("num_heads", "key_dim", "cosine")}
        recent = [RecentInterest(short_history_length, **heads)] if short_history_length else []
        return (*recent, *([MatchInterest()] if matches else []), ETAInterest(seed=seed, **arguments))


@dataclasses.dataclass(frozen=True)
class Model:
    """The ranker.

    Args:
        interests: the interest units, each as the JSON of `tf.keras.utils.serialize_keras_object(unit)`. Units
            themselves become such JSON.

    Raises:
        ValueError: if a number is out of its range, or `interests` are none or no JSON.
    """

    interests: tuple[str, ...] = dataclasses.field(
        default_factory=lambda: ETAUnits().make(),
        metadata={
            "meaning": "interest units, each as the JSON of tf.keras.utils.serialize_keras_object(unit), or @FILE "
            "with such JSON or a list of it (default: ETA's)",
            "argument": {"flag": "interest", "nargs": "+", "action": "extend", "metavar": "JSON"},
        },
    )
    hidden_units: tuple[int, ...] = option((128, 64), "widths of the MLP's hidden layers", metavar="N")
    activation: str = option("relu", "of the hidden layers, a name that Keras knows", metavar="NAME")
    cross_layers: int = option(0, "layers of DCN-v2 before the MLP", metavar="N")
    popularity: bool = option(True, "whether the MLP reads how often the training part has the candidate as a positive")
    id_dropout: float = option(
        0.01, "share of users', contexts' and candidates' ids that training takes for unknown ones", metavar="RATE"
    )
    retrieval_weight: float = option(
        1.0, "of the retrieval task's loss beside the click loss; 0: no such task", metavar="WEIGHT"
    )
    retrieval_temperature: float = option(0.1, "what the retrieval task divides cosines by", metavar="T")
    retrieval_recent: int = option(20, "most recent behaviours that the retrieval task draws from", metavar="N")

    def __post_init__(self) -> None:
        object.__setattr__(self, "interests", tuple(map(_unit_json, self.interests)))
        object.__setattr__(self, "hidden_units", tuple(self.hidden_units))
        if not self.interests:
            raise ValueError("`interests` must hold at least one interest unit. Received: interests=()")
        check_integers_from_zero(cross_layers=self.cross_layers)
        check_hidden_units(self.hidden_units)
        # TensorFlow, which the flags of a configuration do without.
        from keras_eta.models.mlp import check_activation

        check_activation(self.activation)
        if not (is_number(self.id_dropout) and 0 <= self.id_dropout < 1):
            raise ValueError(
                f"`id_dropout` must be a number from 0 to below 1. Received: id_dropout={self.id_dropout!r}"
            )
        if not (is_number(self.retrieval_weight) and self.retrieval_weight >= 0):
            raise ValueError(
                "`retrieval_weight` must be a number of at least 0. "
                f"Received: retrieval_weight={self.retrieval_weight!r}"
            )
        if not (is_number(self.retrieval_temperature) and self.retrieval_temperature > 0):
            raise ValueError(
                "`retrieval_temperature` must be a positive number. "
                f"Received: retrieval_temperature={self.retrieval_temperature!r}"
            )
        check_positive_integers(retrieval_recent=self.retrieval_recent)

    def short_history(self) -> Model | None:
        """The same ranker with the short history alone; `None` where that is all that there is.

        Of units that read none, one of the default length takes the place.
        """
        import tensorflow as tf

        from keras_eta.interest import RecentInterest

        kind = tf.keras.utils.get_registered_name(RecentInterest)
        recent = tuple(text for text in self.interests if json.loads(text).get("registered_name") == kind)
        if len(recent) == len(self.interests):
            return None
        default = RecentInterest(ETAUnits.short_history_length, num_heads=ETAUnits.num_heads, cosine=ETAUnits.cosine)
        return dataclasses.replace(self, interests=recent or (default,))

    @property
    def longest_recent(self) -> int:
        """The most recent behaviours that `RecentInterest` units and the retrieval task read."""
        lengths = (json.loads(text)["config"].get("length", 0) for text in self.interests)
        return max(*lengths, self.retrieval_recent if self.retrieval_weight else 0)

    def retrieval_task(self) -> RetrievalTask | None:
        """The retrieval task; `None` at a weight of 0."""
        if not self.retrieval_weight:
            return None
        from keras_eta.models import RetrievalTask

        return RetrievalTask(self.retrieval_weight, self.retrieval_temperature, self.retrieval_recent)


def _unit_json(unit: Any) -> str:
    """An interest unit, or its JSON, as JSON with sorted keys."""
    import tensorflow as tf

    from keras_eta.interest import InterestUnit

    config = tf.keras.utils.serialize_keras_object(unit) if isinstance(unit, InterestUnit) else unit
    try:
        config = json.loads(config) if isinstance(config, str) else config
    except json.JSONDecodeError as error:
        raise ValueError(
            f"`interests` must hold JSON objects. Received: {unit!r}, which is no JSON: {error}"
        ) from error
    if not isinstance(config, dict) or not {"class_name", "config"} <= config.keys():
        raise ValueError(
            "`interests` must hold JSON objects with `class_name` and `config`, as "
            f"`tf.keras.utils.serialize_keras_object` gives them of a unit. Received: {unit!r}"
        )
    return json.dumps(config, sort_keys=True)
