"""A Beam that does not find out the same things over and over, which takes much of the time of a small pipeline."""

from __future__ import annotations

import argparse
import logging
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from apache_beam.internal import pickler
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.worker import statecache
from apache_beam.transforms import core, userstate

Arguments = tuple[list[str], list[Any]]
Specs = tuple[set[Any], set[Any]]


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
        patch.setattr(userstate, "get_dofn_specs", _remembering_specs(userstate.get_dofn_specs))
        patch.setattr(PipelineOptions, "view_as", _remembering_views(PipelineOptions.view_as))
        patch.setattr(pickler, "dumps", _remembering_nothing(pickler.dumps))
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


def _remembering_specs(inspect: Callable[[Any], Specs]) -> Callable[[Any], Specs]:
    """Looks for state and timers once in each class of DoFns, all of whose methods Beam goes through each time."""
    known: weakref.WeakKeyDictionary[type, Specs] = weakref.WeakKeyDictionary()

    def remembered(dofn: Any) -> Specs:
        if any(isinstance(value, types.MethodType) for value in vars(dofn).values()):
            return inspect(dofn)
        if type(dofn) not in known:
            known[type(dofn)] = inspect(dofn)
        states, timers = known[type(dofn)]
        return states.copy(), timers.copy()

    return remembered


def _remembering_views(view_as: Callable[[Any, type], Any]) -> Callable[[Any, type], Any]:
    """Parses flags once for each view of some options, which Beam asks for at every step; views share their values."""
    known: weakref.WeakKeyDictionary[PipelineOptions, dict[type, Any]] = weakref.WeakKeyDictionary()

    def remembered(options: Any, cls: type) -> Any:
        views = known.setdefault(options, {})
        if cls not in views:
            views[cls] = view_as(options, cls)
        return views[cls]

    return remembered


def _remembering_nothing(dumps: Callable[..., bytes]) -> Callable[..., bytes]:
    """Pickles `()` and `{}`, the side inputs of most steps, once."""
    known = {kind: dumps(kind()) for kind in (tuple, dict)}

    def remembered(value: Any, *arguments: Any, **options: Any) -> bytes:
        if type(value) in known and not value and not arguments and not options:
            return known[type(value)]
        return dumps(value, *arguments, **options)

    return remembered
