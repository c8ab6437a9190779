"""The contenders that train: an optimizer's update alone, and epochs of `examples/paper/vision`."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import tb_optax
from benchmarks.contenders import Case, Prepared
from benchmarks.networks import create
from examples.paper.parallel import create_mesh
from examples.paper.program import compile_program
from examples.paper.vision.data import Dataset
from examples.paper.vision.domain import prepare
from examples.paper.vision.methods import create_optimizer
from examples.paper.vision.settings import Settings

# As often as an update interval can be without ever being reached.
NEVER = 10**6
_LEARNING_RATE = 0.1


def optimizer(case: Case) -> Prepared:
    """Updates of the paper's chain on given gradients, with TempBalance in it (`tb`) or without (`cal`).

    One program makes `case["updates"]` of them. With TempBalance the very first refreshes, and no other does.
    """
    network = create(case["network"])
    layers = functools.partial(tb_optax.find_layers, exclude=network.exclude)
    tx = _optimizer(case["method"], layers, NEVER)
    params = jax.device_put(network.params)
    grads = jax.tree.map(lambda leaf: 1e-3 * leaf, params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def steps(params: Any, opt_state: optax.OptState, grads: Any) -> tuple[Any, optax.OptState]:
        def step(carry: tuple[Any, optax.OptState], _: None) -> tuple[tuple[Any, optax.OptState], None]:
            params, opt_state = carry
            updates, opt_state = tx.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        return jax.lax.scan(step, (params, opt_state), length=case["updates"])[0]

    held = [params, tx.init(params)]

    def run() -> None:
        held[:] = steps(*held, grads)
        jax.block_until_ready(held)

    return Prepared(run)


def training(case: Case) -> Prepared:
    """Epochs of `examples/paper/vision` on random images; `run(update_interval=n)` sets the interval of the refreshes.

    The case gives `model`, `width`, `method`, `dtype`, `batch_size` and `steps`, how many make an epoch.
    """
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (case["steps"] * case["batch_size"], 32, 32, 3), np.uint8)
    labels = random.integers(0, 10, len(images), np.int32)
    few = slice(case["batch_size"])
    channels = np.full(3, 0.5, np.float32)
    dataset = Dataset("random", images, labels, images[few], labels[few], 10, channels, channels, flip=True)

    size = {name: case[name] for name in ("model", "width", "dtype", "batch_size")}
    settings = Settings(method=case["method"], update_interval=NEVER, **size)
    mesh = create_mesh(1, case["batch_size"])
    program = compile_program(prepare(settings, dataset, mesh, _scheduled), tb_optax.fits.median, mesh)
    state = program.start([0])

    def run(update_interval: int = NEVER) -> None:
        nonlocal state
        if case["method"] == "tb":
            state = state._replace(opt_state=_with_interval(state.opt_state, update_interval))
        state, metrics, _ = program.train(state)
        jax.block_until_ready((state, metrics))

    return Prepared(run)


def _optimizer(method: str, layers: Any, update_interval: Any) -> optax.GradientTransformationExtraArgs:
    settings = Settings(method=method, update_interval=update_interval)  # pyright: ignore[reportArgumentType]
    return create_optimizer(settings, optax.constant_schedule(_LEARNING_RATE), 1, layers, layers)


def _scheduled(
    settings: Settings, schedule: optax.Schedule, steps: int, layers: tb_optax.Layers, weights: tb_optax.Layers
) -> optax.GradientTransformationExtraArgs:
    """The interval is part of the state, so that one compiled epoch serves for all intervals."""
    if settings.method == "cal":
        return _optimizer(settings.method, layers, NEVER)
    build = lambda update_interval: _optimizer(settings.method, layers, update_interval)
    return optax.inject_hyperparams(build)(update_interval=NEVER)


def _with_interval(opt_state: optax.OptState, update_interval: int) -> optax.OptState:
    old = optax.tree_utils.tree_get(opt_state, "update_interval")
    return optax.tree_utils.tree_set(
        opt_state, update_interval=jax.device_put(jnp.asarray(update_interval, old.dtype), old.sharding)
    )
