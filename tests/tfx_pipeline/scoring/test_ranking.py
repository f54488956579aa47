"""Which requests share a call of `rank`, and how they are padded."""

from __future__ import annotations

import numpy as np
import pytest

from tfx_pipeline.scoring.ranking import Part, calls, padded_inputs, probabilities
from tfx_pipeline.scoring.requests import Request


def request(candidates: int, behaviours: int = 1) -> Request:
    inputs = {
        "item": np.arange(1, candidates + 1),
        "name": np.array([b"x\x00"] * candidates, object),
        "history": np.full((behaviours, 2), 7),
        "user": np.array(b"u\x00", object),
    }
    return Request(inputs, {"": candidates, "history": behaviours}, ())


AXES = {"item": "", "name": "", "history": "history", "user": None}


def test_every_candidate_is_asked_for_once_in_calls_of_bounded_size() -> None:
    sizes = [*np.random.default_rng(0).integers(0, 60, 200).tolist(), *[1] * 40, 999, 1_000, 1_001, 2_500]
    requests = [request(size, 1 + size % 7) for size in sizes]
    found = calls(requests)
    asked = [(part.request, place) for parts in found for part in parts for place in range(part.start, part.end)]
    assert sorted(asked) == [(number, place) for number, size in enumerate(sizes) for place in range(size)]
    assert len(found) < 40
    for parts in found:
        assert len(parts) <= 32
        assert len(parts) * max(part.end - part.start for part in parts) <= 1_000


def test_requests_of_like_sizes_share_a_call() -> None:
    requests = [request(8, 50), request(9, 1), request(100, 50), request(8, 1), request(15, 50)]
    assert calls(requests) == [[Part(1, 0, 9), Part(3, 0, 8), Part(0, 0, 8), Part(4, 0, 15)], [Part(2, 0, 100)]]
    many = [request(100, length) for length in (1, 90, 2, 91, 3, 92, 4, 93, 5, 94, 6, 95, 7, 96, 8, 97, 9, 98, 10, 99)]
    short, long = calls(many)
    assert {len(many[part.request].inputs["history"]) for part in short} == set(range(1, 11))
    assert {len(many[part.request].inputs["history"]) for part in long} == set(range(90, 100))


def test_shorter_lists_are_padded_behind() -> None:
    inputs = padded_inputs([request(3, 0), request(9, 0)], [Part(0, 0, 3), Part(1, 4, 6)], AXES)
    assert inputs["item"].tolist() == [[1, 2, 3], [5, 6, 0]]
    assert inputs["name"].tolist() == [[b"x\x00"] * 3, [b"x\x00", b"x\x00", b""]]
    assert inputs["user"].tolist() == [b"u\x00", b"u\x00"]
    assert inputs["history"].tolist() == [[[0, 0]], [[0, 0]]]


def test_padded_candidates_get_no_probability() -> None:
    def rank(inputs: dict[str, np.ndarray]) -> np.ndarray:
        return np.where(inputs["item"] == 0, 1, inputs["item"] / 10_000).astype(np.float32)

    requests = [request(3), request(0), request(2_300), request(5)]
    found = probabilities(rank, requests, AXES)  # type: ignore[arg-type]
    for size, row in zip((3, 0, 2_300, 5), found, strict=True):
        assert row.dtype == np.float32
        np.testing.assert_array_equal(row, (np.arange(1, size + 1) / 10_000).astype(np.float32))


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"^The model's 'rank' gives probabilities that are not finite\.$"):
        probabilities(lambda inputs: np.full(inputs["item"].shape, np.nan), [request(1)], AXES)  # type: ignore[arg-type]
