"""A Beam that does not find out the same things over and over, which takes much of the time of a small pipeline."""

from __future__ import annotations

import argparse
import logging
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from apache_beam.runners.worker import statecache
from apache_beam.transforms import core

Arguments = tuple[list[str], list[Any]]


@pytest.fixture(scope="session", autouse=True)
def quick_beam() -> Iterator[None]:
    """In this process alone; commands that tests start have Beam as it is."""
    with pytest.MonkeyPatch.context() as patch:
        # Set to what it is after every pickle, upon which `logging` forgets what it knows of all loggers.
        patch.setattr(logging.getLogger("dill"), "setLevel", lambda level: None)
        # What is cached is measured, with the globals of all modules, to throw it away when it is 100 MB.
        patch.setattr(statecache, "get_deep_size", lambda *objects: 1)
        # Options are parsed anew for each transform, and each parser looks for translations of its headings.
        patch.setattr(argparse, "_", lambda text: text)
        patch.setattr(core, "get_function_args_defaults", _remembering(core.get_function_args_defaults))
        yield


def _remembering(inspect: Callable[[Any], Arguments]) -> Callable[[Any], Arguments]:
    """Inspects each method once, for all objects that have it: Beam asks for every method of a DoFn ten times."""
    known: weakref.WeakKeyDictionary[Callable[..., Any], Arguments] = weakref.WeakKeyDictionary()

    def remembered(function: Any) -> Arguments:
        if not isinstance(function, types.MethodType):
            return inspect(function)
        if function.__func__ not in known:
            known[function.__func__] = inspect(function)
        names, defaults = known[function.__func__]
        return names.copy(), defaults.copy()

    return remembered
