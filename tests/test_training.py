"""Networks of Linen, NNX, Haiku and Equinox really train with one line added."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tiny import tempbalance, traced

import tb_optax

WIDTH, STEPS = 16, 12
INPUTS = jnp.asarray(np.random.default_rng(0).standard_normal((32, WIDTH)), jnp.float32)
TARGETS = jnp.sin(2 * INPUTS @ jnp.asarray(np.random.default_rng(1).standard_normal((WIDTH, 1)), jnp.float32))


def transformation():
    return optax.chain(optax.sgd(0.05, momentum=0.9), tempbalance(4))


def mean_squared_error(outputs):
    return jnp.mean((outputs - TARGETS) ** 2)


def train(params, loss_of):
    """Losses and final state of a jitted training loop, which must compile once."""
    tx = transformation()

    @jax.jit
    def step(params, state):
        loss, gradients = jax.value_and_grad(loss_of)(params)
        updates, state = tx.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    state, losses = tx.init(params), []
    for _ in range(STEPS):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    return losses, state, step._cache_size()


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(3):
            x = nn.tanh(nn.Dense(WIDTH)(x))
        return nn.Dense(1)(x)


def linen():
    model = Linen()
    params = model.init(jax.random.key(0), INPUTS)["params"]
    return train(params, lambda params: mean_squared_error(model.apply({"params": params}, INPUTS)))


class NNX(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.List([nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(3)])
        self.out = nnx.Linear(WIDTH, 1, rngs=rngs)

    def __call__(self, x):
        for layer in self.hidden:
            x = nnx.tanh(layer(x))
        return self.out(x)


def nnx_optimizer():
    model = NNX(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, transformation(), wrt=nnx.Param)

    def step(model, optimizer):
        loss, gradients = nnx.value_and_grad(lambda model: mean_squared_error(model(INPUTS)))(model)
        optimizer.update(model, gradients)
        return loss

    step, traces = traced(step)
    step = nnx.jit(step)
    losses = [float(step(model, optimizer)) for _ in range(STEPS)]
    as_pure = getattr(nnx, "as_pure", None) or nnx.pure  # Flax renamed it.
    return losses, as_pure(optimizer.opt_state), len(traces)


def haiku():
    network = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([WIDTH] * 3 + [1], activation=jnp.tanh)(x)))
    params = network.init(jax.random.key(0), INPUTS)
    return train(params, lambda params: mean_squared_error(network.apply(params, INPUTS)))


def equinox():
    model = eqx.nn.MLP(WIDTH, 1, WIDTH, 3, activation=jnp.tanh, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    return train(params, lambda params: mean_squared_error(jax.vmap(eqx.combine(params, static))(INPUTS)))


@pytest.mark.parametrize("network", [linen, nnx_optimizer, haiku, equinox], ids=lambda network: network.__name__)
def test_training_works(network):
    losses, state, compilations = network()
    assert losses[-1] < 0.8 * losses[0]
    assert compilations == 1
    scales = jax.tree.leaves(optax.tree_utils.tree_get(state, "scale"))
    assert len(scales) == 3  # The layer with one output has too few eigenvalues.
    assert len({float(scale) for scale in scales}) == 3
    assert (min(scales), max(scales)) == (0.5, pytest.approx(1.5))
    assert int(optax.tree_utils.tree_get(state, "count", filtering=in_tempbalance)) == STEPS


def in_tempbalance(path, _):
    return path[-1].tuple_name == tb_optax.TempBalanceState.__name__
