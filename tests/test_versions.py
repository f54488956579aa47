"""Which names in a base path are versions."""

from __future__ import annotations

import pytest

from keras_eta.versions import HIGHEST_VERSION, versions


def test_versions_are_int64_in_ascii_digits() -> None:
    names = ["1", "0", "007", "20/", "9223372036854775807"]
    assert versions(names) == {1: "1", 0: "0", 7: "007", 20: "20", 9223372036854775807: "9223372036854775807"}
    assert HIGHEST_VERSION == 9223372036854775807


@pytest.mark.parametrize(
    "name", ["", "/", "-1", "+1", "1.0", "1e3", " 1", "1\n", "1_0", "v1", "٣", "²", ".5", "9223372036854775808", "1/2"]
)
def test_other_names_are_none(name: str) -> None:
    assert versions([name]) == {}


def test_newest_version_is_the_highest_number() -> None:
    assert max(versions(["9", "10", "100000000000000000000"])) == 10
    assert max(versions([]), default=None) is None


def test_of_two_names_of_one_version_the_plain_one_counts() -> None:
    assert versions(["7", "007"]) == versions(["007", "7"]) == {7: "7"}
