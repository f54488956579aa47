"""`retrieve` of one user with and without the decoder's cache, the search compiled by XLA or not."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.timing import measure, summary, table
from benchmarks.two_stages.uncached import UncachedTIGER
from keras_eta.export import export_retriever
from keras_eta.models import TIGER
from keras_eta.quantization import random_codes
from keras_eta.semantic_ids import SemanticIds
from serving.client import RankingClient
from serving.models_config import models_config
from serving.process import ServerProcess

ITEMS, LEVELS, CODEBOOK_SIZE = 3_706, 3, 256
# Arguments of TIGER. The paper's, in its Section 4, but for the token of the user.
SIZES: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {
        "dim": 128,
        "num_heads": 6,
        "key_dim": 64,
        "num_layers": 4,
        "feed_forward_units": 1024,
        "spelt_history": True,
    },
}


def latency(flags: argparse.Namespace) -> int:
    """Serves both decoders with the same random weights, and prints their times by width of the beam."""
    sizes = (CODEBOOK_SIZE,) * LEVELS
    items = np.arange(1, ITEMS + 1)
    ids = SemanticIds.from_codes(items, random_codes(ITEMS, sizes, seed=0), sizes, max_collisions=16)
    cached, uncached = (kind(ids, **SIZES[flags.size]) for kind in (TIGER, UncachedTIGER))
    for model in (cached, uncached):
        model.build()
    uncached.set_weights(cached.get_weights())
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        models = {}
        for beams in flags.beams:
            for name, model in (("cache", cached), ("no_cache", uncached)):
                for xla in (True, False):
                    full_name = f"{name}_{beams}{'_xla' if xla else ''}"
                    path = models[full_name] = Path(folder, full_name)
                    export_retriever(model, path, num_results=beams, num_beams=beams, jit_compile=xla)
        config = Path(folder, "models.config")
        config.write_text(models_config(models), encoding="utf-8")
        flag = f"--model_config_file={config}"
        address = stack.enter_context(ServerProcess(flag, log=Path(folder, "server.log"))).address
        history = np.random.default_rng(0).choice(items, (1, cached.max_history_length))
        inputs = {"history_item_id": history, "excluded_item_id": history}
        inputs |= {name: np.array([history.shape[1]]) for name in ("history_length", "excluded_length")}
        clients = {name: stack.enter_context(RankingClient(address, model_name=name)) for name in models}
        answers = {name: client.predict(inputs, "retrieve")["item_id"] for name, client in clients.items()}
        for beams in flags.beams:
            names = [f"{name}_{beams}{xla}" for xla in ("_xla", "") for name in ("cache", "no_cache")]
            if not all(np.array_equal(answers[name], answers[names[0]]) for name in names):
                raise ValueError(f"With {beams} beams the decoders find different items.")
            calls = {name: lambda client=clients[name]: client.predict(inputs, "retrieve") for name in names}
            times = measure(calls, flags.rounds)
            title = f"retrieve, one user, {beams} beams, {flags.size} size"
            Console().print(table(title, summary(times, names[0]), names[0]))
    return 0
