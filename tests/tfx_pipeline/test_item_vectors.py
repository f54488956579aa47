"""The embeddings of a served version as a file of item vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_eta import Feature, Features
from keras_eta.datasets.item_vectors import load_item_vectors
from keras_eta.export import export_model
from keras_eta.interest import ETAInterest, InterestUnit, RecentInterest
from tfx_pipeline.item_vectors import main
from tfx_pipeline.model_config import Model
from tfx_pipeline.ranker import make_ranker


@pytest.mark.parametrize(
    ("unit", "dtype", "ids"),
    [(ETAInterest(1), "string", ["b", "é", "a"]), (RecentInterest(1), "int64", [7, 0, 5])],
)
def test_file_holds_the_embeddings_of_the_version(
    unit: InterestUnit, dtype: str, ids: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    features = Features(Feature("item id", dtype, 2), (Feature("brand", embedding_dim=2),), user=(Feature("user_id"),))
    features = features.with_vocabulary_sizes({"item id": 3, "brand": 1, "user_id": 2})
    vocabularies = {"item id": ids, "brand": [4], "user_id": [1, 2]}
    model = make_ranker(Model((unit,), hidden_units=(2,)), features, vocabularies)
    version, file = export_model(model, tmp_path / "served", 3, warmup=False), tmp_path / "items.npz"
    assert main(["--version_dir", str(version), "--file", str(file)]) == 0
    assert capsys.readouterr().out == f"{file} written: 3 items. Run the pipeline with --clusters {file}\n"
    index, vectors = load_item_vectors(file)
    assert sorted(index) == sorted(ids)
    table = model.embeddings["item id"].embeddings.numpy()
    # Row 0 is padding, then come the out-of-vocabulary buckets.
    reserved = 1 + features.item_id.num_oov_indices
    for id_, vector in zip(index, vectors, strict=True):
        np.testing.assert_array_equal(vector, table[reserved + ids.index(id_)])


def test_what_is_no_version_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["--version_dir", str(tmp_path), "--file", str(tmp_path / "items.npz")]) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} is no version of a ranker: there is no ")
