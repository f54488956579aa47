"""What models are asked and answer, as Prometheus metrics: for the embedded server, and for clients of any server.

monitor = Monitor()  # of a client; the embedded server has one of its own
REGISTRY.register(monitor)
RankingClient("127.0.0.1:8500", observe=monitor.observer("eta", "models/eta"))
"""

from __future__ import annotations

import dataclasses
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from keras_eta.columns import TIMESTAMP, length_name
from keras_eta.contract import Contract

Observe = Callable[[int, Mapping[str, np.ndarray], Mapping[str, np.ndarray]], None]

PROBABILITY = "probability"
_PROBABILITIES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_LENGTHS = (0.0, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1_000.0, 3_000.0, 10_000.0)
_WARNING_SECONDS = 60.0
_log = logging.getLogger(__name__)


class _Histogram:
    """Counts of values by bucket, many at a time."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = np.zeros(len(bounds) + 1, np.int64)
        self._sum = 0.0

    def add(self, values: np.ndarray) -> None:
        places = np.searchsorted(self._bounds, values.ravel())
        self._counts += np.bincount(places, minlength=len(self._counts))
        self._sum += float(values.sum())

    def buckets(self) -> tuple[list[tuple[str, float]], float]:
        """The cumulated counts by upper bound, as Prometheus takes them, and the sum of the values."""
        names = [*map(str, self._bounds), "+Inf"]
        return list(zip(names, np.cumsum(self._counts).astype(float).tolist(), strict=True)), self._sum


@dataclasses.dataclass
class _Watched:
    """What was seen of one version."""

    rows: int = 0
    rows_in_another_time: int = 0
    ids: dict[str, int] = dataclasses.field(default_factory=dict)
    unknown_ids: dict[str, int] = dataclasses.field(default_factory=dict)
    probabilities: _Histogram = dataclasses.field(default_factory=lambda: _Histogram(_PROBABILITIES))
    lengths: dict[str, _Histogram] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class _Seen:
    """What one call holds.

    Args:
        in_another_time: bool [rows], those with a timestamp that is not plausible.
        ids: by column, how many there are, and how many of them the vocabulary lacks.
        lengths: int64 [rows] by sequence.
    """

    in_another_time: np.ndarray
    ids: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    lengths: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, contract: Contract | None, inputs: Mapping[str, np.ndarray]) -> _Seen:
        """What the inputs hold; of a version without a contract, rows alone."""
        rows = len(next(iter(inputs.values())))
        if contract is None:
            return cls(np.zeros(rows, bool))
        ids = {
            column: (len(values), _count_unknown(contract, column, values))
            for column, values in _ids(contract, inputs).items()
        }
        return cls(_in_another_time(contract, inputs, rows), ids, _lengths(contract, inputs))


class Monitor(Collector):
    """Counts what calls send and get, by model and version. Threads may share it.

    | metric | counts |
    |---|---|
    | `serving_rows_total` | users of `rank` and the like, rows of pointwise calls |
    | `serving_rows_in_another_time_total` | rows whose timestamps are not plausible, see below |
    | `serving_ids_total`, `serving_unknown_ids_total` | ids by column, and those that the vocabulary lacks |
    | `serving_probability` | a histogram of scores |
    | `serving_history_length` | a histogram of lengths by sequence |

    A `timestamp` is plausible from the first of the training data on, up to `Contract.timestamp_margin` after the last;
    one of a behaviour, from that margin before the first on. Timestamps in another unit lie outside. A warning in the
    log, of each model one a minute at most, says so.

    Labels are names of models, versions, columns and sequences: no caller makes their number grow.

    Args:
        clock: seconds, which only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._watched: dict[tuple[str, int], _Watched] = {}
        self._next_warning: dict[str, float] = {}

    def observe(
        self,
        model_name: str,
        version: int,
        contract: Contract | None,
        inputs: Mapping[str, np.ndarray],
        outputs: Mapping[str, np.ndarray],
    ) -> None:
        """Counts one call that was answered.

        Args:
            model_name: of the model.
            version: that answered.
            contract: of that version; without it, rows and scores alone are counted.
            inputs: what was sent, by name.
            outputs: what was answered, by name.
        """
        try:
            seen = _Seen.of(contract, inputs)
            total = self._add(model_name, version, seen, outputs.get(PROBABILITY))
            if contract is not None and seen.in_another_time.any() and self._may_warn(model_name):
                _log.warning(
                    "Model %s, version %d: timestamps are probably in another unit than those of the training data, "
                    "which lie between %d and %d. A request had %s; %d of %d rows so far are like that.",
                    model_name,
                    version,
                    *(contract.timestamps or ()),
                    _example(contract, inputs, int(np.argmax(seen.in_another_time))),
                    *total,
                )
        except Exception:  # whatever an odd model or contract brings must not fail the call
            _log.exception("A call of model %s, version %d, was not counted", model_name, version)

    def observer(self, model_name: str, base_path: str | Path) -> Observe:
        """What a client calls with the version, the inputs and the outputs of each answer.

        Args:
            model_name: of the model.
            base_path: its directory of versions, as the server has it, or a copy. Of versions that are not there, rows
                and scores alone are counted.
        """
        contracts: dict[int, Contract | None] = {}

        def observe(version: int, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
            if version not in contracts:
                contracts[version] = read_contract(Path(base_path) / str(version))
            self.observe(model_name, version, contracts[version], inputs, outputs)

        return observe

    def _add(self, model_name: str, version: int, seen: _Seen, probabilities: np.ndarray | None) -> tuple[int, int]:
        """Counts a call; rows in another time and all rows of the version so far."""
        with self._lock:
            watched = self._watched.setdefault((model_name, version), _Watched())
            watched.rows += len(seen.in_another_time)
            watched.rows_in_another_time += int(seen.in_another_time.sum())
            for name, (count, unknown) in seen.ids.items():
                watched.ids[name] = watched.ids.get(name, 0) + count
                watched.unknown_ids[name] = watched.unknown_ids.get(name, 0) + unknown
            for name, lengths in seen.lengths.items():
                watched.lengths.setdefault(name, _Histogram(_LENGTHS)).add(lengths)
            if probabilities is not None:
                watched.probabilities.add(probabilities)
            return watched.rows_in_another_time, watched.rows

    def _may_warn(self, model_name: str) -> bool:
        """Whether the last warning of a model is long enough ago; if so, this one counts as the last."""
        with self._lock:
            now = self._clock()
            if now < self._next_warning.get(model_name, -math.inf):
                return False
            self._next_warning[model_name] = now + _WARNING_SECONDS
            return True

    def collect(self) -> Iterator[Metric]:
        """The metrics, as Prometheus's registry asks for them."""
        labels = ("model", "version")
        rows = CounterMetricFamily("serving_rows", "Rows of answered calls.", labels=labels)
        wrong = CounterMetricFamily(
            "serving_rows_in_another_time", "Rows with timestamps that are not plausible.", labels=labels
        )
        ids = CounterMetricFamily("serving_ids", "Ids sent.", labels=(*labels, "column"))
        unknown = CounterMetricFamily(
            "serving_unknown_ids", "Ids sent that the vocabulary lacks.", labels=(*labels, "column")
        )
        probability = HistogramMetricFamily("serving_probability", "Scores of candidates.", labels=labels)
        length = HistogramMetricFamily("serving_history_length", "Behaviours sent.", labels=(*labels, "sequence"))
        with self._lock:
            for (model, number), watched in self._watched.items():
                version = (model, str(number))
                rows.add_metric(version, watched.rows)
                wrong.add_metric(version, watched.rows_in_another_time)
                for name, count in watched.ids.items():
                    ids.add_metric((*version, name), count)
                    unknown.add_metric((*version, name), watched.unknown_ids[name])
                probability.add_metric(version, *watched.probabilities.buckets())
                for name, histogram in watched.lengths.items():
                    length.add_metric((*version, name), *histogram.buckets())
        yield from (rows, wrong, ids, unknown, probability, length)


def read_contract(version_dir: Path, *, vocabularies: bool = True) -> Contract | None:
    """The contract of a version; `None`, which is logged, where it has none or a broken one."""
    try:
        return Contract.read(version_dir, vocabularies=vocabularies)
    except FileNotFoundError:
        _log.info("%s is no export of keras_eta: of its calls, rows and scores alone are counted.", version_dir)
    except (ValueError, OSError) as error:
        _log.warning("Of calls of %s, rows and scores alone are counted: %s", version_dir, error)
    return None


def _real(contract: Contract, inputs: Mapping[str, np.ndarray], column: str) -> np.ndarray:
    """Which values count: bool, of the column's shape."""
    values = inputs[column]
    real = np.ones(values.shape, bool)
    for sequence in contract.features.all_sequences:
        if column in contract.features.sequence_names(sequence) and sequence.length in inputs:
            within = np.arange(values.shape[1]) < inputs[sequence.length][:, np.newaxis]
            real &= within.reshape(*within.shape, *[1] * (values.ndim - 2))
    feature = contract.features.by_column.get(column)
    if feature is not None and feature.max_values is not None:
        real &= np.arange(values.shape[-1]) < inputs[length_name(column)][..., np.newaxis]
    return real


def _ids(contract: Contract, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The ids that count, 1-D, by column."""
    return {
        name: inputs[name][_real(contract, inputs, name)]
        for name, feature in contract.features.by_column.items()
        if feature.name in contract.vocabularies and name in inputs
    }


def _count_unknown(contract: Contract, column: str, ids: np.ndarray) -> int:
    return contract.count_unknown(contract.features.by_column[column].name, ids)


def _lengths(contract: Contract, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The lengths by sequence."""
    lengths = {sequence.name: sequence.length for sequence in contract.features.all_sequences}
    return {name: inputs[length] for name, length in lengths.items() if length in inputs}


def _in_another_time(contract: Contract, inputs: Mapping[str, np.ndarray], rows: int) -> np.ndarray:
    """Which rows have a timestamp that is not plausible: bool [rows]."""
    wrong = np.zeros(rows, bool)
    if contract.timestamps is None:
        return wrong
    (first, last), margin = contract.timestamps, contract.timestamp_margin
    if TIMESTAMP in inputs:
        wrong |= (inputs[TIMESTAMP] < first) | (inputs[TIMESTAMP] > last + margin)
    for sequence in contract.features.all_sequences:
        if sequence.timestamp in inputs:
            moments = inputs[sequence.timestamp]
            outside = (moments < first - margin) | (moments > last + margin)
            wrong |= (outside & _real(contract, inputs, sequence.timestamp)).any(axis=1)
    return wrong


def _example(contract: Contract, inputs: Mapping[str, np.ndarray], row: int) -> str:
    """The timestamps of a row, in words."""
    names = [TIMESTAMP, *(sequence.timestamp for sequence in contract.features.all_sequences)]
    shown = [f"{name} {np.ravel(inputs[name][row])[0]}" for name in names if name in inputs and inputs[name][row].size]
    return ", ".join(shown)
