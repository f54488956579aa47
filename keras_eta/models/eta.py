"""ETA, End-to-End Target Attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from keras_eta.features import Features
from keras_eta.interest.base import InterestUnit
from keras_eta.interest.eta import ETAInterest, default_distance_edges
from keras_eta.interest.match import MatchInterest
from keras_eta.interest.recent import RecentInterest
from keras_eta.models.ranker import Ranker
from keras_eta.models.tasks import RetrievalTask
from keras_eta.validation import check_integers_from_zero


@tf.keras.utils.register_keras_serializable(package="keras_eta")
class ETA(Ranker):
    """End-to-End Target Attention: a `Ranker` with `RecentInterest`, `MatchInterest` and `ETAInterest`, ready made.

    The defaults add to the paper's ETA: planes that learn, attention by cosines, counts of what was retrieved by ranges
    of distance, counts of the behaviours with the candidate's item or attributes, how popular the candidate is, a
    `RetrievalTask`, which brings items of one taste near each other, and training for unknown ids. The paper's own has
    `similarity_bias=False, trainable_planes=False, cosine=False, distance_edges=(), matches=False, popularity=False,
    retrieval_task=None, id_dropout=0`.

    The item embeddings that the model ranks with are hashed to M-bit SimHash fingerprints; for each candidate the K
    behaviours nearest by Hamming distance are retrieved and attended to. A table of fingerprints beside the embeddings
    is exact after every training step, whatever the optimiser; see `keras_eta.layers.FingerprintedEmbedding`.

    Args:
        features: as `Ranker`.
        short_history_length: S, most recent behaviours attended to beside those retrieved. 0: none.
        num_heads: heads of both attentions.
        key_dim: width of a head. `None`: the candidate's width divided by the heads, rounded up.
        top_k: K, behaviours retrieved for each candidate.
        num_bits: M, bits of a fingerprint (of each hashed feature).
        seed: seed of the planes.
        similarity_bias: whether the similarity 1 - 2 * distance / M of a retrieved behaviour is added to its attention
            logits, with a learned scale for each head; in training it carries the straight-through gradient.
        trainable_planes: whether the planes learn by that path. Hashes the whole table again whenever they move.
        planes_period: steps between two moves of learned planes.
        cosine: whether the logits of both attentions are scaled cosines; see `TargetAttention`.
        distance_edges: ranges of distances in which retrieved behaviours are counted; see `ETAInterest`. `None`:
            `keras_eta.interest.default_distance_edges(num_bits)`; `()`: no counts.
        matches: whether the behaviours with the candidate's item, category and so on are counted; see `MatchInterest`.
        **kwargs: as `Ranker`, without `interests`. By default `retrieval_task=RetrievalTask()` (`None`: none),
            `id_dropout=0.01` and `popularity=True`.

    Call arguments:
        inputs: as `Ranker`.

    Returns:
        float32 [N] logits, before the sigmoid.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if an argument is out of its range, or planes are to learn without a similarity bias.

    Example:
        >>> features = keras_eta.Features(
        ...     item_id=keras_eta.Feature("item_id", vocabulary_size=100),
        ...     user=(keras_eta.Feature("user_id", vocabulary_size=10),),
        ... )
        >>> model = keras_eta.ETA(features, top_k=4)
        >>> model({"user_id": tf.constant([2]), "item_id": tf.constant([7]),
        ...        "history_item_id": tf.constant([[7, 5, 9]]), "history_length": tf.constant([3])}).shape
        TensorShape([1])

    Reference:
        Chen et al., "End-to-End User Behavior Retrieval in Click-Through Rate Prediction Model", arXiv 2108.04468.
    """

    def __init__(
        self,
        features: Features | None = None,
        *,
        short_history_length: int = 16,
        num_heads: int = 2,
        key_dim: int | None = None,
        top_k: int = 48,
        num_bits: int = 64,
        seed: int = 0,
        similarity_bias: bool = True,
        trainable_planes: bool = True,
        planes_period: int = 1,
        cosine: bool = True,
        distance_edges: Sequence[int] | None = None,
        matches: bool = True,
        **kwargs: Any,
    ) -> None:
        check_integers_from_zero(short_history_length=short_history_length)
        heads: dict[str, Any] = {"num_heads": num_heads, "key_dim": key_dim, "cosine": cosine}
        others: list[InterestUnit] = []
        if short_history_length:
            others.append(RecentInterest(short_history_length, **heads))
        if matches:
            others.append(MatchInterest())
        retrieved = ETAInterest(
            top_k=top_k,
            num_bits=num_bits,
            seed=seed,
            similarity_bias=similarity_bias,
            trainable_planes=trainable_planes,
            planes_period=planes_period,
            distance_edges=default_distance_edges(num_bits) if distance_edges is None else distance_edges,
            **heads,
        )
        defaults = {"retrieval_task": RetrievalTask(), "id_dropout": 0.01, "popularity": True}
        super().__init__(features, interests=[*others, retrieved], **{**defaults, **kwargs})
        self.short_history_length = short_history_length
        self.matches = matches

    @property
    def eta(self) -> ETAInterest:
        """The interest unit that retrieves by Hamming distance."""
        return self.interests[-1]

    def get_config(self) -> dict[str, Any]:
        config = {
            **super().get_config(),
            "short_history_length": self.short_history_length,
            "matches": self.matches,
        }
        del config["interests"]
        arguments = ("num_heads", "key_dim", "cosine", "top_k", "num_bits", "seed", "distance_edges")
        for name in (*arguments, "similarity_bias", "trainable_planes", "planes_period"):
            config[name] = getattr(self.eta, name)
        return config
