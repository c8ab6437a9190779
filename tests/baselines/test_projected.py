"""SGDP and AdamP against a restatement of their algorithms in numpy, output by output, in PyTorch's layout."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from tiny import dense_params, numpy_project, ones_like

from tb_optax import Layer
from tb_optax.baselines import adamp, sgdp

RATE, DECAY, STEPS = 0.1, 0.05, 4


class NumpySGD:
    def __init__(self, momentum=0.9, nesterov=False):
        self.momentum, self.nesterov, self.trace = momentum, nesterov, 0.0
        self.decay_scale = 1 / (1 - momentum)

    def direction(self, gradient):
        self.trace = self.momentum * self.trace + gradient
        return gradient + self.momentum * self.trace if self.nesterov else self.trace


class NumpyAdam:
    decay_scale = 1.0

    def __init__(self, b1=0.9, b2=0.999, eps=1e-8):
        self.b1, self.b2, self.eps, self.step, self.mean, self.square = b1, b2, eps, 0, 0.0, 0.0

    def direction(self, gradient):
        self.step += 1
        self.mean = self.b1 * self.mean + (1 - self.b1) * gradient
        self.square = self.b2 * self.square + (1 - self.b2) * gradient**2
        return self.mean / (1 - self.b1**self.step) / (np.sqrt(self.square / (1 - self.b2**self.step)) + self.eps)


def numpy_train(weight, view, inner, ratio=0.1):
    """The weights of all steps, and gradients for which `view` is the first that fits."""
    noise = np.random.default_rng(weight.size)
    weights, gradients = [weight], []
    for _ in range(STEPS):
        gradient = noise.standard_normal(weight.shape)
        if weight.ndim > 1:
            # Noise is orthogonal to the weight as far as `view` goes, and no further.
            tail = tuple(range(1, weight.ndim)) if view == "outputs" else None
            total = lambda product, tail=tail: np.sum(product, axis=tail, keepdims=True)
            gradient = gradient - (total(gradient * weight) / total(weight**2) - (0 if view else 0.5)) * weight
        direction, decay = inner.direction(gradient), DECAY * inner.decay_scale
        if weight.ndim > 1:
            direction, seen = numpy_project(weight, gradient, direction)
            assert seen == view
            decay *= ratio if seen else 1
        weight = weight * (1 - RATE * decay) - RATE * direction
        gradients.append(gradient)
        weights.append(weight)
    return weights, gradients


def start(*shape):
    return np.random.default_rng(0).standard_normal(shape)


# PyTorch's layout: outputs first.
WEIGHTS = {f"conv{i}": (start(6, 5, 3, 2), view) for i, view in enumerate(("outputs", "whole", ""))}
WEIGHTS["fc"] = start(4, 7), "whole"
BIAS = start(6)
OPTIMIZERS = {
    "sgdp": (lambda **options: sgdp(RATE, weight_decay=DECAY, **options), NumpySGD),
    "sgdp, Nesterov": (
        lambda **options: sgdp(RATE, 0.8, nesterov=True, weight_decay=DECAY, **options),
        lambda: NumpySGD(0.8, True),
    ),
    "adamp": (lambda **options: adamp(RATE, b2=0.99, weight_decay=DECAY, **options), lambda: NumpyAdam(b2=0.99)),
}
optimizers = pytest.mark.parametrize("optimizer", OPTIMIZERS)


def torch_layout(weight):
    return {"weight": jnp.asarray(weight, jnp.float32)}


def flax_layout(weight):
    return {"kernel": jnp.asarray(np.moveaxis(weight, (0, 1), (-1, -2)), jnp.float32)}


def follow(tx, params, gradients_of, weights_of):
    """Takes the steps with these gradients, and compares the parameters with the weights of each."""
    state, update = tx.init(params), jax.jit(tx.update)
    for step in range(STEPS):
        updates, state = update(gradients_of(step), state, params)
        params = optax.apply_updates(params, updates)
        expected = weights_of(step + 1)
        for actual, leaf in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(actual, leaf, rtol=2e-4, atol=2e-5)
    assert update._cache_size() == 1


@optimizers
@pytest.mark.parametrize("layout", [torch_layout, flax_layout])
def test_steps_are_those_of_the_restatement_in_both_layouts_and_all_three_cases(optimizer, layout):
    make, inner = OPTIMIZERS[optimizer]
    runs = {name: numpy_train(weight, view, inner()) for name, (weight, view) in WEIGHTS.items()}
    bias, bias_gradients = numpy_train(BIAS, "", inner())
    tree = lambda part, step: {name: layout(run[part][step]) for name, run in runs.items()}
    follow(
        make(),
        tree(0, 0) | {"bias": jnp.asarray(bias[0], jnp.float32)},
        lambda step: tree(1, step) | {"bias": jnp.asarray(bias_gradients[step], jnp.float32)},
        lambda step: tree(0, step) | {"bias": bias[step]},
    )


@optimizers
def test_a_layer_that_is_not_measured_is_not_projected(optimizer):
    """Such as an embedding, in the layers that LLR takes."""
    tx, only_fc = (
        OPTIMIZERS[optimizer][0](layers=[Layer("fc", "fc/kernel"), *others])
        for others in ([Layer("embed", "embed", measured=False)], [])
    )
    weights, gradients = numpy_train(start(7, 4), "whole", NumpySGD())
    params, updates = (
        {"fc": {"kernel": jnp.asarray(each)}, "embed": jnp.asarray(each)} for each in (weights[0], gradients[0])
    )
    found, expected = (each.update(updates, each.init(params), params)[0] for each in (tx, only_fc))
    chex.assert_trees_all_equal(found, expected)
    assert not np.allclose(found["embed"], found["fc"]["kernel"])


@pytest.mark.parametrize("optimizer", ["sgdp", "adamp"])
@pytest.mark.parametrize("axis", [0, 2])
def test_each_slice_of_a_stack_is_judged_by_itself(optimizer, axis):
    make, inner = OPTIMIZERS[optimizer]
    runs = [numpy_train(start(4, 7), view, inner()) for view in ("outputs", "whole", "")]
    stack = lambda part, step: {"kernel": jnp.asarray(np.stack([run[part][step] for run in runs], axis), jnp.float32)}
    inputs, outputs = {0: (2, 1), 2: (1, 0)}[axis]
    layer = Layer("stack", "kernel", (), (inputs,), (outputs,), (axis,))
    follow(make(layers=[layer]), stack(0, 0), lambda step: stack(1, step), lambda step: stack(0, step))


def test_two_output_axes_are_as_many_outputs_as_their_product():
    """Of an attention kernel, the heads; and of one that puts them together, two input axes."""
    flat = [numpy_train(start(6, 8), "outputs", NumpySGD()), numpy_train(start(8, 6), "outputs", NumpySGD())]
    tree = lambda part, step: {
        "query": jnp.asarray(flat[0][part][step].T.reshape(8, 3, 2), jnp.float32),
        "out": jnp.asarray(flat[1][part][step].T.reshape(3, 2, 8), jnp.float32),
    }
    layers = [Layer("query", "query", (), (0,), (1, 2)), Layer("out", "out", (), (0, 1), (2,))]
    make, _ = OPTIMIZERS["sgdp"]
    follow(make(layers=layers), tree(0, 0), lambda step: tree(1, step), lambda step: tree(0, step))


GRADIENT = np.random.default_rng(7).standard_normal((8, 12))
PARAMS = dense_params(depth=1)
GRADIENTS = jax.tree.map(lambda leaf: jnp.sin(5 * leaf), PARAMS)


def step_once(tx, params=PARAMS, gradients=GRADIENTS):
    return jax.jit(tx.update)(gradients, tx.init(params), params)[0]


@pytest.mark.parametrize(("axes", "length"), [((0, 1, 2), 30), (None, 180)], ids=["each output", "the whole weight"])
def test_the_greatest_cosine_allowed_is_delta_over_the_root_of_the_length(axes, length):
    weight, noise = start(3, 2, 5, 6), np.random.default_rng(1).standard_normal((3, 2, 5, 6))
    total = lambda product: np.sum(product, axis=axes, keepdims=True)
    unit = lambda array: array / np.sqrt(total(array**2))
    orthogonal = unit(noise - total(noise * weight) / total(weight**2) * weight)
    tx, params = sgdp(RATE), {"conv": {"kernel": jnp.asarray(weight, jnp.float32)}}
    update = jax.jit(tx.update)
    for cosine, projected in ((0.095 / np.sqrt(length), True), (0.105 / np.sqrt(length), False)):
        gradient = cosine * unit(weight) + np.sqrt(1 - cosine**2) * orthogonal
        updates, _ = update({"conv": {"kernel": jnp.asarray(gradient, jnp.float32)}}, tx.init(params), params)
        remaining = total(np.asarray(updates["conv"]["kernel"]) * unit(weight))
        np.testing.assert_allclose(
            remaining, np.full(remaining.shape, 0 if projected else -RATE * cosine), rtol=1e-3, atol=1e-6
        )


def test_where_nothing_is_projected_they_are_sgd_and_nadam():
    sgd = optax.chain(optax.trace(0.5), optax.add_decayed_weights(2 * DECAY), optax.scale_by_learning_rate(RATE))
    nadam = optax.nadamw(RATE, weight_decay=DECAY)
    for ours, theirs in (
        (sgdp(RATE, 0.5, weight_decay=DECAY, delta=0.0), sgd),
        (adamp(RATE, nesterov=True, weight_decay=DECAY, delta=1e9, weight_decay_ratio=0.0, layers=[]), nadam),
    ):
        chex.assert_trees_all_close(step_once(ours), step_once(theirs), rtol=1e-5, atol=1e-6)


def test_biases_are_not_projected_and_decay_in_full():
    params = {"bias": jnp.array([3.0, 0.0]), "dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.array([0.0, 2.0])}}
    gradients = {"bias": jnp.array([0.0, 1.0]), "dense": {"kernel": jnp.ones((2, 2)), "bias": jnp.array([1.0, 0.0])}}
    updates = step_once(adamp(RATE, weight_decay=DECAY, weight_decay_ratio=0.0), params, gradients)
    np.testing.assert_allclose(updates["bias"], -RATE * np.array([3 * DECAY, 1]), rtol=1e-5)
    np.testing.assert_allclose(updates["dense"]["bias"], -RATE * np.array([1, 2 * DECAY]), rtol=1e-5)


@pytest.mark.parametrize(
    ("pair", "axes"),
    [("SGD", (0, 1, 2)), ("SGD", None), ("Adam", None)],
    ids=["SGD, each output", "SGD, whole", "Adam, whole"],
)
def test_a_scale_invariant_weight_grows_more_slowly(pair, axes):
    target = jnp.asarray(start(3, 3, 4, 6), jnp.float32)
    plain, projected = {
        "SGD": (optax.sgd(0.05, momentum=0.9), sgdp(0.05)),
        "Adam": (optax.adam(0.02), adamp(0.02)),
    }[pair]

    def loss(params):
        kernel = params["conv"]["kernel"]
        return jnp.sum((kernel / jnp.sqrt(jnp.sum(kernel**2, axes, keepdims=True)) - target) ** 2)

    def train(tx):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            along = jnp.vdot(updates["conv"]["kernel"], params["conv"]["kernel"])
            return (optax.apply_updates(params, updates), state), along

        params = {"conv": {"kernel": jnp.asarray(np.random.default_rng(1).standard_normal((3, 3, 4, 6)), jnp.float32)}}
        (params, _), along = jax.jit(lambda carry: jax.lax.scan(step, carry, length=30))((params, tx.init(params)))
        return jnp.linalg.norm(params["conv"]["kernel"]), loss(params), jnp.max(jnp.abs(along))

    norm, _, radial = train(plain)
    projected_norm, last, projected_radial = train(projected)
    assert np.sqrt(9 * 24) * 0.9 < projected_norm < norm
    assert projected_radial < 1e-3 * radial
    assert np.isfinite(last)


def test_vmap_over_seeds_is_one_seed_at_a_time():
    """Also where one seed is projected and the other is not."""
    kernel = start(8, 12)
    params = [{"dense": {"kernel": jnp.asarray(kernel, jnp.float32)}}] * 2
    along = np.sum(GRADIENT * kernel, 0) / np.sum(kernel**2, 0) * kernel
    gradients = [{"dense": {"kernel": jnp.asarray(GRADIENT - part, jnp.float32)}} for part in (along, 0)]
    stack = lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    tx = adamp(RATE, weight_decay=DECAY)
    together, _ = jax.jit(jax.vmap(tx.update))(stack(gradients), jax.vmap(tx.init)(stack(params)), stack(params))
    update = jax.jit(tx.update)
    for i, projected in enumerate((True, False)):
        alone, _ = update(gradients[i], tx.init(params[i]), params[i])
        chex.assert_trees_all_close(jax.tree.map(lambda leaf, i=i: leaf[i], together), alone, rtol=1e-5, atol=1e-6)
        radial = np.sum((alone["dense"]["kernel"] + RATE * DECAY * (0.1 if projected else 1) * kernel) * kernel, 0)
        assert (np.abs(radial).max() < 1e-5) == projected


@pytest.mark.parametrize("make", [sgdp, adamp])
def test_numbers_can_be_schedules(make):
    schedule = optax.linear_schedule(0.4, 0.0, 4)
    scheduled = make(schedule, weight_decay=DECAY)
    injected = optax.inject_hyperparams(make, static_args="layers")(schedule, weight_decay=schedule)
    state, injected_state, update, update_injected = (
        scheduled.init(PARAMS),
        injected.init(PARAMS),
        jax.jit(scheduled.update),
        jax.jit(injected.update),
    )
    for step in range(3):
        updates, state = update(GRADIENTS, state, PARAMS)
        decayed, injected_state = update_injected(GRADIENTS, injected_state, PARAMS)
        rate = 0.4 - 0.1 * step
        # The direction is the same at every step; only what decays it differs between the two.
        difference = decayed["dense0"]["bias"] - updates["dense0"]["bias"]
        scale = 10 if make is sgdp else 1
        np.testing.assert_allclose(difference, -rate * scale * (rate - DECAY) * 0.5, rtol=1e-3)
    assert update_injected._cache_size() == 1


@pytest.mark.parametrize("make", [sgdp, adamp])
def test_zero_weights_and_gradients_stay_finite(make):
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    tx = make(RATE, weight_decay=DECAY)
    update = jax.jit(tx.update)
    for params, gradients in ((zeros, GRADIENTS), (PARAMS, zeros), (zeros, zeros)):
        updates, _ = update(gradients, tx.init(params), params)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(updates))


@pytest.mark.parametrize(
    ("make", "like", "params_dtype"),
    [(sgdp, lambda rate: optax.sgd(rate, momentum=0.9), jnp.bfloat16), (adamp, optax.adam, jnp.float32)],
    ids=["SGD, parameters too", "Adam, gradients only"],
)
def test_low_precision_is_computed_in_float32_and_keeps_its_dtypes(make, like, params_dtype):
    params = jax.tree.map(lambda x: x.astype(params_dtype), PARAMS)
    gradients = jax.tree.map(lambda x: x.astype(jnp.bfloat16), GRADIENTS)
    tx = make(RATE, delta=5.0)
    state = tx.init(params)
    updates, new = jax.jit(tx.update)(gradients, state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
    theirs = jax.eval_shape(lambda: like(RATE).update(gradients, like(RATE).init(params), params)[0])
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, theirs)
    wide = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)
    chex.assert_trees_all_close(wide(updates), step_once(tx, wide(params), wide(gradients)), rtol=0.05, atol=2e-3)


@pytest.mark.parametrize(
    ("mode", "spec"),
    [(AxisType.Auto, P(None, "x")), (AxisType.Explicit, P(None, "x")), (AxisType.Explicit, P("x", None))],
    ids=["automatic, columns", "explicit, columns", "explicit, rows"],
)
def test_sharded_parameters_keep_types_and_numbers(mode, spec):
    params = dense_params(depth=1, rows=16, columns=24)
    gradients = jax.tree.map(lambda leaf: jnp.cos(7 * leaf), params)
    tx = sgdp(RATE, weight_decay=DECAY, delta=5.0)
    expected = step_once(tx, params, gradients)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(mode,))
    with jax.set_mesh(mesh):
        put = lambda x: jax.device_put(x, NamedSharding(mesh, spec if x.ndim == 2 else P()))
        own = jax.tree.map(put, params)
        updates = step_once(tx, own, jax.tree.map(put, gradients))
        assert jax.tree.map(jax.typeof, updates) == jax.tree.map(jax.typeof, own)
    chex.assert_trees_all_close(jax.device_get(updates), jax.device_get(expected), rtol=1e-4, atol=1e-5)


def test_state_is_that_of_the_momentum_and_found_by_map_params():
    tx = optax.chain(sgdp(RATE), adamp(RATE))
    state = tx.init(PARAMS)
    chex.assert_trees_all_equal(optax.tree_utils.tree_get(state, "trace"), jax.tree.map(jnp.zeros_like, PARAMS))
    mapped = optax.tree_utils.tree_map_params(tx, lambda leaf: leaf + 1, state)
    chex.assert_trees_all_equal(optax.tree_utils.tree_get(mapped, "trace"), ones_like(PARAMS))
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(tx.init, PARAMS), state)


def test_masked_parameters_are_left_alone_and_nothing_needs_jit():
    tx = sgdp(RATE, delta=5.0)
    masked = optax.masked(tx, {"dense0": {"kernel": True, "bias": False}})
    updates, _ = masked.update(GRADIENTS, masked.init(PARAMS), PARAMS)
    chex.assert_trees_all_close(updates["dense0"]["kernel"], step_once(tx)["dense0"]["kernel"], rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal(updates["dense0"]["bias"], GRADIENTS["dense0"]["bias"])


@pytest.mark.parametrize(
    ("make", "arguments", "error", "message"),
    [
        (sgdp, dict(momentum=1.0), ValueError, r"sgdp: momentum=1\.0 must be below 1"),
        (sgdp, dict(momentum=-0.1), ValueError, r"sgdp: momentum=-0\.1 must be finite and at least 0"),
        (sgdp, dict(weight_decay=-1e-4), ValueError, r"sgdp: weight_decay=-0\.0001 must be"),
        (sgdp, dict(eps="small"), TypeError, r"sgdp: eps='small' is not a number"),
        (adamp, dict(delta=-0.1), ValueError, r"adamp: delta=-0\.1 must be"),
        (adamp, dict(weight_decay_ratio=jnp.nan), ValueError, r"adamp: weight_decay_ratio=nan must be finite"),
        (adamp, dict(eps=-1.0), ValueError, r"adamp: eps=-1\.0 must be"),
        (
            adamp,
            dict(weight_decay=optax.constant_schedule(0.1)),
            TypeError,
            r"inject_hyperparams\(adamp, static_args=\('layers'",
        ),
    ],
)
def test_bad_arguments_are_refused_by_name_value_and_way_out(make, arguments, error, message):
    with pytest.raises(error, match=message):
        make(RATE, **arguments)


@pytest.mark.parametrize("make", [sgdp, adamp])
def test_bad_calls_are_refused(make):
    with pytest.raises(ValueError, match=rf"{make.__name__}: params=None.*tx\.update\(updates, state, params\)"):
        make(RATE).update(GRADIENTS, make(RATE).init(PARAMS))
    with pytest.raises(ValueError, match="'nowhere', which is not in params"):
        make(RATE, layers=[Layer("a", "nowhere")]).init(PARAMS)
