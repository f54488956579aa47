"""The blocking client."""

from __future__ import annotations

import queue
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


class RankingClient(Conversations):
    """Asks one model on one server, over one channel that all calls share. Threads may share the client.

    A call that finds the server UNAVAILABLE is tried again, after about 0.1, 0.2, 0.4 and 0.8 s. More than
    `max_rows` requests or `max_candidates` candidates are split over parallel calls, all answered by one version; those
    that get RESOURCE_EXHAUSTED are sent again until the deadline. No other error is retried.

    Example:
        >>> with RankingClient("127.0.0.1:8500", model_name="eta") as client:
        ...     ranking = client.rank(
        ...         candidates={"item_id": [10, 20, 30]}, history={"item_id": [20, 7]}, user={"user_id": 5}
        ...     )
        ...     best_first = ranking.order

    Args:
        target: address of the server, `host:port`.
        model_name: name of the model.
        retriever: name of the model on the same server that finds the candidates of `recommend`. `None`: there is none.
        timeout: seconds that a method may take, with every attempt and part of it.
        max_attempts: how often a call is tried, from 1 to 5.
        max_candidates: candidates that go into one call of `rank` and `explain`, over all its requests. A server needs
            memory for each of them.
        max_rows: requests of `rank` and `explain` that go into one call: at most the `max_batch_size` of a server that
            joins calls, which refuses larger ones.
        max_parallel_calls: calls that one `rank` or `explain` makes at the same time.
        credentials: TLS, by `grpc.ssl_channel_credentials`. Default: plaintext.
        observe: is called after each answer of a signature with the version that answered and the inputs and outputs by
            name, e.g. by `serving.monitor.Monitor.observer`.

    Raises:
        ValueError: if `timeout`, `max_attempts`, `max_candidates`, `max_rows` or `max_parallel_calls` is out of its
            range.
    """

    def __enter__(self) -> RankingClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the channel."""
        self._channel.close()

    def rank(
        self,
        candidates: Columns,
        history: Columns,
        user: Columns | None = None,
        context: Columns | None = None,
        history_length: Any = None,
        sequences: Sequences | None = None,
    ) -> Ranking:
        """Scores candidates for one user, or for R users at once.

        Columns go by the names of the data contract, those of the history without their prefix. One request has lists;
        R requests have a list more around everything, with as many candidates each and histories of any length. Where a
        feature has several values, a list of them stands for the value. No candidates get empty answers, by the version
        that the server then has.

        Args:
            candidates: by name, C values or R lists of C values.
            history: by name, the behaviours, most recent first, or R lists of them.
            user: by name, a value or R values.
            context: by name, a value or R values. A model with ages takes a `timestamp` here and one in the history.
            history_length: how many behaviours count, where the histories are padded already.
            sequences: further sequences of behaviours by name, each as the history, where the model reads any.

        Returns:
            The probabilities, [C] or [R, C].

        Raises:
            ValueError: if there are no requests, or columns are missing, unknown, of the wrong kind or of different
                lengths, or if a float among users, contexts, candidates or the behaviours that count is not finite. No
                Predict call is made.
            ServingError: if the server refuses the call or can't be reached, with the code and the server's message.
        """
        return self._run(self._rank(candidates, history, user, context, history_length, sequences))

    def explain(
        self,
        candidates: Columns,
        history: Columns,
        user: Columns | None = None,
        context: Columns | None = None,
        history_length: Any = None,
        sequences: Sequences | None = None,
    ) -> Explanation:
        """As `rank`, with the behaviours that each score rests on."""
        return self._run(self._explain(candidates, history, user, context, history_length, sequences))

    def recommend(
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
        """Finds items for one user by the client's `retriever`, and ranks or explains them by its model.

        Args:
            history: by name, the behaviours, most recent first, with all columns that the ranker reads. The retriever
                reads `item_id`.
            user: by name, a value, for the ranker, and for the retriever where it reads any of them.
            context: by name, a value, for the ranker.
            sequences: further sequences of behaviours by name, for the ranker.
            excluded: ids of items that must not be found. `None`: those of the history, where nobody wants them twice.
                `()`: none.
            attributes: gives the ranker's further columns of candidates, by name, C values each, of their ids [C]; C
                may be 0. `None`: it reads no further ones, or its version looks them up.
            explain: whether to explain the ranking.

        Returns:
            The items and their ranking.

        Raises:
            ValueError: as `rank`; also if the client has no `retriever` or the history is of several users.
            ServingError: as `rank`, of the model that did not answer. The deadline covers all calls.
        """
        return self._run(self._recommend(excluded, attributes, explain, history, user, context, sequences))

    def user_state(
        self,
        history: Columns | None,
        context: Columns | None = None,
        history_length: Any = None,
        sequences: Sequences | None = None,
    ) -> UserState:
        """Computes what depends on the users alone, for a feature service to keep; see `UserState`.

        Args:
            history: by name, the behaviours of one user, most recent first, or R lists of them.
            context: by name, a value or R values: `timestamp`, where the model reads ages.
            history_length: how many behaviours count, where the histories are padded already.
            sequences: as for `rank`. Where no unit with a state reads the history, it is `None`.

        Returns:
            The states, with a row per user, and the version that computed them.

        Raises:
            ValueError: as `rank`; also if the model has no signature `user_state`.
            ServingError: as `rank`.
        """
        return self._run(self._user_state(context, history, history_length, sequences))

    def update_state(
        self,
        state: UserState,
        history: Columns | None,
        context: Columns | None = None,
        history_length: Any = None,
        sequences: Sequences | None = None,
        *,
        any_version: bool = False,
    ) -> UserState:
        """Adds behaviours to states of a model that can (`MIMN`), as if they had been in the history all along.

        Args:
            state: of one user or R users, by `user_state` or this method.
            history: by name, the behaviours since, most recent first, or R lists of them.
            context: as for `user_state`.
            history_length: as for `user_state`.
            sequences: as for `user_state`.
            any_version: whether the newest version may add to a state of another version; the state counts as that
                other version's still. Default: the state's own version is asked.

        Returns:
            The states after these behaviours.

        Raises:
            StateVersionError: if the state's version is not served, unless `any_version`.
            TypeError: if `state` is no `UserState`.
            ValueError: as `rank`; also if the state is of another model, or the model has no signature `update_state`.
            ServingError: as `rank`.
        """
        return self._run(self._update_state(state, any_version, context, history, history_length, sequences))

    def rank_from_state(
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
        """As `rank`, with the users' states in place of their histories.

        Args:
            candidates: as for `rank`.
            state: of one user or R users, by `user_state` or `update_state`.
            user: as for `rank`.
            context: as for `rank`; `timestamp` only where a unit reads the history.
            history: as for `rank`, where a unit without a state reads it as well; else `None`.
            history_length: as for `rank`.
            sequences: as for `rank`, where a unit without a state reads them.
            any_version: whether the newest version may rank by a state of another version: vectors of two versions then
                meet in one score. Default: the state's own version is asked.

        Returns:
            The probabilities, [C] or [R, C].

        Raises:
            StateVersionError: if the state's version is not served, unless `any_version`.
            TypeError: if `state` is no `UserState`.
            ValueError: as `rank`; also if the state is of another model, or the model has no signature
                `rank_from_state`.
            ServingError: as `rank`.
        """
        return self._run(
            self._rank_from_state(state, any_version, candidates, history, user, context, history_length, sequences)
        )

    def predict(self, inputs: Columns, signature_name: str = "serving_default") -> dict[str, np.ndarray]:
        """Calls any signature, in one call however many rows and candidates there are.

        Args:
            inputs: by the signature's own names, arrays or lists with one row per request each; they are brought to the
                signature's dtypes, and empty histories to one behaviour that does not count.
            signature_name: name of the signature.

        Returns:
            The outputs by name; strings are bytes.

        Raises:
            ValueError: as `rank`; also if an input has no values.
            ServingError: as `rank`.
        """
        return self._run(self._predict(inputs, signature_name))

    def metadata(self) -> Metadata:
        """Asks for the signatures of the newest version."""
        return self._run(self._metadata(self._deadline()))

    def status(self) -> list[VersionStatus]:
        """Asks for the state of every version, in order of their numbers."""
        return self._run(self._status())

    def wait_until_ready(self, timeout: float = 60.0) -> None:
        """Waits for a version that answers.

        Raises:
            ServingError: if there is none after `timeout` seconds; it says why.
        """
        self._run(self._ready(timeout))

    def _open(self, credentials: grpc.ChannelCredentials | None, options: list[tuple[str, Any]]) -> grpc.Channel:
        if credentials is None:
            return grpc.insecure_channel(self.target, options=options)
        return grpc.secure_channel(self.target, credentials, options=options)

    def _run(self, conversation: Conversation[_T]) -> _T:
        try:
            step = next(conversation)
            while True:
                try:
                    answers = self._take(step)
                except ServingError as error:
                    step = conversation.throw(error)
                else:
                    step = conversation.send(answers)
        except StopIteration as end:
            return end.value

    def _take(self, step: Calls | float) -> list[Any]:
        if not isinstance(step, Calls):
            time.sleep(step)
            return []
        timeout = step.deadline - time.monotonic()
        if len(step.requests) == 1:
            ((name, request),) = step.requests
            try:
                # Half a millisecond faster than a future, for which gRPC has another thread wait.
                return [self._methods[name](request, timeout=timeout)]
            except grpc.RpcError as error:
                refused = self._error(error.code(), error.details())
                if not step.fails_alone(refused):
                    raise refused from error
                return [refused]
        calls = [self._methods[name].future(request, timeout=timeout) for name, request in step.requests]
        done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        answers: dict[Any, Any] = {}
        try:
            for call in calls:
                call.add_done_callback(done.put)
            # The first that fails, but for those that may, fails them all at once.
            for _ in calls:
                call = done.get()
                if call.code() is grpc.StatusCode.OK:
                    answers[call] = call.result()
                    continue
                answers[call] = self._error(call.code(), call.details())
                if not step.fails_alone(answers[call]):
                    raise answers[call]
            return [answers[call] for call in calls]
        finally:
            for call in calls:
                call.cancel()
