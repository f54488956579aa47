"""What both clients have in common: the calls that a method makes and how it joins their answers."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import grpc
import numpy as np

from keras_eta.columns import length_name
from serving.client.answers import (
    Explanation,
    Metadata,
    Ranking,
    Recommendation,
    ServingError,
    Signature,
    StateVersionError,
    TensorSpec,
)
from serving.client.calls import Calling, Conversation
from serving.client.explanations import read_explanation
from serving.client.parts import Parts
from serving.client.requests import Columns, Sequences, ranking_inputs, shape_text, signature_arrays
from serving.client.states import UserState
from serving.client.tensors import numpy_dtype, read_tensor, write_tensor
from serving.client.values import with_value_lengths

# What retrievers call the column of items.
_ITEM = "item_id"


class Conversations(Calling):
    """The methods of both clients, without the channel and the waiting."""

    def _rank(self, *columns: Any, deadline: float | None = None) -> Conversation[Ranking]:
        inputs, several = ranking_inputs(*columns)
        deadline = self._deadline() if deadline is None else deadline
        outputs, version = yield from self._ask("rank", ("probability",), inputs, columns[0], deadline)
        return Ranking(_rows(outputs, several)["probability"], version)

    def _explain(self, *columns: Any, deadline: float | None = None) -> Conversation[Explanation]:
        names = ("probability", "positions", "weights")
        inputs, several = ranking_inputs(*columns)
        deadline = self._deadline() if deadline is None else deadline
        outputs, version = yield from self._ask("explain", names, inputs, columns[0], deadline, all_outputs=True)
        return read_explanation(_rows(outputs, several), version, self.model_name)

    def _recommend(
        self,
        excluded: Any,
        attributes: Callable[[np.ndarray], Columns] | None,
        explain: bool,
        history: Columns,
        user: Columns | None,
        context: Columns | None,
        sequences: Sequences | None,
    ) -> Conversation[Recommendation]:
        deadline = self._deadline()
        item_ids, log_probability, version = yield from self._retrieved(history, user, excluded, deadline)
        candidates: dict[str, Any] = {_ITEM: item_ids}
        if attributes is not None:
            candidates |= attributes(item_ids)
        rank = self._explain if explain else self._rank
        ranking = yield from rank(candidates, history, user, context, None, sequences, deadline=deadline)
        return Recommendation(item_ids, log_probability, ranking, version)

    def _retrieved(
        self, history: Columns, user: Columns | None, excluded: Any, deadline: float
    ) -> Conversation[tuple[np.ndarray, np.ndarray, int]]:
        """What the retriever finds after a history: ids [C], log probabilities [C], and its version."""
        if self._retriever is None:
            raise ValueError("`recommend` needs a client with a `retriever`, the name of a model. Received: None")
        if _ITEM not in history:
            raise ValueError(f"`history` must have the column {_ITEM!r}. Received: {sorted(history)}")
        items = {_ITEM: history[_ITEM]}
        excluded = history[_ITEM] if excluded is None else list(excluded)
        inputs, several = ranking_inputs(None, items, user, sequences={"excluded": {_ITEM: excluded}})
        if several:
            raise ValueError("`recommend` takes one user at a time. Received: a history of several")
        names = (_ITEM, "log_probability")
        try:
            outputs, version = yield from self._retriever._ask(
                "retrieve", names, inputs, None, deadline, if_taken=tuple(user or ())
            )
        except ServingError as error:
            raise self._retriever._error(error.code, error.details) from error
        real = np.isfinite(outputs["log_probability"][0])
        return outputs[_ITEM][0][real], outputs["log_probability"][0][real], version

    def _user_state(self, context: Columns | None, *behaviours: Any) -> Conversation[UserState]:
        inputs, _ = _behaviour_inputs(context, *behaviours)
        outputs, version = yield from self._ask("user_state", (), inputs, None, self._deadline(), all_outputs=True)
        return UserState(outputs, self.model_name, version)

    def _update_state(
        self, state: UserState, any_version: bool, context: Columns | None, *behaviours: Any
    ) -> Conversation[UserState]:
        inputs, _ = _behaviour_inputs(context, *behaviours)
        outputs, _ = yield from self._ask_of_state("update_state", (), inputs, None, state, any_version)
        # Of the state's own version still: what another one adds to it does not make it that one's.
        return dataclasses.replace(state, arrays=outputs)

    def _rank_from_state(self, state: UserState, any_version: bool, *columns: Any) -> Conversation[Ranking]:
        inputs, several = ranking_inputs(*columns)
        outputs, version = yield from self._ask_of_state(
            "rank_from_state", ("probability",), inputs, columns[0], state, any_version
        )
        return Ranking(_rows(outputs, several)["probability"], version)

    def _predict(self, inputs: Columns, signature_name: str) -> Conversation[dict[str, np.ndarray]]:
        deadline = self._deadline()
        named = {name: (f"inputs[{name!r}]", values) for name, values in inputs.items()}
        _, arrays = yield from self._checked(signature_name, named, (), deadline)
        for name, array in arrays.items():
            if not array.size:
                # One such call fails its whole batch on TensorFlow Serving, or ends the server.
                raise ValueError(
                    f"`inputs[{name!r}]` must have at least one value. Received shape: {shape_text(array.shape)}"
                )
        tensors = {name: write_tensor(array) for name, array in arrays.items()}
        request = self._predict_request(signature_name, (), tensors)
        (response,) = yield from self._answers([request], deadline)
        answer = {name: read_tensor(tensor) for name, tensor in response.outputs.items()}
        if self._observe is not None:
            self._observe(response.model_spec.version.value, arrays, answer)
        return answer

    def _ask(
        self,
        signature_name: str,
        outputs: Sequence[str],
        inputs: Mapping[str, tuple[str, Any]],
        candidates: Columns | None,
        deadline: float,
        *,
        all_outputs: bool = False,
        version: int | None = None,
        if_taken: Collection[str] = (),
    ) -> Conversation[tuple[dict[str, np.ndarray], int]]:
        """The `outputs`, or all of which these must be a part, with a row per request, and the version that answered.

        `version` is the one to ask, `None` the newest. Inputs named by `if_taken` are left out where the signature has
        none of that name.
        """
        signature, arrays = yield from self._checked(signature_name, inputs, outputs, deadline, version, if_taken)
        if candidates is None or arrays[next(iter(candidates))].size:
            filters = () if all_outputs else outputs
            columns = [column for name in candidates or () for column in (name, length_name(name)) if column in arrays]
            parts = Parts(arrays, columns, self.max_rows, self.max_candidates)
            requests = [self._predict_request(signature_name, filters, part, version) for part in parts.inputs()]
            responses = yield from self._answers_of_one_version(requests, deadline)
            # A version newer than the metadata may give others.
            joined = {name: parts.join([each.outputs[name] for each in responses]) for name in responses[0].outputs}
            answered = responses[0].model_spec.version.value
            if self._observe is not None:
                self._observe(answered, arrays, joined)
            return joined, answered
        # TensorFlow Serving fails the other calls of a batch in which one has no candidates.
        metadata = yield from self._metadata(deadline, version)
        num_rows = len(next(iter(arrays.values())))
        names = signature.outputs if all_outputs else outputs
        return {name: _no_answers(signature.outputs[name], num_rows) for name in names}, metadata.model_version

    def _ask_of_state(
        self,
        signature_name: str,
        outputs: Sequence[str],
        inputs: Mapping[str, tuple[str, Any]],
        candidates: Columns | None,
        state: UserState,
        any_version: bool,
    ) -> Conversation[tuple[dict[str, np.ndarray], int]]:
        """As `_ask`, of the version that computed the state unless `any_version`."""
        if not isinstance(state, UserState):
            raise TypeError(f"`state` must be a UserState. Received: {type(state).__name__}")
        if state.model_name != self.model_name:
            raise ValueError(
                f"`state` must be of model {self.model_name!r}. Received: a state of model {state.model_name!r}"
            )
        states = {name: (f"state.arrays[{name!r}]", array) for name, array in state.arrays.items()}
        version = None if any_version else state.model_version
        deadline = self._deadline()
        try:
            return (
                yield from self._ask(
                    signature_name,
                    outputs,
                    {**inputs, **states},
                    candidates,
                    deadline,
                    all_outputs=not outputs,
                    version=version,
                )
            )
        except ServingError as error:
            if error.code is not grpc.StatusCode.NOT_FOUND or version is None:
                raise
            # Fails in its turn where it is the model that is not there.
            served = (yield from self._metadata(deadline)).model_version
            if served == version:
                raise
            raise StateVersionError(self.target, self.model_name, version, served) from error

    def _checked(
        self,
        signature_name: str,
        inputs: Mapping[str, tuple[str, Any]],
        outputs: Sequence[str],
        deadline: float,
        version: int | None = None,
        if_taken: Collection[str] = (),
    ) -> Conversation[tuple[Signature, dict[str, np.ndarray]]]:
        """The signature and its inputs, checked against the metadata known so far, or else against fresh ones."""

        def checked(metadata: Metadata) -> tuple[Signature, dict[str, np.ndarray]]:
            known_inputs = inputs
            if signature_name in metadata.signatures:
                taken = metadata.signatures[signature_name]
                known_inputs = {
                    name: given for name, given in inputs.items() if name not in if_taken or name in taken.inputs
                }
                known_inputs = with_value_lengths(known_inputs, taken)
            signature = self._signature(metadata, signature_name, known_inputs, outputs)
            return signature, signature_arrays(known_inputs, signature)

        known = self._known.get(version)
        if known is not None:
            with contextlib.suppress(ValueError):
                return checked(known)
        return checked((yield from self._metadata(deadline, version)))

    def _signature(self, metadata: Metadata, name: str, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Signature:
        signature = metadata.signatures.get(name)
        if signature is None:
            raise ValueError(
                f"Model {self.model_name!r} has no signature {name!r}. It has: {', '.join(metadata.signatures)}"
            )
        problem = ""
        for text, names in (
            ("Missing", {*signature.inputs} - {*inputs}),
            ("Unknown", {*inputs} - {*signature.inputs}),
            ("It takes", {*signature.inputs}),
            ("It does not give", {*outputs} - {*signature.outputs}),
        ):
            problem += f" {text}: {', '.join(sorted(names))}." if names else ""
        if {*inputs} != {*signature.inputs} or not {*outputs} <= {*signature.outputs}:
            raise ValueError(f"Signature {name!r} of model {self.model_name!r} does not fit.{problem}")
        return signature


def _behaviour_inputs(
    context: Columns | None, history: Columns | None, history_length: Any, sequences: Sequences | None
) -> tuple[dict[str, tuple[str, Any]], bool]:
    return ranking_inputs(None, history, None, context, history_length, sequences)


def _rows(outputs: Mapping[str, np.ndarray], several: bool) -> dict[str, np.ndarray]:
    """The outputs of several requests, or of the only one."""
    return {name: output if several else output[0] for name, output in outputs.items()}


def _no_answers(spec: TensorSpec, num_rows: int) -> np.ndarray:
    """An output for no candidates: [R, 0], or [R, 0, K] where the signature says what K is."""
    more = [size or 0 for size in (spec.shape or ())[2:]]
    return np.zeros([num_rows, 0, *more], numpy_dtype(spec.dtype))
