"""What an epoch tells of its gradients and of a weight, against the same steps taken one by one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from small_network import create_small_network

from examples.paper.domain import Training
from examples.paper.network import Network, TrainState, epoch_inputs
from examples.paper.observations import watched_steps
from examples.paper.parallel import create_mesh
from examples.paper.program import train_interval
from examples.paper.vision.domain import Images, loss, paper_layers

RATE, BATCH, STEPS = 0.05, 2, 65


@pytest.mark.slow
def test_gradient_norms_are_those_of_every_30th_step_and_the_mean_of_all_and_copies_of_their_steps():
    """All images are black and of one class, so that neither their order nor their shifts make a difference. The first
    convolution reads one channel: it has no layer.
    """
    model = create_small_network(num_classes=3, image_shape=(32, 32, 1), rngs=nnx.Rngs(0))
    graphdef, params, batch_stats = nnx.split(model, nnx.Param, ...)
    network, tx = Network(graphdef), optax.sgd(RATE)
    example = jax.ShapeDtypeStruct((1, 32, 32, 1), jnp.float32)
    layers = paper_layers(network, params, batch_stats, example, min_eigenvalues=2, first_and_last=True)
    images = jnp.zeros((BATCH * STEPS, 32, 32, 1), jnp.uint8)
    dataset = Images(images, jnp.ones(len(images), jnp.int32), jnp.array([0.4]), jnp.array([0.2]))

    @jax.jit
    def step(params):
        batch = jnp.full((BATCH, 32, 32, 1), -0.4 / 0.2)

        def loss(params):
            logits = nnx.merge(graphdef, params, batch_stats, copy=True)(batch)
            return -jax.nn.log_softmax(logits)[:, 1].mean()

        grads = jax.grad(loss)(params)
        return jax.tree.map(lambda weight, grad: weight - RATE * grad, params, grads), grads

    by_hand, copies, weights = [], [], params
    for _ in range(STEPS):
        copies.append(weights["convs"][1]["kernel"][...])
        weights, grads = step(weights)
        kernels = {**{f"convs/{index}": grads["convs"][index] for index in (1, 2)}, "linear": grads["linear"]}
        by_hand.append({name: np.linalg.norm(np.ravel(layer["kernel"][...])) for name, layer in kernels.items()})

    state = TrainState(params, batch_stats, tx.init(params), jnp.zeros((), jnp.int32), jnp.uint32(0))
    inputs, loss_of = functools.partial(epoch_inputs, BATCH), functools.partial(loss, network, True)
    training = Training(None, inputs, loss_of, None, tx, dataset, dataset, layers[:1], layers, None, STEPS)
    epoch = jax.jit(functools.partial(train_interval, training))
    with jax.set_mesh(create_mesh(1, BATCH)):
        _, _, observed = epoch(state, dataset)
    assert set(observed.norms) == set(observed.norms_within) == set(by_hand[0])
    for name in by_hand[0]:
        every = np.array([each[name] for each in by_hand])
        assert every.min() > 0 and every[0] > 1.5 * every[60]  # so that one step's is not another's
        np.testing.assert_allclose(observed.norms_within[name], every[[0, 30, 60]], rtol=1e-3)
        np.testing.assert_allclose(observed.norms[name], every.mean(), rtol=1e-3)
    assert watched_steps(STEPS) == [0, 16, 32, 48]
    for got, number in zip(observed.watched, watched_steps(STEPS), strict=True):
        np.testing.assert_allclose(got, copies[number], atol=1e-5)
        assert np.abs(got - copies[number + 1]).max() > 1e-4
