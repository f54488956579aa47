"""TIGER in plain NumPy, one row at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Weights = Mapping[str, np.ndarray]


def layer_norm(x: np.ndarray, weights: Weights) -> np.ndarray:
    """Over the last axis, with epsilon 1e-6."""
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * weights["gamma"] + weights["beta"]


def attention(query: np.ndarray, memory: np.ndarray, weights: Mapping[str, Weights], causal: bool) -> np.ndarray:
    """[Q, D] of queries [Q, D] and what they attend to, [S, D]: head by head, query by query."""
    out = np.zeros_like(query) + weights["output"]["bias"]
    for head in range(weights["query"]["kernel"].shape[1]):
        q, k, v = (
            x @ weights[part]["kernel"][:, head] + weights[part]["bias"][head]
            for part, x in (("query", query), ("key", memory), ("value", memory))
        )
        for row in range(len(q)):
            seen = row + 1 if causal else len(k)
            logits = k[:seen] @ q[row] / np.sqrt(q.shape[1])
            share = np.exp(logits - logits.max())
            out[row] += (share / share.sum()) @ v[:seen] @ weights["output"]["kernel"][head]
    return out


def feed_forward(x: np.ndarray, weights: Mapping[str, Weights]) -> np.ndarray:
    """[n, D] with the residual connection."""
    inner = np.maximum(layer_norm(x, weights["norm"]) @ weights["inner"]["kernel"] + weights["inner"]["bias"], 0)
    return x + inner @ weights["outer"]["kernel"] + weights["outer"]["bias"]


def item_logits(
    history: Sequence[Sequence[int] | None],
    item: Sequence[int],
    sizes: Sequence[int],
    weights: Mapping[str, dict],
    spelt: bool,
    user: int | None = None,
) -> list[np.ndarray]:
    """The logits of each token of an item.

    Args:
        history: the codes of each behaviour, most recent first; `None` for one whose item is unknown.
        item: codes of the item.
        sizes: number of codes of each level.
        weights: `tokens`, `positions`, `starts`, and by the model's names those of blocks, norms and heads.
        spelt: whether the tokens of a behaviour are read one by one, or their sum.
        user: row of the user among `users`, which is read before the history.
    """
    first = np.concatenate([[1], 1 + np.cumsum(sizes)])
    x = [weights["starts"][0]] + ([] if user is None else [weights["users"][user]])
    for position, codes in enumerate(history):
        vectors = [
            weights["tokens"][first[level] + code] + weights["positions"][position]
            for level, code in enumerate(codes or ())
        ]
        if vectors:
            x += vectors if spelt else [np.sum(vectors, axis=0)]
    encoded = np.array(x)
    for block in weights["encoder"]:
        normed = layer_norm(encoded, block["norm"])
        encoded = feed_forward(encoded + attention(normed, normed, block["attention"], False), block["feed_forward"])
    encoded = layer_norm(encoded, weights["encoder_norm"])
    y = np.array(weights["starts"][1:])
    for level in range(1, len(sizes)):
        y[level] += weights["tokens"][first[level - 1] + item[level - 1]]
    for block in weights["decoder"]:
        normed = layer_norm(y, block["self_norm"])
        y = y + attention(normed, normed, block["self_attention"], True)
        y = y + attention(layer_norm(y, block["cross_norm"]), encoded, block["cross_attention"], False)
        y = feed_forward(y, block["feed_forward"])
    y = layer_norm(y, weights["decoder_norm"])
    return [y[level] @ head["kernel"] + head["bias"] for level, head in enumerate(weights["heads"])]
