"""Tries a trained retriever on a model server before it may be pushed, as `LocalInfraValidator` tries a ranker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from tfx.dsl.components.base import executor_spec

from keras_eta.columns import HISTORY_LENGTH, ITEM_ID, history_name
from keras_eta.contract import Contract
from keras_eta.export import EXAMPLES
from keras_eta.export.examples import LISTS, make_example
from keras_eta.export.retriever import EXCLUDED, LOG_PROBABILITY, RETRIEVE
from tfx_pipeline.components.infra_validator import InfraValidatorExecutor, LocalInfraValidator
from tfx_pipeline.components.model_server import Answering, UnservableModelError
from tfx_pipeline.components.serving_requests import Inputs
from tfx_pipeline.retrieval.answers import faults
from tfx_pipeline.retrieval.served import request

# Largest difference between the log probabilities that both signatures give an item.
_TOLERANCE = 1e-4


def retrieval_requests(contract: Contract, records: Sequence[bytes]) -> dict[str, Inputs]:
    """One request for each signature, with the same histories, whose items are not to be found.

    Args:
        contract: says which columns the impressions have.
        records: serialized tf.Examples of them, at least one.

    Returns:
        By signature, its inputs by name. Behind the histories of the records stand an empty one, and one of an item
        that there is none of.

    Raises:
        ValueError: if an example lacks the history or holds it as another type.
    """
    item_id = contract.features.item_id
    name, dtype = history_name(item_id.name), item_id.dtype
    histories = []
    for record in records:
        columns = tf.train.Example.FromString(record).features.feature
        kind = columns[name].WhichOneof("kind") if name in columns else "nothing"
        if kind not in (LISTS[dtype], None):
            raise ValueError(f"Column `{name}` of the examples must be of kind {LISTS[dtype]}. Received: {kind}")
        histories.append(list(getattr(columns[name], LISTS[dtype]).value))
    nothing = b"" if dtype == "string" else -1
    histories += [[], [nothing]]
    lengths = np.array([len(history) for history in histories])
    padded = np.full([len(histories), lengths.max()], nothing, object if dtype == "string" else np.int64)
    for row, history in enumerate(histories):
        padded[row, : len(history)] = history
    lists = [padded[row, :length] for row, length in enumerate(lengths)]
    examples = [make_example({history_name(ITEM_ID): ids, EXCLUDED.column(ITEM_ID): ids}) for ids in lists]
    return {
        RETRIEVE: request(padded, lengths),
        EXAMPLES: {EXAMPLES: np.array([example.SerializeToString() for example in examples], object)},
    }


def check_retrieval(server: Answering, requests: Mapping[str, Inputs]) -> None:
    """Sends a request to both signatures and checks the answers.

    Args:
        server: has the model loaded.
        requests: as `retrieval_requests` makes them.

    Raises:
        UnservableModelError: if a signature is missing or does not answer, if what it finds is no list of different
            items with log probabilities that fall, or excluded, or if both signatures contradict each other.
    """
    present = server.signatures()
    missing = [name for name in requests if name not in present]
    if missing:
        raise UnservableModelError(f"The model lacks the signatures {missing}. It has {list(present)}.")
    answers = {name: server.predict(name, inputs) for name, inputs in requests.items()}
    asked = requests[RETRIEVE]
    histories, lengths = asked[history_name(ITEM_ID)], asked[HISTORY_LENGTH]
    for name, outputs in answers.items():
        if set(outputs) != {ITEM_ID, LOG_PROBABILITY}:
            raise UnservableModelError(f"`{name}` gives {sorted(outputs)}, not {sorted([ITEM_ID, LOG_PROBABILITY])}.")
        items, log_probability = outputs[ITEM_ID], outputs[LOG_PROBABILITY]
        if items.shape != log_probability.shape or items.ndim != 2 or len(items) != len(lengths):
            raise UnservableModelError(
                f"`{name}` gives `{ITEM_ID}` of shape {list(items.shape)} and `{LOG_PROBABILITY}` of shape "
                f"{list(log_probability.shape)} for {len(lengths)} requests."
            )
        if not (log_probability > -np.inf).any(axis=1).all():
            raise UnservableModelError(f"`{name}` finds nothing for a request.")
        wrong = faults(items, log_probability, histories, lengths)
        counts = {fault: count for fault, count in wrong._asdict().items() if count}
        if counts:
            raise UnservableModelError(f"`{name}` gives answers that are wrong: {counts}.")
    one, other = answers[RETRIEVE], answers[EXAMPLES]
    same = (one[ITEM_ID] == other[ITEM_ID]).all()
    if not same or not np.allclose(one[LOG_PROBABILITY], other[LOG_PROBABILITY], rtol=0, atol=_TOLERANCE):
        raise UnservableModelError(f"`{RETRIEVE}` and `{EXAMPLES}` do not find the same.")


class RetrieverInfraValidatorExecutor(InfraValidatorExecutor):
    """Starts a model server on the retriever and sends it the histories of real impressions."""

    make_requests = staticmethod(retrieval_requests)
    check = staticmethod(check_retrieval)


class RetrieverInfraValidator(LocalInfraValidator):
    """`LocalInfraValidator` for a retriever. Its arguments are the same."""

    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(RetrieverInfraValidatorExecutor)
