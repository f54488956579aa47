from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from keras_eta import RQVAE
from keras_eta.layers import Dice
from keras_eta.quantization import ResidualKMeans
from tests import retrieval_reference as reference

DIM = 6


def make_vectors(rows: int = 400, seed: int = 0) -> np.ndarray:
    """Vectors around 20 centres, in float32."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(9).standard_normal((20, DIM))
    return (centres[rng.integers(0, 20, rows)] + 0.2 * rng.standard_normal((rows, DIM))).astype(np.float32)


def make_model(**arguments: Any) -> RQVAE:
    sizes = {"hidden_units": (16, 8), "latent_dim": 4, "levels": 2, "codebook_size": 8}
    return RQVAE(DIM, **{**sizes, **arguments})


@pytest.fixture
def trained(seeded: None) -> RQVAE:
    model = make_model()
    model.compile()
    model.fit(make_vectors(), batch_size=100, epochs=2, verbose=0)
    return model


def dense(layers: tf.keras.Sequential, vectors: np.ndarray) -> np.ndarray:
    """ReLU layers and a linear one, in float64."""
    weights = [weight.astype(np.float64) for weight in layers.get_weights()]
    for kernel, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        vectors = np.maximum(vectors @ kernel + bias, 0)
    return vectors @ weights[-2] + weights[-1]


def test_losses_and_codes_equal_the_reference(trained: RQVAE) -> None:
    vectors = make_vectors(50, seed=1)
    codebooks = trained.quantizer.codebooks.numpy()
    codes, sums, *losses = reference.residual_quantizer(dense(trained.encoder, vectors), codebooks, 0.25)
    np.testing.assert_array_equal(trained.codes(vectors), codes, strict=True)
    reconstruction = np.square(vectors - dense(trained.decoder, sums)).sum(axis=1).mean()
    quantizer = np.sum(losses, axis=0).mean()
    for inputs in (tf.constant(vectors), (tf.constant(vectors),)):
        found = {name: float(value) for name, value in trained.compute_losses(inputs).items()}
        expected = {
            "loss": reconstruction + quantizer,
            "reconstruction_loss": reconstruction,
            "quantizer_loss": quantizer,
        }
        assert found == pytest.approx(expected, rel=1e-4)
    assert trained.evaluate(vectors, verbose=0, return_dict=True)["loss"] == pytest.approx(found["loss"], rel=1e-4)


def test_sizes_are_the_papers_by_default_and_the_decoder_mirrors_the_encoder() -> None:
    model = RQVAE(64)
    model.build()
    shapes = [tuple(weight.shape) for weight in model.encoder.weights if len(weight.shape) == 2]
    assert shapes == [(64, 512), (512, 256), (256, 128), (128, 32)]
    shapes = [tuple(weight.shape) for weight in model.decoder.weights if len(weight.shape) == 2]
    assert shapes == [(32, 128), (128, 256), (256, 512), (512, 64)]
    assert model.quantizer.codebooks.shape == [3, 256, 32]


@pytest.mark.parametrize("kind", ["array", "dataset", "tuples"])
def test_fit_starts_from_k_means_once(kind: str, seeded: None) -> None:
    vectors = make_vectors()
    model = make_model()
    model.compile(tf.keras.optimizers.SGD(0.0))
    model.build()
    data: Any = vectors
    if kind != "array":
        data = tf.data.Dataset.from_tensor_slices(vectors if kind == "dataset" else (vectors,)).batch(64)
    history = model.fit(data, epochs=2, verbose=0).history
    quantizer = ResidualKMeans(2, 8).fit(model.encoder(vectors))
    np.testing.assert_allclose(model.quantizer.codebooks, np.stack(quantizer.codebooks), atol=1e-6)
    # The metrics are those of all codes of the epoch.
    codes = model.codes(vectors)
    for level in range(2):
        expected = reference.usage_and_perplexity(codes[:, level].tolist(), 8)
        found = history[f"usage_{level + 1}"][-1], history[f"perplexity_{level + 1}"][-1]
        assert found == pytest.approx(expected, rel=1e-5)
    model.quantizer.codebooks.assign_add(tf.ones_like(model.quantizer.codebooks))
    moved = model.quantizer.codebooks.numpy()
    model.fit(data, verbose=0)
    np.testing.assert_array_equal(model.quantizer.codebooks.numpy(), moved)


def test_fit_on_many_vectors_takes_some_to_start_from(monkeypatch: pytest.MonkeyPatch) -> None:
    # 64 per code are enough: 2 * 64 of 300, or batches until there are as many.
    taken = []
    monkeypatch.setattr(RQVAE, "initialize", lambda self, vectors: taken.append(vectors))
    vectors = make_vectors(300)
    model = make_model(codebook_size=2)
    model.compile()
    model.fit(vectors, verbose=0)
    model.fit(tf.data.Dataset.from_tensor_slices(vectors).batch(50).repeat(), steps_per_epoch=1, verbose=0)
    np.testing.assert_array_equal(taken[0], vectors[::2])
    np.testing.assert_array_equal(taken[1], vectors[:150])


def test_training_lowers_the_loss_and_uses_the_codes(seeded: None) -> None:
    vectors = make_vectors()
    model = make_model()
    model.compile(model.default_optimizer(0.01, 0.01))
    history = model.fit(vectors, batch_size=100, epochs=60, verbose=0).history
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    assert min(history["usage_1"][-1], history["usage_2"][-1]) >= 0.8
    codes = model.codes(vectors)
    assert [len(np.unique(codes[:, level])) for level in range(2)] >= [7, 7]


@pytest.mark.parametrize(("save_format", "optimizer"), [("keras", None), ("keras", "adam"), ("tf", None)])
def test_saved_model_gives_the_same_codes_and_trains_on(
    save_format: str, optimizer: Any, tmp_path: Path, seeded: None
) -> None:
    vectors = make_vectors()
    model = make_model(activation=Dice, commitment_weight=0.5, restart_after=7, seed=3)
    model.compile(optimizer)
    model.fit(vectors, batch_size=100, epochs=2, verbose=0)
    path = str(tmp_path / ("model.keras" if save_format == "keras" else "model"))
    model.save(path, save_format=save_format)
    reloaded = tf.keras.models.load_model(path)
    assert isinstance(reloaded, RQVAE)
    assert reloaded.get_config() == {
        "name": model.name,
        "dim": DIM,
        "hidden_units": (16, 8),
        "latent_dim": 4,
        "activation": "keras_eta>Dice",
        "levels": 2,
        "codebook_size": 8,
        "commitment_weight": 0.5,
        "restart_after": 7,
        "seed": 3,
    }
    np.testing.assert_array_equal(reloaded.codes(vectors), model.codes(vectors), strict=True)
    assert len(np.unique(model.codes(vectors)[:, 0])) > 4
    if optimizer is None:
        reloaded.compile()
    reloaded.optimizer.learning_rate = 0.0
    reloaded.fit(vectors, epochs=1, verbose=0)
    # Not started from k-means again.
    np.testing.assert_allclose(reloaded.quantizer.codebooks, model.quantizer.codebooks, atol=1e-6)


def test_default_optimizer_is_adam_for_the_codebooks_too() -> None:
    model = make_model()
    model.compile()
    assert [type(part).__name__ for part in model.optimizer.optimizers] == ["Adam", "Adam"]
    rates = [float(part.learning_rate) for part in model.default_optimizer(0.25, 0.5).optimizers]
    assert rates == [0.25, 0.5]
    with pytest.raises(ValueError, match="`dense_learning_rate` must be a number of at least 0"):
        model.default_optimizer(0.1, -1.0)
    model.build()
    assert [tuple(variable.shape) for variable in model.embedding_variables()] == [(2, 8, 4)]
    assert len(model.dense_variables()) == 2 * 6


def test_codes_are_the_same_in_graphs_and_in_predict(trained: RQVAE) -> None:
    vectors = make_vectors(30, seed=2)
    codes = trained.codes(vectors)
    np.testing.assert_array_equal(tf.function(trained)(vectors), codes)
    np.testing.assert_array_equal(trained.predict(vectors, batch_size=7, verbose=0), codes, strict=True)
    assert trained.codes(vectors[:0]).shape == (0, 2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dim": 0}, ValueError, "`dim` must be a positive integer. Received: dim=0"),
        ({"latent_dim": 0}, ValueError, "`latent_dim` must be a positive integer. Received: latent_dim=0"),
        ({"hidden_units": ()}, ValueError, "`hidden_units` must be positive integers. Received: hidden_units=()"),
        ({"levels": 0}, ValueError, "`levels` must be a positive integer. Received: levels=0"),
        ({"activation": 3}, TypeError, "`activation` must be a name or a class of layers. Received: activation=3"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        RQVAE(**{"dim": DIM, **arguments})


def test_wrong_vectors_are_refused() -> None:
    model = make_model()
    model.compile()
    wrong = np.full([3, DIM], np.nan)
    for method in (model.fit, model.codes, model.initialize):
        with pytest.raises(ValueError, match=re.escape("`vectors` must be finite as float32. Received at row 0")):
            method(wrong)
        with pytest.raises(ValueError, match=re.escape("`vectors` must have dim=6 columns. Received: shape [3, 5]")):
            method(np.zeros([3, 5]))
    message = "RQVAE trains on vectors alone. Received: batches with labels or weights"
    with pytest.raises(ValueError, match=message):
        model.fit(tf.data.Dataset.from_tensors((make_vectors(), np.zeros(400))))
    with pytest.raises(ValueError, match=message):
        model.fit(make_vectors(), np.zeros(400))
    with pytest.raises(ValueError, match=re.escape("The data set has no batches.")):
        make_model().fit(tf.data.Dataset.from_tensor_slices(make_vectors(0)).batch(2))
