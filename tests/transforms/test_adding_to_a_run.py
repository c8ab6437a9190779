"""TempBalance joins a run that was saved without it, as `docs/guide.md` says: nothing else in the state changes."""

import chex
import flax.serialization
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from tiny import dense_params, tiny_layers

import tb_optax

PARAMS = dense_params(depth=5)
OLD = optax.adamw(optax.cosine_decay_schedule(1e-2, 100))


def tempbalance():
    return tb_optax.tempbalance(None, layers=tiny_layers)


def gradients(params):
    return jax.tree.map(jnp.sin, params)


def run(tx, params, state, steps):
    for _ in range(steps):
        updates, state = tx.update(gradients(params), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def assert_next_step_is_scaled(updates, alone, scale):
    assert len({float(number) for number in scale.values()}) == 5
    expected = {name: jax.tree.map(lambda leaf, name=name: leaf * scale[name], alone[name]) for name in alone}
    chex.assert_trees_all_close(updates, expected, rtol=1e-6)


def test_to_an_orbax_checkpoint(tmp_path):
    params, state = run(OLD, PARAMS, OLD.init(PARAMS), 3)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "old", {"params": params, "opt_state": state})
        checkpointer.wait_until_finished()
        target = jax.eval_shape(lambda: {"params": PARAMS, "opt_state": OLD.init(PARAMS)})
        old = checkpointer.restore(tmp_path / "old", target)

        tb = tempbalance()
        tx = optax.chain(OLD, tb)
        opt_state = tb.refresh((old["opt_state"], tb.init(old["params"])), old["params"])
        updates, opt_state = tx.update(gradients(params), opt_state, old["params"])
        alone, expected = OLD.update(gradients(params), state, params)
        chex.assert_trees_all_equal(opt_state[0], expected)
        assert_next_step_is_scaled(updates, alone, opt_state[1].scale)

        # From here on, the run is saved and restored with both.
        checkpointer.save(tmp_path / "new", {"params": params, "opt_state": opt_state})
        checkpointer.wait_until_finished()
        target = jax.eval_shape(lambda: {"params": PARAMS, "opt_state": tx.init(PARAMS)})
        chex.assert_trees_all_equal(checkpointer.restore(tmp_path / "new", target)["opt_state"], opt_state)


def test_to_a_train_state_saved_as_msgpack():
    old = TrainState.create(apply_fn=None, params=PARAMS, tx=OLD)
    for _ in range(3):
        old = old.apply_gradients(grads=gradients(old.params))
    saved = flax.serialization.to_bytes(old)

    restored = flax.serialization.from_bytes(TrainState.create(apply_fn=None, params=PARAMS, tx=OLD), saved)
    tb = tempbalance()
    state = restored.replace(tx=optax.chain(OLD, tb), opt_state=(restored.opt_state, tb.init(restored.params)))
    state = tb.refresh(state, state.params)
    scale = state.opt_state[1].scale
    after = state.apply_gradients(grads=gradients(state.params))
    alone = old.apply_gradients(grads=gradients(old.params))
    assert after.step == 4
    chex.assert_trees_all_equal(after.opt_state[0], alone.opt_state)
    for name in PARAMS:
        before, stepped = old.params[name]["kernel"], alone.params[name]["kernel"]
        np.testing.assert_allclose(
            after.params[name]["kernel"], before + (stepped - before) * scale[name], rtol=1e-6, atol=1e-6
        )


class Net(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.dense = nnx.List([nnx.Linear(12, 12, rngs=rngs) for _ in range(5)])


def test_to_an_nnx_optimizer(tmp_path):
    model = Net()
    optimizer = nnx.Optimizer(model, OLD, wrt=nnx.Param)
    for _ in range(3):
        optimizer.update(model, gradients(nnx.state(model, nnx.Param)))
    expected = jax.tree.map(jnp.copy, nnx.to_pure_dict(nnx.state(optimizer)))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "old", nnx.to_pure_dict(nnx.state((model, optimizer))))
        checkpointer.wait_until_finished()

        model = Net()
        optimizer = nnx.Optimizer(model, OLD, wrt=nnx.Param)
        state = nnx.state((model, optimizer))
        nnx.replace_by_pure_dict(state, checkpointer.restore(tmp_path / "old", nnx.to_pure_dict(state)))
        nnx.update((model, optimizer), state)
    chex.assert_trees_all_equal(nnx.to_pure_dict(nnx.state(optimizer)), expected)

    tb = tempbalance()
    balanced = nnx.Optimizer(model, optax.chain(OLD, tb), wrt=nnx.Param)
    balanced.step, balanced.opt_state = optimizer.step, (optimizer.opt_state, balanced.opt_state[1])
    balanced.opt_state = tb.refresh(balanced.opt_state, nnx.state(model, nnx.Param))
    before = jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))
    nnx.jit(lambda model, optimizer: optimizer.update(model, gradients(nnx.state(model, nnx.Param))))(model, balanced)
    assert int(balanced.step[...]) == 4
    assert int(balanced.opt_state[0][0].count[...]) == 4
    scales = tb_optax.scalars(balanced.opt_state)
    alone, _ = OLD.update(gradients(nnx.to_pure_dict(before)), *_pure(expected["opt_state"], before))
    for place in range(5):
        moved = model.dense[place].kernel[...] - before["dense"][place]["kernel"][...]
        scaled = scales[f"tempbalance/scale/dense/{place}"] * alone["dense"][place]["kernel"]
        np.testing.assert_allclose(moved, scaled, rtol=1e-3, atol=1e-6)


def _pure(opt_state, params):
    """Adam's state from its saved numbers, and the parameters, as plain dicts."""
    params = nnx.to_pure_dict(params)
    structure = jax.tree.structure(OLD.init(params))
    return jax.tree.unflatten(structure, jax.tree.leaves(opt_state)), params


@pytest.mark.parametrize("sep", [None, "|"])
def test_state_keys_hold_slashes_so_flatten_with_another_separator(sep):
    params = {"blocks": {f"dense{i}": leaf for i, leaf in enumerate(PARAMS.values())}}
    state = tempbalance().init(params)
    assert "blocks/dense0" in state.scale
    flat = flax.traverse_util.flatten_dict(flax.serialization.to_state_dict(state), sep=sep)
    nested = flax.traverse_util.unflatten_dict(flat, sep=sep)
    chex.assert_trees_all_equal(flax.serialization.from_state_dict(state, nested), state)
