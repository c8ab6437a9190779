"""A domain of a few lines: a network that is to find a function of made data."""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import tb_optax
from examples.paper.balance import with_tempbalance
from examples.paper.domain import Domain, Measure, Training
from examples.paper.parallel import replicate, split
from examples.paper.report.style import Style
from examples.paper.settings import RunSettings

SIZES = [(8, 64), (64, 72), (72, 64), (64, 1)]


@dataclasses.dataclass(frozen=True)
class Settings(RunSettings):
    method: Literal["sgd", "tb+sgd"] = "tb+sgd"
    model: str = "mlp"
    dataset: str = "made"
    seed: int = 1
    batch_size: int = 16
    learning_rate: float = 0.05
    evaluations: int = 3

    @property
    def intervals(self):
        return self.evaluations


class Data(NamedTuple):
    name: str
    parts: list

    def contents(self):
        return self.parts[0][0].tobytes()


class State(NamedTuple):
    params: dict
    opt_state: optax.OptState
    best: dict
    best_loss: jax.Array
    seed: jax.Array
    step: jax.Array


class Metrics(NamedTuple):
    loss: jax.Array


def load(settings):
    random = np.random.default_rng(0)
    inputs = random.standard_normal((3, 128, 8), np.float32)
    return Data("made", [(x, np.sin(x).sum(-1, keepdims=True)) for x in inputs])


def forward(params, x):
    for name, weight in params.items():
        x = x @ weight if name == "dense0" else jnp.tanh(x) @ weight
    return x


def build(settings, data, mesh):
    train_data, valid_data, test_data = (jax.tree.map(lambda array: replicate(array, mesh), part) for part in data.parts)
    steps = len(data.parts[0][0]) // settings.batch_size
    shapes = {f"dense{index}": jax.ShapeDtypeStruct(size, jnp.float32) for index, size in enumerate(SIZES)}
    trace = lambda **changes: tb_optax.trace_layers(forward, shapes, jax.ShapeDtypeStruct((1, 8), jnp.float32), **changes)
    layers, weights = trace(), trace(min_eigenvalues=2, first_and_last=True)
    schedule = optax.constant_schedule(settings.learning_rate)
    tx = with_tempbalance(optax.sgd(schedule), settings, steps, layers)
    loss_of = lambda params, part: jnp.mean((forward(params, part[0]) - part[1]) ** 2)

    def init(seed):
        keys = jax.random.split(jax.random.key(seed), len(SIZES))
        shaped = zip(shapes, SIZES, keys, strict=True)
        params = {name: jax.random.normal(key, size) / size[0] ** 0.5 for name, size, key in shaped}
        best, step = jax.tree.map(jnp.copy, params), jnp.zeros((), jnp.int32)
        return State(params, tx.init(params), best, jnp.float32(jnp.inf), jnp.asarray(np.uint32(seed)), step)

    def loss(params, state, batch, data):
        loss = loss_of(params, jax.tree.map(split, batch))
        return loss, (Metrics(loss), {})

    return Training(
        init=init,
        inputs=lambda state, part: jax.tree.map(lambda array: array.reshape(steps, settings.batch_size, -1), part),
        loss=loss,
        evaluate=lambda state, part: Metrics(loss_of(state.params, part)),
        tx=tx,
        data=train_data,
        held_out_data=valid_data,
        balanced=layers,
        weights=weights,
        schedule=schedule,
        steps=steps,
        test_data=test_data,
    )


REGRESSION = Domain(
    "regression",
    Settings,
    load,
    build,
    measure=Measure("test_loss", "test loss", percent=False, higher_is_better=False),
    metrics=("train_loss", "valid_loss"),
    data=("dataset",),
    style=Style("sgd", ("model", "dataset", "evaluations", "batch_size"), words={"sgd": "SGD", "tb": "TB"}),
    interval="evaluation",
    unit="points",
)
