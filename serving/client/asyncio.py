"""The client for asyncio."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, TypeVar

import grpc
import numpy as np

from serving.client.answers import Explanation, Metadata, Ranking, Recommendation, ServingError, VersionStatus
from serving.client.calls import Calls, Conversation
from serving.client.conversation import Conversations
from serving.client.requests import Columns, Sequences
from serving.client.states import UserState

_T = TypeVar("_T")


class AsyncRankingClient(Conversations):
    """`RankingClient` for asyncio: the same arguments and methods, to be awaited. Tasks may share it.

    Create it in a coroutine: it belongs to the event loop that runs then.

    Example:
        >>> async with AsyncRankingClient("127.0.0.1:8500", model_name="eta") as client:
        ...     ranking = await client.rank(
        ...         candidates={"item_id": [10, 20, 30]}, history={"item_id": [20, 7]}, user={"user_id": 5}
        ...     )

    Raises:
        ValueError: as `RankingClient`.
        RuntimeError: if no event loop is running.
    """

    async def __aenter__(self) -> AsyncRankingClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()

    async def rank(
        self,
        candidates: Columns,
        history: Columns,
        user: Columns | None = None,
        context: Columns | None = None,
        history_length: Any = None,
        sequences: Sequences | None = None,
    ) -> Ranking:
        """As `RankingClient.rank`."""
        return await self._run(self._rank(candidates, history, user, context, history_length, sequences))

    async def explain(
        self,
        candidates: Columns,
        history: Columns,
        user: Columns | None = None,
        context: Columns | None = None,
        history_length: Any = None,
        sequences: Sequences | None = None,
    ) -> Explanation:
        """As `RankingClient.explain`."""
        return await self._run(self._explain(candidates, history, user, context, history_length, sequences))

    async def recommend(
        self,
        history: Columns,
        user: Columns | None = None,
        context: Columns | None = None,
        sequences: Sequences | None = None,
        *,
        excluded: Any = None,
        attributes: Callable[[np.ndarray], Columns] | None = None,
        explain: bool = False,
    ) -> Recommendation:
        """As `RankingClient.recommend`."""
        return await self._run(self._recommend(excluded, attributes, explain, history, user, context, sequences))

    async def user_state(
        self,
        history: Columns | None,
        context: Columns | None = None,
        history_length: Any = None,
        sequences: Sequences | None = None,
    ) -> UserState:
        """As `RankingClient.user_state`."""
        return await self._run(self._user_state(context, history, history_length, sequences))

    async def update_state(
        self,
        state: UserState,
        history: Columns | None,
        context: Columns | None = None,
        history_length: Any = None,
        sequences: Sequences | None = None,
        *,
        any_version: bool = False,
    ) -> UserState:
        """As `RankingClient.update_state`."""
        return await self._run(self._update_state(state, any_version, context, history, history_length, sequences))

    async def rank_from_state(
        self,
        candidates: Columns,
        state: UserState,
        user: Columns | None = None,
        context: Columns | None = None,
        history: Columns | None = None,
        history_length: Any = None,
        sequences: Sequences | None = None,
        *,
        any_version: bool = False,
    ) -> Ranking:
        """As `RankingClient.rank_from_state`."""
        return await self._run(
            self._rank_from_state(state, any_version, candidates, history, user, context, history_length, sequences)
        )

    async def predict(self, inputs: Columns, signature_name: str = "serving_default") -> dict[str, np.ndarray]:
        """As `RankingClient.predict`."""
        return await self._run(self._predict(inputs, signature_name))

    async def metadata(self) -> Metadata:
        """As `RankingClient.metadata`."""
        return await self._run(self._metadata(self._deadline()))

    async def status(self) -> list[VersionStatus]:
        """As `RankingClient.status`."""
        return await self._run(self._status())

    async def wait_until_ready(self, timeout: float = 60.0) -> None:
        """As `RankingClient.wait_until_ready`."""
        await self._run(self._ready(timeout))

    def _open(self, credentials: grpc.ChannelCredentials | None, options: list[tuple[str, Any]]) -> grpc.aio.Channel:
        asyncio.get_running_loop()
        if credentials is None:
            return grpc.aio.insecure_channel(self.target, options=options)
        return grpc.aio.secure_channel(self.target, credentials, options=options)

    async def _run(self, conversation: Conversation[_T]) -> _T:
        try:
            step = next(conversation)
            while True:
                try:
                    answers = await self._take(step)
                except ServingError as error:
                    step = conversation.throw(error)
                else:
                    step = conversation.send(answers)
        except StopIteration as end:
            return end.value

    async def _take(self, step: Calls | float) -> list[Any]:
        if not isinstance(step, Calls):
            await asyncio.sleep(step)
            return []
        timeout = step.deadline - time.monotonic()
        calls = [self._methods[name](request, timeout=timeout) for name, request in step.requests]

        async def answer(call: Any) -> Any:
            try:
                return await call
            except grpc.RpcError as error:
                refused = self._error(error.code(), error.details())
                if not step.fails_alone(refused):
                    raise refused from error
                return refused

        try:
            return await asyncio.gather(*map(answer, calls))
        finally:
            for call in calls:
                call.cancel()
