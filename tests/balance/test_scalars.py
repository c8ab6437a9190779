"""`scalars` gives every number of every state under one name."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from tiny import dense_params, tiny_layers

import tb_optax

PARAMS = dense_params(depth=5)


def tempbalance(**options):
    return tb_optax.tempbalance(1, layers=tiny_layers, **options)


def after_one_update(tx, params=PARAMS):
    return tx.update(params, tx.init(params), params)[1]


def test_every_layer_has_its_metric_and_its_scale_as_floats():
    state = after_one_update(optax.chain(optax.adam(1e-3), tempbalance()))
    numbers = tb_optax.scalars(state)
    own = state[1]
    assert numbers == {f"tempbalance/metric/{name}": float(own.metric[name]) for name in PARAMS} | {
        f"tempbalance/scale/{name}": float(own.scale[name]) for name in PARAMS
    }
    assert all(type(value) is float for value in numbers.values())
    assert json.loads(json.dumps(numbers)) == numbers


def test_slices_of_a_stack_and_seeds_have_indices():
    stack = {"blocks": {"kernel": jnp.stack([leaf["kernel"] for leaf in PARAMS.values()]), "bias": jnp.ones((5, 12))}}
    state = after_one_update(tempbalance(), stack)
    numbers = tb_optax.scalars(state)
    assert [numbers[f"tempbalance/scale/blocks[{i}]"] for i in range(5)] == state.scale["blocks"].tolist()
    assert len(numbers) == 10

    seeds = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), stack)
    tx = tempbalance()
    state = jax.vmap(tx.update)(seeds, jax.vmap(tx.init)(seeds), seeds)[1]
    numbers = tb_optax.scalars(state)
    assert numbers["tempbalance/metric/blocks[1][3]"] == float(state.metric["blocks"][1, 3])
    assert len(numbers) == 20


def test_several_transformations_are_told_apart():
    decay = tb_optax.alphadecay(0.1, 1, layers=tiny_layers)
    state = after_one_update(optax.chain(decay, optax.sgd(0.1), tempbalance(), tempbalance(min_scale=1.0, max_scale=3.0)))
    numbers = tb_optax.scalars(state)
    prefixes = {name.rsplit("/", 2)[0] for name in numbers}
    assert prefixes == {"alphadecay", "tempbalance[0]", "tempbalance[1]"}
    assert max(v for name, v in numbers.items() if name.startswith("tempbalance[1]/scale")) == 3.0
    assert len(numbers) == 3 * 10


def test_it_finds_the_state_of_nnx_and_of_a_train_state():
    rngs = nnx.Rngs(0)
    model = nnx.List([nnx.Linear(12, 12, rngs=rngs) for _ in range(5)])
    optimizer = nnx.Optimizer(model, optax.chain(optax.sgd(0.1), tempbalance()), wrt=nnx.Param)
    optimizer.update(model, nnx.state(model, nnx.Param))
    assert set(tb_optax.scalars(optimizer.opt_state)) == {
        f"tempbalance/{kind}/{place}" for kind in ("metric", "scale") for place in range(5)
    }
    state = TrainState.create(apply_fn=None, params=PARAMS, tx=optax.chain(optax.sgd(0.1), tempbalance()))
    assert set(tb_optax.scalars(state).values()) == {0.0, 1.0}, "before the first refresh"


def test_what_has_no_numbers_is_refused():
    with pytest.raises(ValueError, match=r"scalars: opt_state=.*has no state of tempbalance or alphadecay"):
        tb_optax.scalars(optax.adam(1e-3).init(PARAMS))
    with pytest.raises(ValueError, match="scalars: opt_state is being traced"):
        jax.jit(tb_optax.scalars)(tempbalance().init(PARAMS))
    with pytest.raises(ValueError, match="restored as plain dicts"):
        tb_optax.scalars({"count": np.zeros(()), "metric": {}, "scale": {}})
