"""`tempbalance` behaves as Optax's own transformations do, under everything that is done to those."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from tiny import counted, dense_params, equations, numpy_scales, ones_like, tempbalance, tiny_layers, traced

import tb_optax
from tb_optax import assignments, fits, metrics

PARAMS = dense_params()
STATIC = ("metric", "assign", "layers")


def scales_of(state) -> dict[str, np.ndarray]:
    return jax.device_get(optax.tree_utils.tree_get(state, "scale"))


def assert_scales(state, expected: dict[str, float]):
    scales = scales_of(state)
    assert set(scales) == set(expected)
    np.testing.assert_allclose([scales[name] for name in expected], list(expected.values()), rtol=1e-4)


def run(tx, steps: int = 1, params=PARAMS):
    state, update = tx.init(params), jax.jit(tx.update)
    for _ in range(steps):
        updates, state = update(ones_like(params), state, params)
    return updates, state


class Variants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    def test_variants_of_chex_agree(self):
        tx = tempbalance(1)
        state = self.variant(tx.init)(PARAMS)
        updates, state = self.variant(tx.update)(ones_like(PARAMS), state, PARAMS)
        expected = numpy_scales(PARAMS)
        assert_scales(state, expected)
        for name, leaves in updates.items():
            for leaf in leaves.values():
                np.testing.assert_allclose(leaf, np.full(leaf.shape, expected[name]), rtol=1e-4)


def all_numbers(params):
    """What the library computes of parameters: updates and states by every choice, and the spectra themselves."""
    tails = [functools.partial(metrics.pl_alpha_hill, fit=fit) for fit in (fits.goodness_of_fit, fits.fix_finger)]
    choices = [dict(metric=metric) for metric in (*tails, metrics.alpha_weighted, metrics.spectral_norm)]
    choices += [
        dict(assign=assign)
        for assign in (
            assignments.linear,
            assignments.sqrt,
            assignments.log2,
            assignments.step,
            assignments.sigmoid,
        )
    ]
    choices += [dict(solver=tb_optax.Lanczos(4, steps=3))]
    others = [tb_optax.alphadecay(0.1, 1, layers=tiny_layers), tb_optax.baselines.sgdp(0.1, layers=tiny_layers)]
    others += [tb_optax.baselines.spectral_norm_regularization(0.1, layers=tiny_layers)]
    update = lambda tx: tx.update(ones_like(params), tx.init(params), params)
    found = [update(tx) for tx in (*(tempbalance(1, **choice) for choice in choices), *others)]
    updates, state = update(optax.inject_hyperparams(tempbalance, static_args=STATIC)(optax.constant_schedule(1)))
    return found, (updates, state.inner_state), tb_optax.spectra(params, layers=tiny_layers)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_nothing_is_promoted_that_was_not_asked_for(dtype):
    """Neither ranks nor dtypes; Optax's own `scale_by_adam` promotes, so not under `adamp`."""
    kernels = np.random.default_rng(0).standard_normal((3, 3, 5, 8)).astype(np.float32)
    conv, stack = {"kernel": kernels, "bias": kernels[0, 0, 0]}, {"kernel": kernels[0], "bias": kernels[0, :, 0]}
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), {**PARAMS, "conv": conv, "stack": stack})
    expected = jax.jit(all_numbers)(params)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        found = jax.jit(all_numbers)(params)
    chex.assert_trees_all_equal_dtypes(found, expected)
    chex.assert_trees_all_close(found, expected, rtol=1e-3)


def test_jit_compiles_once():
    tx = tempbalance(2)
    update, traces = traced(tx.update)
    update, state = jax.jit(update), tx.init(PARAMS)
    for _ in range(4):
        _, state = update(PARAMS, state, PARAMS)
    assert len(traces) == 1


def test_without_jit_the_metric_is_traced_once():
    metric, traces = traced(metrics.spectral_norm)
    tx = tempbalance(1, metric=metric)
    state = tx.init(PARAMS)
    for _ in range(3):
        _, state = tx.update(PARAMS, state, PARAMS)
    assert len(traces) == 1


SEEDS = [dense_params(seed) for seed in (1, 2)]
STACKED = jax.tree.map(lambda *leaves: jnp.stack(leaves), *SEEDS)


def test_vmap_over_seeds_is_one_seed_at_a_time():
    """Also where only one of them is due: the other keeps its scales."""
    tx = tempbalance(3)
    states = jax.vmap(tx.init)(STACKED)
    states = states._replace(count=jnp.array([0, 1]))
    update = jax.jit(jax.vmap(tx.update))
    updates, states = update(ones_like(STACKED), states, STACKED)
    for i, expected in enumerate([numpy_scales(SEEDS[0]), dict.fromkeys(PARAMS, 1.0)]):
        mine = jax.tree.map(lambda leaf, i=i: leaf[i], (updates, states))
        assert_scales(mine[1], expected)
        np.testing.assert_allclose(mine[0]["dense1"]["bias"], np.full(12, expected["dense1"]), rtol=1e-4)


def test_vmap_over_seeds_solves_nothing_in_a_step_without_a_refresh():
    metric, calls = counted()
    tx = tempbalance(4, metric=metric)
    update, states, seen = jax.jit(jax.vmap(tx.update)), jax.vmap(tx.init)(STACKED), []
    for _ in range(9):
        _, states = update(STACKED, states, STACKED)
        jax.effects_barrier()
        seen.append(len(calls) > 0)
        calls.clear()
    assert seen == [step % 4 == 0 for step in range(9)]


@pytest.mark.parametrize("nested", [1, 2])
def test_vmap_keeps_a_real_cond_around_every_eigenproblem(nested):
    """One whose predicate is not batched; a select would solve every eigenproblem at every step."""
    tx = tempbalance(4)
    init, update, params = tx.init, tx.update, PARAMS
    for _ in range(nested):
        init, update, params = jax.vmap(init), jax.vmap(update), jax.tree.map(lambda x: jnp.stack([x, x]), params)
    jaxpr = jax.make_jaxpr(update)(params, init(params), params).jaxpr
    solver = ("eigh", "ffi_call")
    outside = [e.primitive.name for e in equations(jaxpr, enter=lambda e: e.primitive.name != "cond")]
    conds = [e for e in equations(jaxpr) if e.primitive.name == "cond"]
    assert "cond" in outside and not set(solver) & set(outside)
    assert {cond.invars[0].aval.shape for cond in conds} == {()}
    assert any(e.primitive.name in solver for e in equations(jaxpr))


def test_scan_over_steps_is_step_by_step():
    tx = tempbalance(2)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.tree.map(lambda x: -0.3 * jnp.sin(5 * x), params), state, params)
        return (optax.apply_updates(params, updates), state), None

    scanned, _ = jax.jit(lambda carry: jax.lax.scan(step, carry, length=4))((PARAMS, tx.init(PARAMS)))
    looped, jitted = (PARAMS, tx.init(PARAMS)), jax.jit(step)
    for _ in range(4):
        looped, _ = jitted(looped, None)
    chex.assert_trees_all_close(scanned, looped, rtol=1e-4)


def test_state_fits_a_cond_that_skips_the_update():
    tx = tempbalance(1)

    @jax.jit
    def maybe(skip, state):
        return jax.lax.cond(skip, lambda: state, lambda: tx.update(PARAMS, state, PARAMS)[1])

    assert_scales(maybe(True, tx.init(PARAMS)), dict.fromkeys(PARAMS, 1.0))
    assert_scales(maybe(False, tx.init(PARAMS)), numpy_scales(PARAMS))


def test_multi_steps_counts_its_updates_not_the_gradients():
    tx = optax.MultiSteps(tempbalance(1, start_step=1), every_k_schedule=2)
    state = tx.init(PARAMS)
    update = jax.jit(tx.update)
    for gradients in range(1, 5):
        updates, state = update(ones_like(PARAMS), state, PARAMS)
        assert_scales(state, numpy_scales(PARAMS) if gradients == 4 else dict.fromkeys(PARAMS, 1.0))
    np.testing.assert_allclose(updates["dense1"]["bias"], np.full(12, numpy_scales(PARAMS)["dense1"]), rtol=1e-4)


@pytest.mark.parametrize("way", ["refresh by the loop", "behind MultiSteps"])
def test_with_multi_steps_a_due_refresh_is_computed_once(way):
    """As the guide shows: 16 micro-steps of 4 with a refresh every 2 updates are 2 refreshes, with the same scales."""
    metric, calls = counted()
    if way == "refresh by the loop":
        tb = tempbalance(None, metric=metric)
        tx = optax.MultiSteps(optax.chain(optax.sgd(0.1), tb), every_k_schedule=4)
    else:
        tx = optax.chain(
            optax.MultiSteps(optax.sgd(0.1), every_k_schedule=4).gradient_transformation(), tempbalance(8, metric=metric)
        )
    reference = optax.MultiSteps(optax.chain(optax.sgd(0.1), tempbalance(2)), every_k_schedule=4)
    states, trees = [tx.init(PARAMS), reference.init(PARAMS)], [PARAMS, PARAMS]
    steps = [jax.jit(tx.update), jax.jit(reference.update)]
    for micro_step in range(16):
        if way == "refresh by the loop" and micro_step % 8 == 0:
            states[0] = tb.refresh(states[0], trees[0])
        for i, step in enumerate(steps):
            updates, states[i] = step(jax.tree.map(jnp.sin, trees[i]), states[i], trees[i])
            trees[i] = optax.apply_updates(trees[i], updates)
    jax.effects_barrier()
    assert len(calls) == 2
    chex.assert_trees_all_close(*trees, rtol=1e-5)


def test_masked_balances_what_the_mask_leaves():
    mask = {name: {"kernel": name != "dense2", "bias": False} for name in PARAMS}
    updates, state = run(optax.masked(tempbalance(1), mask))
    expected = numpy_scales({name: PARAMS[name] for name in ("dense0", "dense1")})
    assert_scales(state, expected)
    np.testing.assert_allclose(updates["dense1"]["kernel"], np.full((8, 12), expected["dense1"]), rtol=1e-4)
    chex.assert_trees_all_equal(updates["dense2"], ones_like(PARAMS["dense2"]))
    np.testing.assert_array_equal(updates["dense1"]["bias"], np.ones(12))


def test_partition_balances_its_part():
    labels = {name: {"kernel": "rest" if name == "dense2" else "balanced", "bias": "rest"} for name in PARAMS}
    updates, state = run(optax.partition({"balanced": tempbalance(1), "rest": optax.identity()}, labels))
    assert_scales(state, numpy_scales({name: PARAMS[name] for name in ("dense0", "dense1")}))
    chex.assert_trees_all_equal(updates["dense2"], ones_like(PARAMS["dense2"]))


def test_apply_if_finite_skips_an_update_that_is_not():
    tx = optax.apply_if_finite(tempbalance(1), max_consecutive_errors=3)
    state, update = tx.init(PARAMS), jax.jit(tx.update)
    _, state = update(jax.tree.map(lambda x: x * jnp.nan, PARAMS), state, PARAMS)
    assert_scales(state, dict.fromkeys(PARAMS, 1.0))
    _, state = update(ones_like(PARAMS), state, PARAMS)
    assert_scales(state, numpy_scales(PARAMS))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_numbers_can_be_schedules(dtype):
    tx = optax.inject_hyperparams(tb_optax.tempbalance, static_args=STATIC)(
        update_interval=lambda count: jnp.where(count < 4, 2.0, 3.0),
        min_scale=optax.linear_schedule(0.5, 0.1, 4),
        max_scale=1.2,
        layers=tiny_layers,
        start_step=2,
    )
    params = jax.tree.map(lambda x: x.astype(dtype), PARAMS)
    rounded = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    state, update, refreshes = tx.init(params), jax.jit(tx.update), []
    for step in range(9):
        before = scales_of(state)
        _, state = update(params, state, params)
        if not all(np.array_equal(before[name], scale) for name, scale in scales_of(state).items()):
            refreshes.append(step)
            low = max(0.1, 0.5 - 0.1 * step)
            np.testing.assert_allclose(
                list(scales_of(state).values()), list(numpy_scales(rounded, low, 1.2).values()), rtol=1e-2
            )
    # Due at 2, then at 5 and 8 (an interval of 3, counted from the start); at 8 nothing is new.
    assert refreshes == [2, 5]


def test_updates_are_counted_as_integers_whatever_a_schedule_returns():
    """In bfloat16, the parameters' precision, the update after the 600th would be the 600th."""
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    inject = optax.inject_hyperparams(tb_optax.tempbalance, static_args=STATIC)
    tx = inject(optax.constant_schedule(300.0), layers=tiny_layers)
    state, update = tx.init(params), jax.jit(tx.update)
    for count in (599, 600, 601):
        at_count = state._replace(inner_state=state.inner_state._replace(count=jnp.array(count)))
        scales = scales_of(update(params, at_count, params)[1])
        assert any(scale != 1 for scale in scales.values()) == (count == 600)


@pytest.mark.parametrize("static", [(), ("layers",), ("layers", "metric")])
def test_inject_hyperparams_without_static_args_says_what_to_give(static):
    tx = optax.inject_hyperparams(tb_optax.tempbalance, static_args=static)(3, layers=tiny_layers)
    with pytest.raises((TypeError, ValueError), match=r"static_args=\('metric', 'assign', 'layers'\)"):
        tx.init(PARAMS)


def test_extra_arguments_are_taken_and_ignored():
    tx = optax.with_extra_args_support(tempbalance(1))
    _, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS, value=1.0, grad=PARAMS, value_fn=lambda x: x)
    assert_scales(state, numpy_scales(PARAMS))


def test_buffers_can_be_donated():
    tx = optax.chain(tempbalance(1), optax.sgd(0.1))
    copy = jax.tree.map(jnp.copy, PARAMS)
    update = jax.jit(tx.update, donate_argnums=(0, 1))
    updates, state = update(copy, tx.init(PARAMS), PARAMS)
    updates, state = update(updates, state, PARAMS)
    assert_scales(state, numpy_scales(PARAMS))
    assert copy["dense0"]["kernel"].is_deleted()


def test_init_of_shapes_is_the_shape_of_init():
    tx = tempbalance(1)
    state = tx.init(PARAMS)
    for abstract in (jax.eval_shape(tx.init, PARAMS), jax.eval_shape(lambda: tx.init(PARAMS))):
        chex.assert_trees_all_equal_shapes_and_dtypes(abstract, state)
    chex.assert_trees_all_equal(tx.init(jax.eval_shape(lambda: PARAMS)), state)


@pytest.mark.parametrize("params_dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
@pytest.mark.parametrize("updates_dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_updates_and_state_keep_their_dtypes(params_dtype, updates_dtype):
    with jax.enable_x64(jnp.float64 in (params_dtype, updates_dtype)):
        params = jax.tree.map(lambda x: jnp.asarray(x, params_dtype), PARAMS)
        updates = jax.tree.map(lambda x: jnp.ones(x.shape, updates_dtype), PARAMS)
        tx = tempbalance(1)
        state = tx.init(params)
        new_updates, new_state = jax.jit(tx.update)(updates, state, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(new_updates, updates)
        chex.assert_trees_all_equal_shapes_and_dtypes(new_state, state)
        assert state.scale["dense0"].dtype == jnp.promote_types(params_dtype, jnp.float32)


def test_low_precision_updates_are_rounded_once():
    """Scales rounded to bfloat16 would move every entry of a layer the same way."""
    params = PARAMS
    updates = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    new, state = tempbalance(1).update(updates, tempbalance(1).init(params), params)
    for name, scale in scales_of(state).items():
        exact = np.asarray(updates[name]["kernel"], np.float64) * np.float64(scale)
        np.testing.assert_array_equal(new[name]["kernel"], jnp.asarray(exact, jnp.float32).astype(jnp.bfloat16))


def test_map_params_finds_no_parameters_in_the_state():
    tx = optax.chain(optax.sgd(0.1, momentum=0.9), tempbalance(1))
    state = tx.init(PARAMS)
    mapped = optax.tree_utils.tree_map_params(tx, lambda leaf: leaf + 1, state)
    chex.assert_trees_all_equal(mapped[1], state[1])
    chex.assert_trees_all_equal(mapped[0][0].trace, ones_like(PARAMS))
    named = optax.tree_utils.tree_map_params(tx, lambda _: "parameter", state, transform_non_params=lambda _: "other")
    assert set(jax.tree.leaves(named[1])) == {"other"}


def test_tree_get_finds_the_scales_inside_a_chain():
    _, state = run(optax.chain(optax.clip(1.0), tempbalance(1), optax.adam(1e-3)))
    assert optax.tree_utils.tree_get(state, "scale").keys() == PARAMS.keys()
    assert_scales(state, numpy_scales(PARAMS))


def test_gradient_through_an_update_takes_scales_for_constants():
    tx = tempbalance(1)
    loss = lambda params: sum(jnp.sum(u**2) for u in jax.tree.leaves(tx.update(params, tx.init(params), params)[0]))
    gradient = jax.jit(jax.grad(loss))(PARAMS)
    for name, scale in numpy_scales(PARAMS).items():
        expected = 2 * np.asarray(PARAMS[name]["kernel"]) * scale**2
        np.testing.assert_allclose(gradient[name]["kernel"], expected, rtol=1e-3)


def test_orbax_saves_and_restores_the_state(tmp_path):
    tx = tempbalance(2)
    _, state = run(tx)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", jax.tree.map(ocp.utils.to_shape_dtype_struct, state))
    chex.assert_trees_all_equal(restored, state)
    assert isinstance(restored, tb_optax.TempBalanceState)
    update = jax.jit(tx.update)
    chex.assert_trees_all_equal(update(PARAMS, restored, PARAMS), update(PARAMS, state, PARAMS))


@pytest.mark.parametrize(("platform", "routine"), [("cuda", "cusolver_syevd_ffi"), ("tpu", "Eigh")])
@pytest.mark.parametrize("seeds", ["one seed", "two seeds"])
def test_update_lowers_for_accelerators(platform, routine, seeds):
    tx = tempbalance(1)
    init, update, params = (tx.init, tx.update, PARAMS) if seeds == "one seed" else (*map(jax.vmap, tx), STACKED)
    text = jax.jit(update).trace(params, init(params), params).lower(lowering_platforms=(platform,)).as_text()
    assert routine in text and "lapack" not in text
