"""What an export carries beside its graph, for those who watch what it is asked: columns, vocabularies, times."""

from __future__ import annotations

import dataclasses
import functools
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from keras_eta.byte_ids import join_bytes, split_bytes
from keras_eta.columns import Feature, length_name
from keras_eta.features import Features
from keras_eta.validation import is_integer

_FOLDER = "assets.extra"
_FEATURES, _TRAINING, _VOCABULARIES = "features.json", "training.json", "vocabularies.npz"
_TABLES = "tables.json"


class LookedUp(NamedTuple):
    """A table of a version.

    Args:
        key: the column of the ids.
        names: of the features that it gives.
    """

    key: Feature
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Contract:
    """What a version was trained on. It is read and written without TensorFlow.

    Args:
        features: the columns.
        vocabularies: of id features by name, 1-D and ascending: int64, or bytes as objects. Those that are not known
            are left out.
        timestamps: the first and the last `timestamp` of the training data. `None`: not known.
        tables: of features that the version looks up by an id.

    Raises:
        ValueError: if `timestamps` are not two integers, the first not after the last.
    """

    features: Features
    vocabularies: Mapping[str, np.ndarray]
    timestamps: tuple[int, int] | None = None
    tables: tuple[LookedUp, ...] = ()

    def __post_init__(self) -> None:
        check_timestamps(self.timestamps)

    @property
    def joined_columns(self) -> frozenset[str]:
        """The raw columns of `features` that requests lack, as the version looks them up."""
        features = self.features
        several = {feature.name for feature in features.all_features if feature.max_values}
        columns = set()
        for key, names in self.tables:
            sequences = features.all_sequences if key.name == features.item_id.name else ()
            for name in names:
                found = {name, *(sequence.column(name) for sequence in sequences)}
                columns |= found | ({length_name(column) for column in found} if name in several else set())
        return frozenset(columns)

    @property
    def unread_keys(self) -> tuple[Feature, ...]:
        """The ids that requests have for tables alone, as the model does not read them."""
        return tuple(key for key, _ in self.tables if key.name not in self.features.by_column)

    @property
    def timestamp_margin(self) -> int:
        """How far a served timestamp may lie outside of the training data's and be one of the same unit.

        As long as the training data, and at least a tenth of its last timestamp: five years, where they count from
        1970, whatever the unit.
        """
        first, last = self.timestamps or (0, 0)
        return max(last - first, abs(last) // 10)

    def count_unknown(self, name: str, ids: np.ndarray) -> int:
        """How many ids the vocabulary of a feature lacks.

        Args:
            name: of the feature, one of `vocabularies`.
            ids: 1-D, int64, or bytes as objects.
        """
        vocabulary = self.vocabularies[name]
        if vocabulary.dtype.kind == "O":
            known = self._known[name]
            return sum(id_ not in known for id_ in ids.tolist())
        if not len(vocabulary):
            return len(ids)
        # In order, so that each search goes on where the last one ended, in the cache.
        ids = np.sort(ids)
        places = np.minimum(np.searchsorted(vocabulary, ids), len(vocabulary) - 1)
        return int(np.count_nonzero(vocabulary[places] != ids))

    @functools.cached_property
    def _known(self) -> dict[str, frozenset[bytes]]:
        return {name: frozenset(ids.tolist()) for name, ids in self.vocabularies.items() if ids.dtype.kind == "O"}

    def write(self, version_dir: Path) -> None:
        """Writes the files of a version.

        Args:
            version_dir: of the SavedModel.
        """
        folder = version_dir / _FOLDER
        folder.mkdir(exist_ok=True)
        (folder / _FEATURES).write_text(json.dumps(self.features.to_dict(), indent=2))
        (folder / _TRAINING).write_text(json.dumps({"timestamps": self.timestamps}))
        tables = [{"key": dataclasses.asdict(key), "names": names} for key, names in self.tables]
        (folder / _TABLES).write_text(json.dumps(tables))
        arrays = {}
        # Names of features may be any text, which names of files may not.
        for number, name in enumerate(_id_names(self.features)):
            if name in self.vocabularies:
                ids = self.vocabularies[name]
                if ids.dtype.kind == "O":
                    ids, arrays[f"lengths_{number}"] = join_bytes(ids)
                arrays[f"ids_{number}"] = ids
        np.savez(folder / _VOCABULARIES, **arrays)

    @classmethod
    def read(cls, version_dir: Path, *, vocabularies: bool = True) -> Contract:
        """The contract of a version that `export_model` wrote.

        Args:
            version_dir: of the SavedModel.
            vocabularies: whether to read them.

        Raises:
            FileNotFoundError: if it is no such version.
            ValueError: if a file is broken.
        """
        folder = version_dir / _FOLDER
        try:
            features = Features.from_dict(json.loads((folder / _FEATURES).read_text()))
            training = json.loads((folder / _TRAINING).read_text())
            timestamps = training["timestamps"]
            # Older versions lack it.
            tables = json.loads((folder / _TABLES).read_text()) if (folder / _TABLES).exists() else []
            known = _read_vocabularies(folder / _VOCABULARIES, features) if vocabularies else {}
            return cls(
                features,
                known,
                None if timestamps is None else tuple(timestamps),
                tuple(LookedUp(Feature(**table["key"]), tuple(table["names"])) for table in tables),
            )
        except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{folder} holds no contract of a version: {error!r}") from error


def check_timestamps(timestamps: tuple[int, int] | None) -> None:
    """Raises ValueError unless the timestamps are `None` or two integers, the first not after the last."""
    if timestamps is None:
        return
    if len(timestamps) != 2 or not all(map(is_integer, timestamps)) or timestamps[0] > timestamps[1]:
        raise ValueError(
            "`timestamps` must be None, or the first and the last of the training data, as integers. "
            f"Received: timestamps={timestamps!r}"
        )


def _id_names(features: Features) -> list[str]:
    return [feature.name for feature in features.all_features if feature.is_id]


def _read_vocabularies(path: Path, features: Features) -> dict[str, np.ndarray]:
    vocabularies = {}
    with np.load(path) as arrays:
        for number, name in enumerate(_id_names(features)):
            if f"ids_{number}" not in arrays:
                continue
            ids = arrays[f"ids_{number}"]
            if f"lengths_{number}" in arrays:
                ids = split_bytes(ids, arrays[f"lengths_{number}"])
            vocabularies[name] = ids
    return vocabularies
