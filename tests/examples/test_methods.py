"""Each method against its formula, written out in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import numpy_project

import tb_optax
from examples.paper.vision.methods import create_optimizer, create_schedule
from examples.paper.vision.settings import Settings
from tb_optax import assignments, metrics

STEPS_PER_EPOCH = 2
WEIGHTS = lambda params: tb_optax.find_layers(params, min_eigenvalues=2)
SMALL = Settings(epochs=3, learning_rate=0.1)


def optimizer(settings):
    schedule = create_schedule(settings, STEPS_PER_EPOCH)
    return create_optimizer(settings, schedule, STEPS_PER_EPOCH, tb_optax.find_layers, WEIGHTS), schedule


def train(settings, steps=6):
    """The weights after each step, under a gradient that is a function of them, and the last state."""
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        f"layer{i}": {"kernel": jax.random.normal(key, (50, 60)), "bias": jnp.full(60, 0.5)} for i, key in enumerate(keys)
    }
    tx, _ = optimizer(settings)
    state, path = tx.init(params), [params]
    for step in range(steps):
        state = at_start_of_step(tx, settings, step, state, params)
        updates, state = tx.update(gradient(params, step), state, params)
        params = optax.apply_updates(params, updates)
        path.append(params)
    return path, state


def at_start_of_step(tx, settings, step, state, params):
    """The optimizer's state, with scales refreshed if the loop refreshes them before this step."""
    starts = step % STEPS_PER_EPOCH == 0 and settings.refreshed_by_loop(STEPS_PER_EPOCH) and hasattr(tx, "refresh")
    return tx.refresh(state, params) if starts else state


def gradient(params, step):
    return jax.tree.map(lambda w: jnp.cos(w + step), params)


def assert_follows(settings, rule, steps=6):
    """Every array of every step is what `rule(memory, weight, gradient, rate, step)` makes of the one before."""
    path, _ = train(settings, steps)
    schedule = create_schedule(settings, STEPS_PER_EPOCH)
    for name in path[0]:
        for kind in path[0][name]:
            weight, memory = np.asarray(path[0][name][kind], np.float64), {}
            for step in range(steps):
                grads = jax.tree.map(lambda g: np.asarray(g, np.float64), gradient(path[step], step))
                memory["all"] = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(grads)))
                weight = weight - rule(memory, weight, grads[name][kind], float(schedule(step)), step)
                np.testing.assert_allclose(path[step + 1][name][kind], weight, rtol=2e-5, atol=2e-6)


def momentum(memory, gradient):
    memory["buffer"] = 0.9 * memory.get("buffer", 0.0) + gradient
    return memory["buffer"]


def moments(memory, gradient, step, epsilon):
    memory["first"] = 0.9 * memory.get("first", 0.0) + 0.1 * gradient
    memory["second"] = 0.999 * memory.get("second", 0.0) + 0.001 * gradient**2
    first, second = memory["first"] / (1 - 0.9 ** (step + 1)), memory["second"] / (1 - 0.999 ** (step + 1))
    return first / (np.sqrt(second) + epsilon)


def test_the_learning_rate_is_a_cosine_constant_within_an_epoch():
    schedule = create_schedule(Settings(method="cal", epochs=4, learning_rate=0.1), 10)
    for step in range(40):
        assert float(schedule(step)) == pytest.approx(0.05 * (1 + np.cos(np.pi * (step // 10) / 4)))


def test_sgdr_starts_the_cosine_anew():
    schedule = create_schedule(Settings(method="sgdr", epochs=200, learning_rate=0.1), 1)
    assert [float(schedule(epoch)) for epoch in (0, 50, 100, 150)] == pytest.approx([0.1, 0.05, 0.1, 0.05])
    schedule = create_schedule(Settings(method="sgdr", epochs=200, restart_epochs=10, learning_rate=0.1), 1)
    assert float(schedule(19)) == pytest.approx(float(schedule(9))) == pytest.approx(0.05 * (1 + np.cos(0.9 * np.pi)))


@pytest.mark.parametrize("method", ["cal", "sgdr"])
def test_sgd_is_pytorchs(method):
    assert_follows(
        dataclasses.replace(SMALL, method=method),
        lambda memory, w, g, rate, _: rate * momentum(memory, g + 5e-4 * w),
    )


def test_adam_decays_weights_in_the_gradient_and_adamw_beside_it():
    adam = dataclasses.replace(SMALL, method="adam", weight_decay=0.1)
    assert_follows(adam, lambda memory, w, g, rate, step: rate * moments(memory, g + 0.1 * w, step, 1e-8))
    adamw = dataclasses.replace(adam, method="adamw")
    assert_follows(adamw, lambda memory, w, g, rate, step: rate * (moments(memory, g, step, 1e-8) + 0.1 * w))


def test_lars_gives_each_array_a_step_in_proportion_to_its_norm():
    def rule(memory, w, g, rate, step):
        decayed = g + 5e-4 * w
        return rate * 0.001 * np.linalg.norm(w) / (np.linalg.norm(decayed) + 1e-5) * decayed

    assert_follows(dataclasses.replace(SMALL, method="lars", learning_rate=5.0), rule)


def test_lamb_scales_adam_of_clipped_gradients_to_each_arrays_norm():
    def rule(memory, w, g, rate, step):
        direction = moments(memory, g / max(1.0, memory["all"]), step, 1e-6) + 5e-4 * w
        return rate * np.linalg.norm(w) / np.linalg.norm(direction) * direction

    assert_follows(dataclasses.replace(SMALL, method="lamb"), rule)


@pytest.mark.parametrize("method", ["sgdp", "adamp"])
def test_sgdp_and_adamp_take_out_what_lies_along_a_weight_that_its_gradient_is_orthogonal_to(method, monkeypatch):
    def sometimes_orthogonal(params, step):
        """At even steps, a matrix's gradient is orthogonal to the weights of each output."""
        along = lambda g, w: g - (g * w).sum(0) / (w * w).sum(0) * w if step % 2 == 0 and w.ndim == 2 else g
        return jax.tree.map(along, whole_gradient(params, step), params)

    def rule(memory, w, g, rate, step):
        direction = momentum(memory, g) if method == "sgdp" else moments(memory, g, step, 1e-8)
        decay = 0.1 / (1 - 0.9) if method == "sgdp" else 0.1
        if w.ndim == 2:
            projected, view = numpy_project(w.T, g.T, direction.T)  # outputs first
            assert view == ("outputs" if step % 2 == 0 else "")
            direction, decay = projected.T, decay * (0.1 if view else 1.0)
        return rate * (direction + decay * w)

    whole_gradient = gradient
    monkeypatch.setattr(f"{__name__}.gradient", sometimes_orthogonal)
    assert_follows(dataclasses.replace(SMALL, method=method, weight_decay=0.1), rule)


def test_lookahead_pulls_the_weights_back_every_few_steps():
    def rule(memory, w, g, rate, step):
        slow = memory.setdefault("slow", w)
        moved = w - rate * momentum(memory, g + 5e-4 * w)
        if (step + 1) % 3 == 0:
            moved = memory["slow"] = slow + 0.8 * (moved - slow)
        return w - moved

    assert_follows(dataclasses.replace(SMALL, method="lookahead", lookahead_steps=3), rule)


def test_snr_adds_the_gradient_of_half_the_squared_spectral_norm():
    """Of a weight of rank one, where that is the weight itself."""
    settings = dataclasses.replace(SMALL, method="snr", snr_coefficient=0.2, weight_decay=0.0)
    params = {"layer": {"kernel": jnp.outer(jnp.arange(1.0, 5.0), jnp.array([1.0, -2.0, 0.5])), "bias": jnp.ones(3)}}
    tx, _ = optimizer(settings)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_allclose(updates["layer"]["kernel"], -0.1 * 0.2 * params["layer"]["kernel"], rtol=1e-4, atol=1e-7)
    assert not updates["layer"]["bias"].any()


@pytest.mark.parametrize("base", ["cal", "snr", "sgdp", "adam", "adamw"])
def test_tempbalance_scales_the_step_of_the_optimizer_before_it(base):
    """The first step, whose weights and optimizer states are the same with and without."""
    method = "tb" if base == "cal" else f"tb+{base}"
    (before, alone), _ = train(dataclasses.replace(SMALL, method=base), steps=1)
    (_, balanced), state = train(dataclasses.replace(SMALL, method=method), steps=1)
    scales = optax.tree_utils.tree_get(state, "TempBalanceState").scale
    assert min(scales.values()) == 0.5 and max(scales.values()) == 1.5
    for name in before:
        for kind in before[name]:
            moved = np.asarray(alone[name][kind] - before[name][kind])
            expected = float(scales[name]) * moved
            np.testing.assert_allclose(balanced[name][kind] - before[name][kind], expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "metric", "assign"),
    [
        (dict(metric="spectral_norm"), metrics.spectral_norm, assignments.linear),
        (dict(metric="alpha_weighted"), metrics.alpha_weighted, assignments.linear),
        (dict(fit="goodness_of_fit"), lambda e: tb_optax.fits.goodness_of_fit(e).alpha, assignments.linear),
        (dict(fit="fix_finger"), lambda e: tb_optax.fits.fix_finger(e).alpha, assignments.linear),
        (dict(assignment="sqrt"), metrics.pl_alpha_hill, assignments.sqrt),
        (dict(assignment="log2"), metrics.pl_alpha_hill, assignments.log2),
        (dict(assignment="step", min_scale=0.2, max_scale=1.1), metrics.pl_alpha_hill, assignments.step),
        (dict(assignment="sigmoid"), metrics.pl_alpha_hill, assignments.sigmoid),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_flags_choose_the_metric_the_fit_and_the_assignment(changes, metric, assign, monkeypatch):
    chosen, identity = {}, optax.with_extra_args_support(optax.identity())
    monkeypatch.setattr(tb_optax, "tempbalance", lambda **options: chosen.update(options) or identity)
    settings = dataclasses.replace(SMALL, method="tb", **changes)
    optimizer(settings)
    eigenvalues = jnp.asarray(np.sort(np.random.default_rng(0).pareto(2.0, 60)), jnp.float32)
    np.testing.assert_allclose(chosen["metric"](eigenvalues), metric(eigenvalues), rtol=1e-6)
    alphas, bounds = jnp.array([2.0, 2.5, 4.5, 6.0]), (settings.min_scale, settings.max_scale)
    np.testing.assert_array_equal(chosen["assign"](alphas, *bounds), assign(alphas, *bounds))
    assert (chosen["min_scale"], chosen["max_scale"]) == bounds


@pytest.mark.slow
def test_flags_choose_windows_for_spectra_and_for_the_decay_its_range():
    windows = tb_optax.Windows(4)
    for method, changes, state_name in (
        ("tb", {}, "TempBalanceState"),
        ("adamw+alphadecay", dict(min_decay_scale=0.8, max_decay_scale=3.0), "AlphaDecayState"),
    ):
        (before, _), state = train(dataclasses.replace(SMALL, method=method, spectrum_rows=4, **changes), steps=1)
        spectra = tb_optax.spectra(before, windows=windows).values()
        alphas = jnp.stack([metrics.pl_alpha_hill(values) for values in spectra])
        bounds = (0.5, 1.5) if method == "tb" else (0.8, 3.0)
        scales = optax.tree_utils.tree_get(state, state_name).scale
        np.testing.assert_allclose([scales[name] for name in before], assignments.linear(alphas, *bounds), rtol=1e-3)


def test_scales_are_refreshed_at_the_interval_from_the_start_epoch_on():
    """Whether a step changed the scales, over three epochs of two steps."""

    def changed(**changes):
        settings = dataclasses.replace(SMALL, method="tb", **changes)
        tx, _ = optimizer(settings)
        params = train(SMALL, 0)[0][0]
        state, before, found = tx.init(params), None, []
        for step in range(6):
            state = at_start_of_step(tx, settings, step, state, params)
            updates, state = tx.update(gradient(params, step), state, params)
            params = optax.apply_updates(params, updates)
            metrics = [float(v) for v in optax.tree_utils.tree_get(state, "TempBalanceState").metric.values()]
            found.append(metrics != before and metrics != [0.0] * 3)
            before = metrics
        return found

    assert changed() == [True, False, True, False, True, False]  # once an epoch
    assert changed(update_interval=1) == [True] * 6
    assert changed(start_epoch=2) == [False] * 4 + [True, False]


def test_settings_that_a_method_does_not_use_do_not_make_another_run():
    assert Settings(method="cal", min_scale=0.2, snr_coefficient=1.0).resolved() == Settings(method="cal").resolved()
    assert Settings(method="tb+snr", snr_coefficient=1.0).resolved() != Settings(method="tb+snr").resolved()
    decay = Settings(method="adamw+alphadecay")
    assert dataclasses.replace(decay, control="mean", max_scale=3.0).resolved() == decay.resolved()
    assert dataclasses.replace(decay, spectrum_rows=20).resolved() != decay.resolved()
    assert Settings(method="tb", max_decay_scale=9.0).resolved() == Settings(method="tb").resolved()


@pytest.mark.parametrize("name", Settings.methods())
def test_a_method_starts_at_the_rate_of_what_it_is_made_of_and_balances_where_its_name_says(name):
    parts = name.split("+")
    alone = "+".join(part for part in parts if part != "tb") or "cal"
    settings = Settings(method=name)
    assert (settings.base, settings.balanced, settings.decays) == (alone, "tb" in parts, "alphadecay" in parts)
    assert Settings(method=name).resolved().learning_rate == Settings(method=alone).resolved().learning_rate
    assert Settings(method=name, learning_rate=0.3).resolved().learning_rate == 0.3


def test_methods_start_at_the_rates_of_the_paper():
    rates = {"cal": 0.1, "lars": 28, "lamb": 0.01, "adamw": 0.001, "tb+sgdp": 0.1, "tb+adam": 0.001, "tb+adamw": 0.001}
    assert {name: Settings(method=name).resolved().learning_rate for name in rates} == rates
