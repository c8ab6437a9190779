"""Figure 9's eigenvalues against explicit matrices, its penalty against its formula, and a small training."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from examples.paper.curvature import figure9, train
from examples.paper.curvature.mlp import MLP, Penalty, cross_entropy, directions, distance_from_power_law, train_epoch
from examples.paper.curvature.spectra import decay_exponent, hessian, output_covariance
from examples.paper.results import read_rows

MODEL = MLP(12)


@pytest.fixture(scope="module")
def small():
    """A network, its parameters, and random images with labels."""
    images = jax.random.normal(jax.random.key(0), (40, 6))
    labels = jax.random.randint(jax.random.key(1), (40,), 0, 10)
    return MODEL.init(jax.random.key(2), images), images, labels


@pytest.mark.slow
def test_hessian_eigenvalues_are_those_of_the_explicit_hessian(small):
    params, images, labels = small
    loss = partial(cross_entropy, MODEL, images=images, labels=labels)
    point, restore = jax.flatten_util.ravel_pytree(params)
    explicit = np.asarray(jax.hessian(lambda point: loss(restore(point)))(point), np.float64)
    expected = np.linalg.eigvalsh((explicit + explicit.T) / 2)[::-1][:8]
    assert np.abs(explicit).max() > 1e-2
    np.testing.assert_allclose(hessian(loss, params, 8), expected, rtol=1e-3)


def test_output_covariance_is_that_of_its_formula(small):
    params, images, _ = small
    outputs = np.asarray(MODEL.apply(params, images)[1], np.float64)
    explicit = sum(np.outer(output, output) for output in outputs) / len(outputs)
    np.testing.assert_allclose(output_covariance(outputs, 5), np.linalg.eigvalsh(explicit)[::-1][:5], rtol=1e-6)


def test_a_power_law_s_exponent_is_found_whatever_comes_before_it():
    eigenvalues = np.concatenate([[90.0, 80.0, 70.0], 3.0 / np.arange(4, 51) ** 1.25])
    assert decay_exponent(eigenvalues, 4, 50) == pytest.approx(1.25)


def test_directions_are_the_covariance_s_eigenvectors(small):
    params, images, _ = small
    hidden = MODEL.apply(params, images)[1]
    along = directions(MODEL, params, images, 5)
    variances = np.mean(np.asarray(hidden @ along) ** 2, axis=0)
    np.testing.assert_allclose(variances, output_covariance(hidden, 5), rtol=1e-4)
    np.testing.assert_allclose(along.T @ along, np.eye(5), atol=1e-3)


def test_a_power_law_costs_nothing_and_too_much_costs_twice():
    penalty = Penalty(1.5, first=4)
    law = 7.0 / jnp.arange(1, 21) ** 1.5
    free = law.at[:3].mul(9.0)
    assert distance_from_power_law(free, penalty) == pytest.approx(0, abs=1e-6)
    too_large, too_small = law.at[9].mul(1.5), law.at[9].mul(0.5)
    assert distance_from_power_law(too_large, penalty) == pytest.approx(2 * 0.5 / 17, rel=1e-5)
    assert distance_from_power_law(too_small, penalty) == pytest.approx(0.5 / 17, rel=1e-5)


@pytest.mark.slow
def test_the_penalty_brings_the_output_covariance_to_its_power_law():
    images, labels, *_ = train.digits.load()
    images = images.reshape(len(images), -1)
    model, optimizer = MLP(300), optax.adam(1e-3)
    order = np.random.default_rng(0).permutation(len(images))[:1408].reshape(11, 128)

    def reached(penalty):
        params = model.init(jax.random.key(0), images[:1])
        state = (params, optimizer.init(params))
        epoch = jax.jit(partial(train_epoch, model, optimizer, penalty))
        for _ in range(20):
            state = epoch(state, images, labels, order)
        return decay_exponent(output_covariance(model.apply(state[0], images)[1], 50), 10, 50)

    assert reached(None) > 1.5
    assert reached(Penalty(1.0, last=60)) == pytest.approx(1.0, abs=0.1)


@pytest.mark.slow
def test_runs_are_measured_once_and_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "WIDTH", 60)
    monkeypatch.setattr(train, "MEASURED", (1, 10, 11, 12))
    results, figure = tmp_path / "results.jsonl", tmp_path / "figure.png"
    train.train(seeds=(1,), exponents=(1.0,), results=results)
    train.train(seeds=(1, 2), exponents=(1.0,), results=results)
    rows = read_rows(results)
    assert [row["settings"] for row in rows] == [
        {"exponent": asked, "seed": seed} for seed in (1, 2) for asked in (1.0, None)
    ]
    capsys.readouterr()
    figure9.figure9(results, figure)
    said = capsys.readouterr().out
    assert "penalty for 1, epochs 1 to 50: r" in said and "across" not in said and figure.stat().st_size > 10_000
