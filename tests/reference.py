"""What keras_eta computes, in plain loops over NumPy arrays and Python integers. Imports nothing of keras_eta."""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

WORD_BITS = 64


def pack_bits(bits: Iterable[bool]) -> list[int]:
    """Bit j in word j // 64 at position j % 64, each word read as a signed 64-bit integer."""
    words: list[int] = []
    for j, bit in enumerate(bits):
        if j % WORD_BITS == 0:
            words.append(0)
        if bit:
            words[-1] += 1 << (j % WORD_BITS)
    return [word - (1 << WORD_BITS) if word >= 1 << (WORD_BITS - 1) else word for word in words]


def unpack_words(words: Sequence[int], num_bits: int) -> list[bool]:
    """The inverse of `pack_bits`."""
    unsigned = [int(word) % (1 << WORD_BITS) for word in words]
    return [bool((unsigned[j // WORD_BITS] >> (j % WORD_BITS)) & 1) for j in range(num_bits)]


def projections(x: np.ndarray, planes: np.ndarray) -> np.ndarray:
    """x . H of [n, D] rows, in float64."""
    result = np.zeros([len(x), planes.shape[1]])
    for i in range(len(x)):
        for j in range(planes.shape[1]):
            result[i, j] = np.sum(x[i].astype(np.float64) * planes[:, j].astype(np.float64))
    return result


def simhash(x: np.ndarray, planes: np.ndarray) -> np.ndarray:
    """Fingerprints int64 [n, W] of [n, D] rows: bit j is 1 where x . planes[:, j] > 0."""
    return np.array([pack_bits(value > 0 for value in row) for row in projections(x, planes)], np.int64)


def hamming_distance(a: Sequence[int], b: Sequence[int]) -> int:
    """Differing bits of two fingerprints, each a sequence of words."""
    return sum(bin((int(x) ^ int(y)) % (1 << WORD_BITS)).count("1") for x, y in zip(a, b, strict=True))


def hamming_top_k(
    candidate: np.ndarray, history: np.ndarray, top_k: int, mask: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions, distances and mask [C, K] for candidates [C, W] and one history [L, W], nearest first."""
    num_words = history.shape[1]
    positions = np.zeros([len(candidate), top_k], np.int32)
    distances = np.full([len(candidate), top_k], WORD_BITS * num_words + 1, np.int32)
    found = np.zeros([len(candidate), top_k], bool)
    for c, fingerprint in enumerate(candidate):
        real = [i for i in range(len(history)) if mask is None or mask[i]]
        nearest = sorted((hamming_distance(fingerprint, history[i]), i) for i in real)[:top_k]
        for column, (distance, position) in enumerate(nearest):
            positions[c, column], distances[c, column], found[c, column] = position, distance, True
    return positions, distances, found


def inner_product_top_k(
    candidate: np.ndarray, history: np.ndarray, top_k: int, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Positions and mask [C, K] of the largest inner products of [C, D] with [L, D]; ties to the lower position."""
    positions = np.zeros([len(candidate), top_k], np.int32)
    found = np.zeros([len(candidate), top_k], bool)
    for c, vector in enumerate(candidate):
        best = sorted((-float(vector @ history[i]), i) for i in range(len(history)) if mask[i])[:top_k]
        for column, (_, position) in enumerate(best):
            positions[c, column], found[c, column] = position, True
    return positions, found


def straight_through_gradient(x: np.ndarray, planes: np.ndarray, upstream: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gradients for x [n, D] and planes [D, M] of sum(upstream * codes(x)), codes passing it where |x . H| <= 1."""
    projected = projections(x, planes)
    for_x, for_planes = np.zeros(x.shape), np.zeros(planes.shape)
    for i in range(len(x)):
        for j in range(planes.shape[1]):
            if abs(projected[i, j]) <= 1.0:
                for_x[i] += upstream[i, j] * planes[:, j]
                for_planes[:, j] += upstream[i, j] * x[i]
    return for_x, for_planes


def softmax(logits: Sequence[float]) -> list[float]:
    largest = max(logits)
    exponentials = [math.exp(logit - largest) for logit in logits]
    return [exponential / sum(exponentials) for exponential in exponentials]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The cosine of two vectors, 0 where one of them is zero."""
    lengths = math.sqrt(sum(float(x) ** 2 for x in a)) * math.sqrt(sum(float(x) ** 2 for x in b))
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True)) / lengths if lengths else 0.0


def retrieval_loss(
    candidates: np.ndarray,
    behaviours: np.ndarray,
    items: Sequence[int],
    weights: Sequence[float],
    drawn: Mapping[int, int],
    temperature: float,
) -> float:
    """The in-batch sampled softmax of candidates [N, D] and the behaviours [N, D] that were drawn for them.

    `items` are those of the behaviours, `weights` 0 for rows that do not take part, `drawn` how often each item was
    drawn before.
    """
    rows = [i for i in range(len(items)) if weights[i] > 0]
    counts = collections.Counter(drawn)
    for i in rows:
        counts[items[i]] += 1
    total = 0.0
    for i in rows:
        rivals = [i, *(j for j in rows if items[j] != items[i])]
        logits = [cosine(candidates[i], behaviours[j]) / temperature - math.log(counts[items[j]]) for j in rivals]
        total -= weights[i] * math.log(softmax(logits)[0])
    return total / sum(weights[i] for i in rows) if rows else 0.0


def log_counts(distances: Sequence[float], edges: Sequence[int]) -> list[float]:
    """log(1 + n) of the distances up to each edge and beyond the one before."""
    counts = [0] * len(edges)
    for distance in distances:
        reached = [place for place, edge in enumerate(edges) if distance <= edge]
        if reached:
            counts[reached[0]] += 1
    return [math.log(1 + count) for count in counts]


def matches(wanted: int, present: Sequence[int], unknown: int = 1) -> tuple[int, int]:
    """How many of the values, most recent first, equal the wanted one, and the first of them (0 where there is none).

    Values up to `unknown` are padding and unknown ones, which equal nothing.
    """
    places = [place for place, value in enumerate(present) if value == wanted and wanted > unknown]
    return len(places), places[0] if places else 0


def target_attention(
    query: np.ndarray,
    behaviours: np.ndarray,
    mask: Sequence[bool],
    weights: Mapping[str, np.ndarray],
    num_heads: int,
    similarity: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Interest [H * key_dim] and weights [H, K] of one query [D] over its behaviours [K, D'].

    `weights` holds the kernels and biases `query_kernel`, `query_bias`, `key_kernel`, `key_bias`, `value_kernel`,
    `value_bias`, `output_kernel`, and `similarity_scale` [H] where `similarity` [K] is given. With `cosine_scale` [H]
    among them the logits are cosines of queries and keys, these without a bias, by that scale.
    """
    width = weights["query_kernel"].shape[1]
    key_dim = width // num_heads
    q = query @ weights["query_kernel"] + weights["query_bias"]
    attention = np.zeros([num_heads, len(behaviours)])
    heads = np.zeros(width)
    real = [i for i in range(len(behaviours)) if mask[i]]
    for head in range(num_heads):
        columns = slice(head * key_dim, (head + 1) * key_dim)
        logits = []
        for i in real:
            if "cosine_scale" in weights:
                key = (behaviours[i] @ weights["key_kernel"])[columns]
                logit = float(weights["cosine_scale"][head]) * cosine(q[columns], key)
            else:
                key = (behaviours[i] @ weights["key_kernel"] + weights["key_bias"])[columns]
                logit = float(q[columns] @ key) / math.sqrt(key_dim)
            if similarity is not None:
                logit += float(weights["similarity_scale"][head] * similarity[i])
            logits.append(logit)
        for i, weight in zip(real, softmax(logits) if real else [], strict=True):
            attention[head, i] = weight
            heads[columns] += weight * (behaviours[i] @ weights["value_kernel"] + weights["value_bias"])[columns]
    return heads @ weights["output_kernel"], attention


def attention_weights(layer: Any) -> dict[str, np.ndarray]:
    """The kernels and biases of a target attention layer whose keys and values are projected side by side."""
    key_kernel, value_kernel = np.split(layer.key_value_projection.kernel.numpy(), 2, axis=1)
    key_bias, value_bias = np.split(layer.key_value_projection.bias.numpy(), 2)
    weights = {
        "query_kernel": layer.query_projection.kernel.numpy(),
        "query_bias": layer.query_projection.bias.numpy(),
        "key_kernel": key_kernel,
        "key_bias": key_bias,
        "value_kernel": value_kernel,
        "value_bias": value_bias,
        "output_kernel": layer.output_projection.kernel.numpy(),
    }
    if layer.similarity_bias:
        weights["similarity_scale"] = layer.similarity_scale.numpy()
    if layer.cosine:
        weights["cosine_scale"] = layer.cosine_scale.numpy()
    return weights


def dice(x: np.ndarray, mean: np.ndarray, variance: np.ndarray, alpha: np.ndarray, epsilon: float) -> np.ndarray:
    """Dice of [n, D] with given statistics [D]."""
    result = np.zeros(x.shape)
    for i in range(x.shape[0]):
        for channel in range(x.shape[1]):
            s = float(x[i, channel])
            p = 1.0 / (1.0 + math.exp(-(s - mean[channel]) / math.sqrt(variance[channel] + epsilon)))
            result[i, channel] = p * s + (1.0 - p) * alpha[channel] * s
    return result


def dice_training(
    x: np.ndarray, alpha: np.ndarray, epsilon: float, momentum: float, mean: np.ndarray, variance: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Dice of [n, D] with the batch's statistics, and the moving mean and variance after it."""
    batch_mean, batch_variance = np.zeros(x.shape[1]), np.zeros(x.shape[1])
    for channel in range(x.shape[1]):
        batch_mean[channel] = sum(float(value) for value in x[:, channel]) / len(x)
        squares = sum((float(value) - batch_mean[channel]) ** 2 for value in x[:, channel])
        batch_variance[channel] = squares / len(x)
    return (
        dice(x, batch_mean, batch_variance, alpha, epsilon),
        momentum * mean + (1.0 - momentum) * batch_mean,
        momentum * variance + (1.0 - momentum) * batch_variance,
    )


def activation_unit(
    query: np.ndarray,
    behaviours: np.ndarray,
    mask: Sequence[bool],
    layers: Sequence[Mapping[str, Any]],
    weight_kernel: np.ndarray,
    weight_bias: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Interest [D] and weights [K] of DIN's unit for one query [D] and behaviours [K, D], at inference.

    Each of `layers` holds `kernel`, `bias` and the arguments `mean`, `variance`, `alpha`, `epsilon` of its Dice.
    """
    interest, weights = np.zeros(len(query)), np.zeros(len(behaviours))
    for i, behaviour in enumerate(behaviours):
        if not mask[i]:
            continue
        hidden = np.concatenate([query, behaviour, query - behaviour, query * behaviour])
        for layer in layers:
            hidden = hidden @ layer["kernel"] + layer["bias"]
            statistics = {name: layer[name] for name in ("mean", "variance", "alpha", "epsilon")}
            hidden = dice(hidden[np.newaxis], **statistics)[0]
        weights[i] = float((hidden @ weight_kernel + weight_bias)[0])
        interest += weights[i] * behaviour
    return interest, weights


def age_bucket(timestamp: int, history_timestamp: int, boundaries: Sequence[int]) -> int:
    """The bucket of a real behaviour's age."""
    age = max(int(timestamp) - int(history_timestamp), 0)
    bucket = 1
    for boundary in boundaries:
        if age >= boundary:
            bucket += 1
    return bucket


def auc(labels: Sequence[float], scores: Sequence[float], weights: Sequence[float] | None = None) -> float:
    """Share of pairs of a positive and a negative in which the positive scores higher, a tie counting one half."""
    weights = [1.0] * len(labels) if weights is None else weights
    rows = list(zip(labels, scores, weights, strict=True))
    won = total = 0.0
    for label, score, weight in rows:
        for other_label, other_score, other_weight in rows:
            if label == 1 and other_label == 0:
                total += weight * other_weight
                won += weight * other_weight * (1.0 if score > other_score else 0.5 if score == other_score else 0.0)
    return won / total if total else math.nan


def grouped_auc(labels: Sequence[float], scores: Sequence[float], groups: Sequence[Any]) -> float:
    """AUC of each group that has both classes, weighted by its rows."""
    weighted = rows = 0.0
    for group in set(groups):
        members = [i for i in range(len(groups)) if groups[i] == group]
        value = auc([labels[i] for i in members], [scores[i] for i in members])
        if not math.isnan(value):
            weighted += len(members) * value
            rows += len(members)
    return weighted / rows if rows else math.nan


def log_loss(labels: Sequence[float], logits: Sequence[float], weights: Sequence[float] | None = None) -> float:
    """Mean of -log p(label), p = sigmoid(logit)."""
    weights = [1.0] * len(labels) if weights is None else weights
    total = 0.0
    for label, logit, weight in zip(labels, logits, weights, strict=True):
        # log(1 + exp(z)) without overflow, z the margin by which the logit is wrong.
        margin = -logit if label == 1 else logit
        total += weight * (max(margin, 0.0) + math.log1p(math.exp(-abs(margin))))
    return total / sum(weights)


def vocabulary(values: Iterable[Any], size: int | None = None) -> list[Any]:
    """Most frequent values first, equals in their own order, cut at `size`."""
    counts = collections.Counter(values)
    return sorted(counts, key=lambda value: (-counts[value], value))[:size]


def encode(value: Any, known: Sequence[Any], num_oov_indices: int) -> int | range:
    """The embedding row of a raw id; for an unknown one the range of the out-of-vocabulary rows."""
    if value in known:
        return 1 + num_oov_indices + list(known).index(value)
    return range(1, 1 + num_oov_indices)


def largest(scores: Sequence[float], top_k: int) -> tuple[list[int], list[float]]:
    """Positions and values of the largest scores, ties to the lower position."""
    best = sorted((-score, position) for position, score in enumerate(scores))[:top_k]
    return [position for _, position in best], [-score for score, _ in best]


def sdim(
    candidate: Sequence[bool], behaviours: Sequence[Sequence[bool]], vectors: np.ndarray, group_size: int
) -> np.ndarray:
    """SDIM's interest [D]: the mean over signatures of the normalised sums of vectors [n, D] that share them.

    `candidate` and each of `behaviours` are the bits of a hash, `group_size` of which make a signature.
    """
    groups = range(0, len(candidate), group_size)
    total = np.zeros(vectors.shape[1])
    for start in groups:
        signature = list(candidate[start : start + group_size])
        collided = np.zeros(vectors.shape[1])
        for bits, vector in zip(behaviours, vectors, strict=True):
            if list(bits[start : start + group_size]) == signature:
                collided += vector
        norm = math.sqrt(sum(float(value) ** 2 for value in collided))
        total += collided / norm if norm else collided
    return total / len(groups)


def sim_soft(
    candidate: np.ndarray, behaviours: np.ndarray, candidate_kernel: np.ndarray, behaviour_kernel: np.ndarray
) -> tuple[list[float], np.ndarray]:
    """r_i = (W_b e_i) . (W_a e_a) of SIM's soft search for one candidate [D], and U = sum_i r_i e_i [D]."""
    scores, pooled = [], np.zeros(len(candidate))
    target = candidate @ candidate_kernel
    for behaviour in behaviours:
        score = sum(float(x) * float(y) for x, y in zip(behaviour @ behaviour_kernel, target, strict=True))
        scores.append(score)
        pooled += score * behaviour
    return scores, pooled


def take_in_turn(rankings: Sequence[Sequence[int]], top_k: int) -> list[int]:
    """The first `top_k` different positions: the first of each ranking in turn, then the second of each."""
    taken: list[int] = []
    for rank in range(max(map(len, rankings), default=0)):
        for ranking in rankings:
            if rank < len(ranking) and ranking[rank] not in taken and len(taken) < top_k:
                taken.append(ranking[rank])
    return taken


def twin(
    query: np.ndarray,
    inherent: np.ndarray,
    cross: Sequence[np.ndarray],
    kernels: Mapping[str, Any],
    num_heads: int,
    top_k: int,
    sizes: Sequence[float] | None = None,
) -> tuple[np.ndarray, list[int], list[float], np.ndarray]:
    """TWIN's interest [H * key_dim], positions, largest alpha of the heads and weights [H, K'] for one candidate [D].

    `inherent` [n, D] and `cross`, a [n, width] for each cross feature, are the behaviours. `kernels` holds `query`,
    `key`, `value` and `output`, and for each cross feature in `cross` a kernel [width, H] and in `scale` the beta [H].
    With `sizes` [n] the behaviours are TWIN-V2's clusters.
    """
    key_dim = kernels["query"].shape[1] // num_heads
    n = len(inherent)
    alpha = np.zeros([num_heads, n])
    for head in range(num_heads):
        columns = slice(head * key_dim, (head + 1) * key_dim)
        for i in range(n):
            product = (inherent[i] @ kernels["key"][:, columns]) @ (query @ kernels["query"][:, columns])
            alpha[head, i] = float(product) / math.sqrt(key_dim)
            for j, values in enumerate(cross):
                scalar = sum(float(x) * float(w) for x, w in zip(values[i], kernels["cross"][j][:, head], strict=True))
                alpha[head, i] += scalar * float(kernels["scale"][j][head])
            alpha[head, i] += 0.0 if sizes is None else math.log(sizes[i])
    positions = take_in_turn([largest(row, top_k)[0] for row in alpha], top_k)
    weights, heads = np.zeros([num_heads, len(positions)]), np.zeros(num_heads * key_dim)
    for head in range(num_heads if positions else 0):
        columns = slice(head * key_dim, (head + 1) * key_dim)
        weights[head] = softmax([alpha[head, i] for i in positions])
        for weight, i in zip(weights[head], positions, strict=True):
            whole = np.concatenate([inherent[i], *(values[i] for values in cross)])
            heads[columns] += weight * (whole @ kernels["value"][:, columns])
    return heads @ kernels["output"], positions, [max(alpha[:, i]) for i in positions], weights


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def gru(x: np.ndarray, h: np.ndarray, kernel: np.ndarray, recurrent_kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """The next state [D] of Keras's GRU: gates z, r and the new state side by side, biases of both kernels [2, 3 D]."""
    inputs, states = np.split(x @ kernel + bias[0], 3), np.split(h @ recurrent_kernel + bias[1], 3)
    z, r = sigmoid(inputs[0] + states[0]), sigmoid(inputs[1] + states[1])
    return z * h + (1.0 - z) * np.tanh(inputs[2] + r * states[2])


def mimn(behaviours: np.ndarray, weights: Mapping[str, Any], induction_slots: int) -> dict[str, np.ndarray]:
    """MIMN's state after behaviours [n, D], oldest first.

    `weights` holds `initial_memory` [m, D'], `rebalance` [m, m], `controller` and `induction`, each the weights of a
    GRU, and `heads`, the kernel and bias that give read key, write key, erase and add.
    """
    memory = weights["initial_memory"].astype(np.float64)
    num_slots, width = memory.shape
    induction, writes, read = np.zeros([num_slots, width]), np.zeros(num_slots), np.zeros(width)
    controller = np.zeros(weights["controller"][1].shape[0])

    def address(key: np.ndarray) -> np.ndarray:
        lengths = [float(np.linalg.norm(slot) * np.linalg.norm(key)) for slot in memory]
        return np.array(softmax([float(slot @ key) / length for slot, length in zip(memory, lengths, strict=True)]))

    for behaviour in behaviours:
        controller = gru(np.concatenate([behaviour, read]), controller, *weights["controller"])
        kernel, bias = weights["heads"]
        read_key, write_key, erase, add = np.split(controller @ kernel + bias, 4)
        read_weights = address(read_key)
        write_weights = address(write_key) * np.array(softmax(list(writes @ weights["rebalance"])))
        before = memory.copy()
        read = sum(read_weights[i] * before[i] for i in range(num_slots))
        for i in range(num_slots):
            memory[i] = (1.0 - write_weights[i] * sigmoid(erase)) * before[i] + write_weights[i] * np.tanh(add)
        for i in sorted(range(num_slots), key=lambda i: -read_weights[i])[:induction_slots]:
            induction[i] = gru(np.concatenate([before[i], behaviour]), induction[i], *weights["induction"])
        writes = writes + write_weights
    return {"memory": memory, "induction": induction, "writes": writes, "controller": controller, "read": read}
