"""What the client returns and raises: rankings, explanations, signatures, states of versions, errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import grpc
import numpy as np

from serving.targets import proxy_variable


class ServingError(RuntimeError):
    """The server refused the call, or the call did not reach it.

    Args:
        target: address of the server.
        model_name: the model that was asked.
        code: the gRPC status code.
        details: the server's own message.
    """

    def __init__(self, target: str, model_name: str, code: grpc.StatusCode, details: str) -> None:
        message = f"Model {model_name!r} at {target} answered {code.name}: {details}"
        if code is grpc.StatusCode.UNAVAILABLE:
            port = target.rpartition(":")[2]
            message += (
                " If no server is running there, start one: python -m serving.server "
                f"--port {port} --model_name {model_name} --model_base_path DIR"
            )
            variable = proxy_variable(target)
            if variable is not None:
                message += (
                    f" gRPC went through a proxy, since the environment has `{variable}`: to reach the server without, "
                    "add its host to `no_proxy`."
                )
        super().__init__(message)
        self.code = code
        self.details = details


class StateVersionError(ServingError):
    """A user state is of a version of the model that the server does not serve.

    Args:
        target: address of the server.
        model_name: the model that was asked.
        state_version: the version that computed the state.
        served_version: the version that the server answers with.
    """

    def __init__(self, target: str, model_name: str, state_version: int, served_version: int) -> None:
        details = (
            f"`state` is of version {state_version}, and version {served_version} is served. Compute it again by "
            "`user_state`, or accept states of other versions by `any_version=True`."
        )
        super().__init__(target, model_name, grpc.StatusCode.NOT_FOUND, details)
        self.state_version = state_version
        self.served_version = served_version


@dataclasses.dataclass(frozen=True, eq=False)
class Ranking:
    """The scores of the candidates of one request, or of R requests.

    Args:
        probability: float32 [C] or [R, C], in the order in which the candidates were sent.
        model_version: the version of the model that answered.
    """

    probability: np.ndarray
    model_version: int

    @property
    def order(self) -> np.ndarray:
        """Positions of the candidates, best first, int64 [C] or [R, C]; ties keep the order in which they were sent."""
        return np.argsort(-self.probability, axis=-1, kind="stable")


@dataclasses.dataclass(frozen=True, eq=False)
class Attention:
    """The K behaviours per candidate that an interest unit attends to.

    Args:
        positions: int [C, K] or [R, C, K], index into the history that was sent; -1 where there were fewer than K.
        weights: float32 [C, K] or [R, C, K], attention weights.
        scores: [C, K] or [R, C, K], what the unit retrieved the behaviours by; `None` if it retrieves without a score.
        score_name: what the scores are, in the plural: `distances`, `inner_products` ...; `None` without scores.
    """

    positions: np.ndarray
    weights: np.ndarray
    scores: np.ndarray | None = None
    score_name: str | None = None

    @property
    def score_label(self) -> str | None:
        """What one of the scores is: `distance` of `distances`."""
        return None if self.score_name is None else self.score_name.removesuffix("s")


@dataclasses.dataclass(frozen=True, eq=False)
class Explanation(Attention, Ranking):
    """A ranking with the behaviours that each score rests on, those of the model's last unit that attends to some.

    Args:
        others: what the other units attend to, by the name of the unit.
        counts: int [C] or [R, C], numbers of behaviours with the candidate's value, by `<unit>_<feature>`, e.g.
            `match_item_id`.
    """

    others: Mapping[str, Attention] = dataclasses.field(default_factory=dict)
    counts: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Recommendation:
    """Items that a retriever found for one user, ranked.

    Args:
        item_ids: the C items, likeliest first: int64, or bytes as objects. Fewer than asked for where fewer were found.
        log_probability: float32 [C], the retriever's, of each.
        ranking: the ranker's scores of these C candidates; an `Explanation` if one was asked for.
        retriever_version: the version of the retriever that answered.
    """

    item_ids: np.ndarray
    log_probability: np.ndarray
    ranking: Ranking
    retriever_version: int

    @property
    def best_first(self) -> np.ndarray:
        """The items [C] in the order of the ranker."""
        return self.item_ids[self.ranking.order]


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """One input or output: its dtype as TensorFlow names it, and its shape, `None` where any size fits."""

    dtype: str
    shape: tuple[int | None, ...] | None


@dataclasses.dataclass(frozen=True)
class Signature:
    """Inputs and outputs of one signature, by name."""

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]


@dataclasses.dataclass(frozen=True)
class Metadata:
    """The signatures of a model version."""

    model_version: int
    signatures: Mapping[str, Signature]


@dataclasses.dataclass(frozen=True)
class VersionStatus:
    """The state of one version: `AVAILABLE`, `LOADING`, `END` ..., and what went wrong, if anything did."""

    version: int
    state: str
    error: str = ""
