"""The client for asyncio: what test_client.py does not hold for both clients at once."""

from __future__ import annotations

import asyncio
import inspect
import time
from typing import Any

import grpc
import numpy as np
import pytest

from serving.client import AsyncRankingClient, RankingClient, ServingError

# A candidate's score: the ratings of its item in the history, 0.5 for each behaviour of its category, user_id / 1,000
# and hour / 100.
REQUEST: dict[str, Any] = {
    "candidates": {"item_id": [10, 20, 30, 40], "category_id": [1, 2, 3, 3]},
    "history": {"item_id": [30, 10, 30], "category_id": [3, 1, 3], "rating": [5.0, 4.0, 2.0]},
    "context": {"hour": 20},
}
SCORES = np.array([4.7, 0.2, 8.2, 1.2])
FAKE_REQUEST: dict[str, Any] = {"candidates": {"item_id": [1, 2, 3]}, "history": {"item_id": [7]}}


async def wait_for(condition: Any, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        await asyncio.sleep(0.01)


def test_every_method(contract_servers: dict[str, str]) -> None:
    inputs: dict[str, Any] = {"user_id": [8], "hour": [20], "item_id": [10], "category_id": [1], "history_length": [3]}
    inputs |= {f"history_{name}": [values] for name, values in REQUEST["history"].items()}

    async def calls() -> None:
        async with AsyncRankingClient(contract_servers["int64"], "eta") as client:
            await client.wait_until_ready(timeout=20)
            assert [(status.version, status.state) for status in await client.status()] == [(7, "AVAILABLE")]
            assert list((await client.metadata()).signatures) == ["examples", "explain", "rank", "serving_default"]
            ranking = await client.rank(**REQUEST, user={"user_id": 8})
            np.testing.assert_allclose(ranking.probability, SCORES + 0.008, rtol=1e-6)
            assert ranking.model_version == 7
            shorter = await client.rank(**REQUEST, user={"user_id": 8}, history_length=1)
            np.testing.assert_allclose(shorter.probability, [0.208, 0.208, 5.708, 0.708], rtol=1e-6)
            explanation = await client.explain(**REQUEST, user={"user_id": 8})
            assert explanation.positions.tolist() == [[1, 0], [0, 1], [0, 2], [0, 1]]
            outputs = await client.predict(inputs)
            np.testing.assert_allclose(outputs["probability"], [4.708], rtol=1e-6)

    asyncio.run(calls())


def test_the_same_methods_and_arguments() -> None:
    def public(client: type) -> dict[str, list[tuple[str, Any]]]:
        return {
            name: [(parameter.name, parameter.default) for parameter in inspect.signature(function).parameters.values()]
            for name, function in inspect.getmembers(client, inspect.isfunction)
            if name[0] != "_" or name == "__init__"
        }

    assert public(AsyncRankingClient) == public(RankingClient)
    assert len(public(RankingClient)) == 12


def test_tasks_get_their_own_answers(contract_servers: dict[str, str]) -> None:
    """Fifty tasks on one client, each with a user of its own, which the scores give away; every other one is split."""

    async def calls() -> list[Any]:
        target = contract_servers["int64"]
        async with AsyncRankingClient(target) as whole, AsyncRankingClient(target, max_candidates=3) as split:
            clients = [whole, split] * 25
            return await asyncio.gather(
                *(client.rank(**REQUEST, user={"user_id": user}) for user, client in enumerate(clients))
            )

    rankings = asyncio.run(calls())
    assert len(rankings) == 50
    for user, ranking in enumerate(rankings):
        np.testing.assert_allclose(ranking.probability, SCORES + user / 1_000, rtol=1e-6)


def test_the_loop_goes_on_during_a_call(fake: Any) -> None:
    fake.seconds = 0.5

    async def calls() -> int:
        async with AsyncRankingClient(fake.address) as client:
            task = asyncio.create_task(client.rank(**FAKE_REQUEST))
            ticks = 0
            while not task.done():
                await asyncio.sleep(0.01)
                ticks += 1
            assert (await task).probability.tolist() == [1_001, 1_002, 1_003]
            return ticks

    assert asyncio.run(calls()) > 10


def test_the_loop_goes_on_while_waiting_for_a_server(fake: Any) -> None:
    """The fake server knows no status: `wait_until_ready` asks again and again, and pauses in between."""

    async def calls() -> int:
        async with AsyncRankingClient(fake.address) as client:
            task = asyncio.create_task(client.wait_until_ready(timeout=0.5))
            ticks = 0
            while not task.done():
                await asyncio.sleep(0.01)
                ticks += 1
            with pytest.raises(ServingError, match="answered UNIMPLEMENTED: Method not found!"):
                await task
            return ticks

    began = time.monotonic()
    assert asyncio.run(calls()) > 10
    assert 0.5 <= time.monotonic() - began < 5


def test_a_cancelled_task_cancels_its_calls(fake: Any) -> None:
    fake.seconds = 1.0

    async def calls() -> None:
        async with AsyncRankingClient(fake.address, max_candidates=1) as client:
            task = asyncio.create_task(client.rank(**FAKE_REQUEST))
            await wait_for(lambda: fake.running == 3)
            began = time.monotonic()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await wait_for(lambda: fake.ended == 3)
            assert time.monotonic() - began < 0.5
            # The client is as good as before.
            fake.seconds = 0.0
            assert (await client.rank(**FAKE_REQUEST)).probability.tolist() == [1_001, 1_002, 1_003]

    asyncio.run(calls())


def test_one_part_refused_cancels_the_others(fake: Any) -> None:
    fake.failures = [grpc.StatusCode.INTERNAL]
    fake.seconds, fake.fails_at_once = 3.0, True

    async def calls() -> None:
        async with AsyncRankingClient(fake.address, max_candidates=1) as client:
            began = time.monotonic()
            with pytest.raises(ServingError, match="answered INTERNAL: told so"):
                await client.rank(**FAKE_REQUEST)
            await wait_for(lambda: fake.ended == len(fake.requests))
            assert time.monotonic() - began < 2

    asyncio.run(calls())


def test_outside_of_a_loop() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        AsyncRankingClient()
