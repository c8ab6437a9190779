"""203 ways to use the library wrongly, or so that it looks wrong, and what comes of each.

`refused` is an error of the library's own: its type and words of its message, the argument and its value among them.
`by_others` is an error of Python, JAX or Optax that names what is missing or does not fit; the library adds nothing to it.
`accepted` is a right use, with something that holds of what it returns.
"""

import datetime
import fractions
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tiny import dense_params

import tb_optax
from tb_optax import Layer, baselines, find_layers, fits, in_blocks, metrics, sparsities, tempbalance, trace_layers


class Outcome(NamedTuple):
    """How a use ends.

    Attributes:
      whose: whose error it is: the library's own, another's, or none.
      error: its type.
      says: what its message matches.
      holds: what holds of the result, if there is no error.
    """

    whose: str
    error: type[Exception] = Exception
    says: str = ""
    holds: Callable[[Any], Any] = lambda result: True


def refused(error: type[Exception], says: str) -> Outcome:
    return Outcome("own", error, says)


def by_others(error: type[Exception], says: str) -> Outcome:
    return Outcome("others", error, says)


def accepted(holds: Callable[[Any], Any]) -> Outcome:
    return Outcome("none", holds=holds)


Uses = dict[str, tuple[Callable[[], Any], Outcome]]

PARAMS = dense_params(rows=64, columns=64)
GRADIENTS = jax.tree.map(lambda leaf: 0.1 * leaf, PARAMS)
KERNEL = PARAMS["dense0"]["kernel"]
OTHER = Layer("other", "dense0/kernel")
TB = tempbalance(3)
STATE = TB.init(PARAMS)


def update(tx, updates=GRADIENTS, state=None, params=PARAMS):
    return tx.update(updates, tx.init(PARAMS) if state is None else state, params)


def with_metric(metric):
    return update(tempbalance(3, metric=metric))


def with_assign(assign):
    return update(tempbalance(3, assign=assign))


def with_layers(layers):
    return tempbalance(3, layers=layers).init(PARAMS)


def one_layer(**fields):
    """A use of a layer with these fields beside another layer."""
    return with_layers([Layer(**{"name": "a", "kernel": "dense1/kernel", **fields}), OTHER])


def with_state(state, tx=TB):
    return tx.update(GRADIENTS, state, PARAMS)


def each_leaf(function):
    return jax.tree.map(function, PARAMS)


def scales_are(*expected):
    """Whether these are the scales of an update, in the order of the layers."""
    return lambda result: np.allclose([*map(float, result[1].scale.values())], expected, atol=1e-3)


def scales_are_balanced(result):
    scales = [*map(float, result[1].scale.values())]
    return min(scales) == 0.5 and max(scales) == 1.5


def equals(expected):
    return lambda result: np.allclose(result, expected, atol=1e-3)


def same_fit_as(eigenvalues, fit=fits.median):
    return lambda result: np.allclose(result, fit(jnp.array(eigenvalues)), atol=1e-3)


INTERVALS: Uses = {
    "no interval": (
        lambda: tempbalance(),
        by_others(TypeError, "missing 1 required positional argument: 'update_interval'"),
    ),
    "interval 0": (lambda: tempbalance(0), refused(ValueError, "update_interval=0 must be at least 1")),
    "interval -3": (lambda: tempbalance(-3), refused(ValueError, "update_interval=-3 must be at least 1")),
    "interval 1.5": (lambda: tempbalance(1.5), refused(TypeError, "update_interval=1.5 must be a whole number")),
    "interval text": (lambda: tempbalance("10"), refused(TypeError, "update_interval='10' is not a number; give one")),
    "interval None": (lambda: tempbalance(None), accepted(lambda tx: callable(tx.refresh))),
    "interval True": (lambda: tempbalance(True), refused(TypeError, "update_interval=True is not a number; give one")),
    "interval nan": (lambda: tempbalance(float("nan")), refused(TypeError, "update_interval=nan must be a whole number")),
    "interval inf": (lambda: tempbalance(float("inf")), refused(TypeError, "update_interval=inf must be a whole number")),
    "interval 2**40": (lambda: tempbalance(2**40), refused(ValueError, "update_interval=1099511627776 must be at most")),
    "interval 10**400": (
        lambda: tempbalance(10**400),
        refused(ValueError, r"update_interval=10+\.\.\.0+ is above the largest"),
    ),
    "interval list": (lambda: tempbalance([3]), refused(TypeError, r"update_interval=\[3\] is not a number; give one")),
    "interval array": (
        lambda: tempbalance(jnp.array([3])),
        refused(TypeError, r"update_interval has shape \(1,\); give one"),
    ),
    "interval NumPy complex": (lambda: tempbalance(np.complex64(3)), refused(TypeError, "update_interval=.* is not a real")),
    "interval JAX complex": (lambda: tempbalance(jnp.array(3 + 0j)), refused(TypeError, "update_interval=.* is not a real")),
    "interval date": (
        lambda: tempbalance(datetime.date(2020, 1, 1)),
        refused(TypeError, "update_interval=.* is not a number"),
    ),
    "interval Fraction": (
        lambda: tempbalance(fractions.Fraction(3)),
        refused(TypeError, "update_interval=.* is not a number"),
    ),
}

BOUNDS: Uses = {
    "min by position": (lambda: tempbalance(3, 0.5), by_others(TypeError, "takes 1 positional argument but 2 were given")),
    "min above max": (
        lambda: tempbalance(3, min_scale=2.0, max_scale=1.0),
        refused(ValueError, "min_scale=2.0 is above max_scale=1.0; give the smaller"),
    ),
    "min nan": (lambda: tempbalance(3, min_scale=float("nan")), refused(ValueError, "min_scale=nan must be finite")),
    "min -1": (lambda: tempbalance(3, min_scale=-1), refused(ValueError, "min_scale=-1.0 must be finite and not negative")),
    "max inf": (lambda: tempbalance(3, max_scale=float("inf")), refused(ValueError, "max_scale=inf must be finite")),
    "min text": (lambda: tempbalance(3, min_scale="a"), refused(TypeError, "min_scale='a' is not a number; give one")),
    "min None": (lambda: tempbalance(3, min_scale=None), refused(TypeError, "min_scale=None is not a number; give one")),
    "min schedule": (
        lambda: tempbalance(3, min_scale=optax.linear_schedule(1, 0.5, 10)),
        refused(TypeError, "min_scale=<function .* is not a number; .* optax.inject_hyperparams"),
    ),
}

METRICS: Uses = {
    "text": (lambda: tempbalance(3, metric="pl_alpha_hill"), refused(TypeError, "metric='pl_alpha_hill' is not a function")),
    "a fit": (
        lambda: with_metric(fits.median),
        refused(TypeError, "metric=tb_optax.fits.median is a fit, not a metric; give"),
    ),
    "a fit's result": (lambda: with_metric(fits.PowerLaw), refused(TypeError, "metric=.*PowerLaw.* failed on .*'xmin'")),
    "returns a float": (
        lambda: with_metric(lambda e: 1.0),
        refused(ValueError, r"metric=.* returned an array of shape \(\)"),
    ),
    "returns None": (lambda: with_metric(lambda e: None), refused(TypeError, "metric=.* returned None; it must return")),
    "np.mean": (lambda: with_metric(lambda e: np.mean(e, -1)), accepted(scales_are_balanced)),  # which calls the array's own
    "np.linalg": (
        lambda: with_metric(lambda e: np.linalg.norm(e, axis=-1)),
        refused(TypeError, "metric=.* failed on arrays .*numpy.ndarray conversion.*; .* computes with jax.numpy"),
    ),
    "Python's if": (
        lambda: with_metric(lambda e: e[:, -1] if e[0, 0] > 0 else e[:, 0]),
        refused(TypeError, "metric=.* failed on arrays .*boolean conversion.*; .* computes with jax.numpy"),
    ),
    "for one spectrum": (lambda: with_metric(lambda e: e[-1]), refused(ValueError, r"metric=.* of shape \(64,\); it must")),
    "complex": (
        lambda: with_metric(lambda e: e[:, -1] * 1j),
        refused(TypeError, "metric=.*complex64.*must .* real numbers"),
    ),
    "integers": (lambda: with_metric(lambda e: e[:, -1].astype(int)), accepted(scales_are_balanced)),
}

ASSIGNMENTS: Uses = {
    "text": (lambda: tempbalance(3, assign="linear"), refused(TypeError, "assign='linear' is not a function; give one")),
    "a list": (lambda: with_assign([1]), refused(TypeError, r"assign=\[1\] is not a function; give one")),
    "returns a list": (
        lambda: with_assign(lambda m, a, b: [1.0] * 3),
        refused(TypeError, r"assign=.* returned \[1.0, 1.0, 1.0\]; it must return an array"),
    ),
    "returns one number": (
        lambda: with_assign(lambda m, a, b: m.mean()),
        refused(ValueError, r"assign=.* of shape \(\); it must return one number for each metric"),
    ),
    "of metrics alone": (
        lambda: with_assign(lambda m: m),
        refused(TypeError, "assign=.* failed on arrays .* 1 positional argument .*; give a function as tb_optax.Assignment"),
    ),
    "complex": (lambda: with_assign(lambda m, a, b: m * 1j), refused(TypeError, "assign=.*complex64.*must .* real numbers")),
    "integers": (lambda: with_assign(lambda m, a, b: jnp.arange(3)), accepted(scales_are(0.5, 1, 1.5))),  # clipped
    "booleans": (lambda: with_assign(lambda m, a, b: jnp.arange(3) > 1), accepted(scales_are(0.5, 0.5, 1))),
    "NumPy's float64": (lambda: with_assign(lambda m, a, b: np.ones(3)), accepted(scales_are(1, 1, 1))),
}

SEQUENCE = r"give a sequence of tb_optax\.Layer, or a function of params that returns one"
NOT_IN_PARAMS = "which is not in params. Its paths are: dense0/bias, dense0/kernel"
TOO_FEW = r"balances layers against each other, and found {}.*\nGive other layers=, a smaller min_eigenvalues"

LAYERS: Uses = {
    "text": (lambda: with_layers("dense0"), refused(TypeError, f"layers='dense0': {SEQUENCE}")),
    "list of text": (
        lambda: with_layers(["dense0"]),
        refused(TypeError, r"layers holds 'dense0', which is not a tb_optax.L"),
    ),
    "dict": (lambda: with_layers({"a": "a/kernel"}), refused(TypeError, f"layers={{'a': 'a/kernel'}}: {SEQUENCE}")),
    "generator": (lambda: with_layers(each for each in find_layers(PARAMS)), refused(TypeError, f"layers=.*: {SEQUENCE}")),
    "one Layer": (lambda: with_layers(OTHER), refused(TypeError, rf"layers=Layer\(.*: {SEQUENCE}")),
    "None": (lambda: with_layers(None), refused(TypeError, f"layers=None: {SEQUENCE}")),
    "set": (lambda: with_layers(set(find_layers(PARAMS))), refused(TypeError, rf"layers=\{{Layer.*: {SEQUENCE}")),
    "unknown path": (lambda: one_layer(kernel="x/kernel"), refused(ValueError, f"'x/kernel', {NOT_IN_PARAMS}")),
    "path with a dot": (lambda: one_layer(kernel="dense1.kernel"), refused(ValueError, f"'dense1.kernel', {NOT_IN_PARAMS}")),
    "one only": (lambda: with_layers([OTHER]), refused(ValueError, TOO_FEW.format(r"1 to balance \(other\). Left out:"))),
    "none": (lambda: with_layers([]), refused(ValueError, TOO_FEW.format(r"0 to balance \(none\). Left out:"))),
    "a kernel twice": (
        lambda: one_layer(kernel=OTHER.kernel),
        refused(ValueError, "layers has the path 'dense0/kernel' 2 t"),
    ),
    "a bias": (lambda: one_layer(kernel="dense1/bias"), refused(ValueError, r"names axis -2, but 'dense1/bias' has shape")),
    "axis 5": (
        lambda: one_layer(output_axes=(5,)),
        refused(ValueError, r"output_axes=\(5,\) names axis 5.* between -2 and 1"),
    ),
    "an axis twice": (
        lambda: one_layer(output_axes=(0,)),
        refused(ValueError, "axis 0 of 'dense1/kernel' .* is named twice"),
    ),
    "follows text": (lambda: one_layer(follows="c"), refused(TypeError, r"follows='c' must be a tuple .* such as \('c',\)")),
    "axes a number": (
        lambda: one_layer(output_axes=1),
        refused(TypeError, r"output_axes=1 must be a tuple .* such as \(1,\)"),
    ),
    "axes of floats": (
        lambda: one_layer(output_axes=(1.0,)),
        refused(TypeError, r"output_axes=\(1.0,\) must .* whole numbers"),
    ),
    "name None": (lambda: one_layer(name=None), refused(TypeError, "name=None must be a string, such as 'dense'")),
    "kernel None": (
        lambda: one_layer(kernel=None),
        refused(TypeError, "kernel=None must be a string, such as 'dense/kernel'"),
    ),
    "kernel a tuple": (lambda: one_layer(kernel=("a", "b")), refused(TypeError, r"kernel=\('a', 'b'\) must be a string")),
    "block a number": (lambda: one_layer(block=1), refused(TypeError, "block=1 must be a string, such as 'h_3'")),
    "no reduction axes": (lambda: one_layer(reduction_axes=()), refused(ValueError, r"64 vectors.*reduction_axes=\(\)")),
    "axes an array": (
        lambda: one_layer(output_axes=np.array([1])),
        refused(TypeError, r"output_axes=array.* such as \(-1,\)"),
    ),
    "a forward pass": (
        lambda: with_layers(lambda p, x: x),
        refused(TypeError, "layers=.* could not be called with params alone .*argument: 'x'.*; give a function such as"),
    ),
    "a misspelled option": (
        lambda: with_layers(functools.partial(find_layers, exlude=("dense0",))),
        refused(TypeError, "layers=.* could not be called with params alone .*'exlude'"),
    ),
    "trace_layers itself": (
        lambda: with_layers(trace_layers),
        refused(TypeError, r"layers=.* could not be called with params alone \(trace_layers: params is missing"),
    ),
}

NOT_A_TREE = "is not a tree of named weights; give a network's parameters"

PARAMETERS: Uses = {
    "find, exclude nothing": (
        lambda: find_layers(PARAMS, exclude=("dense9",)),
        refused(ValueError, "exclude='dense9' matches no layer.* the layers are: dense0, dense1, dense2"),
    ),
    "find, exclude numbers": (
        lambda: find_layers(PARAMS, exclude=(1,)),
        refused(TypeError, r"exclude=\(1,\) must be a seq"),
    ),
    "find, exclude None": (lambda: find_layers(PARAMS, exclude=None), refused(TypeError, "exclude=None must .* give ()")),
    "find, exclude a function": (
        lambda: find_layers(PARAMS, exclude=lambda name: True),
        refused(TypeError, "exclude=<function .* must be a sequence of patterns"),
    ),
    "find, min 1": (
        lambda: find_layers(PARAMS, min_eigenvalues=1),
        refused(ValueError, "min_eigenvalues=1; give .* least 2"),
    ),
    "find, min text": (
        lambda: find_layers(PARAMS, min_eigenvalues="5"),
        refused(ValueError, "min_eigenvalues='5'; give a n"),
    ),
    "find in an array": (lambda: find_layers(KERNEL), refused(ValueError, r"params is a single array of shape \(64, 64\)")),
    "find in a path": (lambda: find_layers("m.safetensors"), refused(ValueError, f"params='m.safetensors' {NOT_A_TREE}")),
    "find in None": (lambda: find_layers(None), refused(ValueError, f"params=None {NOT_A_TREE}")),
    "init None": (lambda: TB.init(None), refused(ValueError, f"params=None {NOT_A_TREE}")),
    "init nothing": (lambda: TB.init({}), refused(ValueError, TOO_FEW.format("0 .*params has no other weight"))),
    "init text": (lambda: TB.init("model"), refused(ValueError, f"params='model' {NOT_A_TREE}")),
    "init a Linen module": (lambda: TB.init(nn.Dense(3)), refused(ValueError, rf"params=Dense\(.* {NOT_A_TREE}")),
    "init an NNX module": (  # whose tree of variables is read: one layer is too few
        lambda: TB.init(nnx.Linear(64, 64, rngs=nnx.Rngs(0))),
        refused(ValueError, TOO_FEW.format(r"1 to balance \(kernel\)")),
    ),
    "init integers": (
        lambda: TB.init(each_leaf(lambda leaf: leaf.astype(int))),
        refused(ValueError, TOO_FEW.format(r"0 .*dense0/kernel: its dtype, int\d+, is not real floating-point")),
    ),
    "init complex": (
        lambda: TB.init(each_leaf(lambda leaf: leaf.astype(complex))),
        refused(ValueError, TOO_FEW.format(r"0 .*dense0/kernel: its dtype, complex\d+, is not real floating-point")),
    ),
    "init Python lists": (
        lambda: TB.init({"a": {"kernel": [[1.0, 2.0], [3.0, 4.0]]}}),
        refused(ValueError, TOO_FEW.format("0 .*params has no other weight of two or more axes")),
    ),
    "init texts": (
        lambda: TB.init({"a": "x"}),
        refused(ValueError, TOO_FEW.format("0 .*params has no other weight of two or more axes")),
    ),
    "update without params": (
        lambda: TB.update(GRADIENTS, STATE),
        refused(ValueError, r"params=None; .* tx\.update\(updates, state, params\)"),
    ),
    "update with a model": (
        lambda: TB.update(GRADIENTS, STATE, "model"),
        refused(ValueError, f"params='model' {NOT_A_TREE}"),
    ),
}

NOT_ITS_STATE = "is not its state; give what its own init returned"

STATES: Uses = {
    "swapped with updates": (
        lambda: TB.update(STATE, GRADIENTS, PARAMS),
        refused(TypeError, r"state is a dict with the keys \['dense0', .*; the arguments are tx\.update\("),
    ),
    "Adam's": (lambda: with_state(optax.adam(1.0).init(PARAMS)), refused(TypeError, rf"state=\(ScaleBy.* {NOT_ITS_STATE}")),
    "a chain's": (lambda: with_state(optax.chain(TB).init(PARAMS)), refused(TypeError, rf"state=\(.* {NOT_ITS_STATE}")),
    "None": (lambda: with_state(None), refused(TypeError, f"state=None {NOT_ITS_STATE}")),
    "alphadecay's": (
        lambda: with_state(tb_optax.alphadecay(0.1, 3).init(PARAMS)),
        refused(TypeError, f"state=AlphaDecay.* {NOT_ITS_STATE}"),
    ),
    "as a dict": (
        lambda: with_state(STATE._asdict()),
        refused(TypeError, "state is a plain dict of count, metric and scale.* without a target; restore it into"),
    ),
    "as a tuple": (lambda: with_state(tuple(STATE)), refused(TypeError, rf"state=\(Array\(0.* {NOT_ITS_STATE}")),
    "as a list": (lambda: with_state(list(STATE)), refused(TypeError, rf"state=\[Array\(0.* {NOT_ITS_STATE}")),
    "of other layers": (
        lambda: with_state(TB.init({name: PARAMS[name] for name in ("dense0", "dense1")})),
        refused(ValueError, r"state has the layers \['dense0', 'dense1'\], but params has .*; call init"),
    ),
    "with scales of shape (2,)": (
        lambda: with_state(STATE._replace(scale={name: jnp.ones(2) for name in STATE.scale})),
        refused(ValueError, r"state has \(2,\) numbers for each layer of params.*; call update under jax.vmap too, or give"),
    ),
    "with a count of float32": (
        lambda: with_state(STATE._replace(count=jnp.float32(3))),
        refused(TypeError, "state has a count of dtype float32.*; keep it an integer"),
    ),
    "with a Python count": (lambda: with_state(STATE._replace(count=3)), accepted(lambda result: int(result[1].count) == 4)),
    "without metrics": (
        lambda: with_state(STATE._replace(metric={})),
        refused(ValueError, r"state has the layers \[\], but params has .*; call init"),
    ),
    "in bfloat16": (  # an update keeps the dtype, so the state goes through a scan
        lambda: jax.lax.scan(lambda state, _: (with_state(state)[1], None), in_bfloat16(STATE), length=2)[0],
        accepted(lambda state: state.scale["dense0"].dtype == jnp.bfloat16 and int(state.count) == 2),
    ),
    "of init under vmap": (
        lambda: with_state(jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), STATE)),
        refused(ValueError, r"state has \(2,\) numbers for each layer of params, as from init under jax.vmap"),
    ),
}


def in_bfloat16(state):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16) if leaf.dtype == jnp.float32 else leaf, state)


GIVE_GRADIENTS = "give the gradients of these params"

UPDATES: Uses = {
    "another tree": (
        lambda: update(TB, {"x": PARAMS["dense0"]}),
        refused(ValueError, f"updates has 'x/bias', but params has not; {GIVE_GRADIENTS}"),
    ),
    "of some layers": (
        lambda: update(TB, {name: GRADIENTS[name] for name in ("dense0", "dense1")}),
        refused(ValueError, f"params has 'dense2/kernel', but updates has not; {GIVE_GRADIENTS}"),
    ),
    "of more": (
        lambda: update(TB, GRADIENTS | {"z": jnp.ones(3)}),
        refused(ValueError, f"updates has 'z', but params has not; {GIVE_GRADIENTS}"),
    ),
    "of other shapes": (
        lambda: update(TB, each_leaf(lambda leaf: leaf[:3])),
        refused(ValueError, r"updates has 'dense0/bias' of shape \(3,\), but params has it of shape \(64,\); give"),
    ),
    "None": (
        lambda: update(TB, None),
        refused(ValueError, f"params has 'dense0/kernel', but updates has not; {GIVE_GRADIENTS}"),
    ),
    "one number": (lambda: update(TB, 1.0), refused(ValueError, f"updates has '', but params has not; {GIVE_GRADIENTS}")),
    "a list": (
        lambda: update(TB, jax.tree.leaves(GRADIENTS)),
        refused(ValueError, f"updates has '0', but params has not; {GIVE_GRADIENTS}"),
    ),
    "None for a layer": (
        lambda: update(TB, GRADIENTS | {"dense0": {"kernel": None, "bias": None}}),
        refused(ValueError, f"params has 'dense0/kernel', but updates has not; {GIVE_GRADIENTS}"),
    ),
    "integers": (
        lambda: update(TB, each_leaf(lambda leaf: leaf.astype(int))),
        refused(TypeError, r"updates has 'dense0/kernel' of dtype int\d+; give floating-point numbers"),
    ),
    "Python's floats": (
        lambda: update(TB, each_leaf(lambda leaf: 0.0)),
        refused(ValueError, r"updates has 'dense0/bias' of shape \(\), but params has it of shape \(64,\); give"),
    ),
}

A_SOLVER = r"must be a tb_optax\.Exact or tb_optax\.Lanczos, such as Exact"

SOLVERS: Uses = {
    "text": (lambda: tempbalance(3, solver="lanczos"), refused(TypeError, f"solver='lanczos' {A_SOLVER}")),
    "dict": (lambda: tempbalance(3, solver={}), refused(TypeError, f"solver={{}} {A_SOLVER}")),
    "class": (lambda: tempbalance(3, solver=tb_optax.Exact), refused(TypeError, f"solver=<class .*Exact'> {A_SOLVER}")),
    "one step": (lambda: tb_optax.Lanczos(steps=1), refused(ValueError, "Lanczos: steps=1 must be at least 2")),
    "bytes 1e9": (
        lambda: tb_optax.Exact(max_bytes=1e9),
        refused(TypeError, "max_bytes=1000000000.0 must be a whole number"),
    ),
    "bytes of NumPy": (lambda: tb_optax.Exact(max_bytes=np.int64(9)), accepted(lambda exact: exact == tb_optax.Exact(9))),
    "windows a number": (
        lambda: tempbalance(3, windows=100),
        refused(TypeError, r"windows=100 must be a tb_optax\.Windows, such as Windows\(size=100"),
    ),
    "seed -1": (lambda: tb_optax.Lanczos(seed=-1), refused(ValueError, "Lanczos: seed=-1 must be at least 0")),
    "seed 2**70": (lambda: tb_optax.Lanczos(seed=2**70), refused(ValueError, r"Lanczos: seed=\d+ must be below 2\*\*32")),
    "ratio text": (lambda: tb_optax.Windows(ratio="a"), refused(TypeError, "Windows: ratio='a' must be a number")),
    "size 0": (lambda: tb_optax.Windows(size=0), refused(ValueError, "Windows: size=0 must be at least 2")),
    "ratio nan": (
        lambda: tb_optax.Windows(ratio=float("nan")),
        refused(ValueError, "Windows: ratio=nan must be at least 1"),
    ),
    "ratio inf": (
        lambda: tb_optax.Windows(ratio=float("inf")),
        refused(ValueError, "Windows: ratio=inf must be at least 1"),
    ),
}

TWO, THREE = jnp.array([2.0, 3.0]), jnp.array([2.0, 3.0, 4.0])
FROM_0_TO_1 = "must be from 0 to 1"

SPARSITIES: Uses = {
    "list": (lambda: sparsities([2.0, 3.0], 0.5), accepted(equals([0.35, 0.65]))),
    "target 2": (lambda: sparsities(TWO, 2), refused(ValueError, f"target=2 {FROM_0_TO_1}")),
    "target 2 of JAX": (lambda: sparsities(TWO, jnp.float32(2)), refused(ValueError, f"target=2.0 {FROM_0_TO_1}")),
    "target nan": (lambda: sparsities(TWO, float("nan")), refused(ValueError, f"target=nan {FROM_0_TO_1}")),
    "target 3 of NumPy": (lambda: sparsities(TWO, np.float32(3)), refused(ValueError, f"target=3.0 {FROM_0_TO_1}")),
    "two sizes": (
        lambda: sparsities(THREE, 0.5, sizes=TWO),
        refused(ValueError, r"sizes has shape \(2,\); give one for each"),
    ),
    "one size": (
        lambda: sparsities(THREE, 0.5, sizes=TWO[:1]),
        refused(ValueError, r"sizes has shape \(1,\); give one for"),
    ),
    "negative sizes": (
        lambda: sparsities(THREE, 0.5, sizes=-THREE),
        refused(ValueError, "sizes has a negative number; give"),
    ),
    "dict": (lambda: sparsities({"a": 2.0}, 0.5), refused(TypeError, r"metrics is a dict with the keys \['a'\]; give")),
    "integers": (lambda: sparsities(jnp.array([2, 3, 4]), 0.5), accepted(equals([0.35, 0.5, 0.65]))),
    "negative metrics": (lambda: sparsities(THREE - 4, 0.5), accepted(equals([0.35, 0.5, 0.65]))),  # as of alpha_weighted
    "infinite metric": (lambda: sparsities(jnp.array([jnp.inf, 3, 4]), 0.5), accepted(equals([0.5, 0.35, 0.65]))),  # as NaN
    "two axes": (
        lambda: sparsities(jnp.ones((2, 3)), 0.5),
        refused(ValueError, r"metrics has shape \(2, 3\); give one number"),
    ),
    "none": (lambda: sparsities(jnp.zeros(0), 0.5), refused(ValueError, r"metrics has shape \(0,\); give one number")),
}

FOUR = jnp.arange(1.0, 5.0)
A_SHARE = "must be above 0 and at most 1"

FITS: Uses = {
    "1 value": (
        lambda: fits.median(jnp.array([1.0])),
        refused(ValueError, r"eigenvalues of shape \(1,\): give at least two"),
    ),
    "list": (lambda: fits.median([1.0, 2.0, 3.0]), accepted(same_fit_as([1.0, 2.0, 3.0]))),
    "tail 0": (lambda: fits.median(FOUR, tail_fraction=0), refused(ValueError, f"tail_fraction=0 {A_SHARE}")),
    "tail text": (lambda: fits.median(FOUR, tail_fraction="a"), refused(ValueError, f"tail_fraction='a' {A_SHARE}")),
    "tail traced": (
        lambda: jax.jit(lambda share: fits.median(FOUR, tail_fraction=share))(0.5),
        refused(ValueError, rf"tail_fraction=.* {A_SHARE}.*\(It cannot be a traced number\.\)"),
    ),
    "unsorted": (lambda: fits.median(jnp.array([4.0, 1.0, 2.0, 3.0])), accepted(same_fit_as(FOUR))),
    "descending": (lambda: fits.median(FOUR[::-1]), accepted(same_fit_as(FOUR))),
    "integers": (lambda: fits.median(jnp.array([1, 2, 3, 4])), accepted(same_fit_as(FOUR))),
    "complex": (
        lambda: fits.median(jnp.array([1, 2, 3, 4j])),
        refused(TypeError, r"eigenvalues of dtype complex\d+: give real"),
    ),
    "all spectra at once": (
        lambda: metrics.pl_alpha_hill(tb_optax.spectra(PARAMS)),
        refused(TypeError, r"eigenvalues is a dict with the keys \['dense0', .*; give one of its arrays"),
    ),
    "spectra of a path": (
        lambda: tb_optax.spectra("x.safetensors"),
        refused(ValueError, f"params='x.safetensors' {NOT_A_TREE}"),
    ),
    "spectra of an array": (
        lambda: tb_optax.spectra(KERNEL),
        refused(ValueError, r"params is a single array of shape \(64, 64"),
    ),
    "negative eigenvalues": (  # as from rounding: no tail begins at one
        lambda: fits.goodness_of_fit(jnp.array([-1.0, 1.0, 2.0, 3.0])),
        accepted(same_fit_as([0.0, 1.0, 2.0, 3.0], fits.goodness_of_fit)),
    ),
}


def forward(params, x):
    return x @ params["dense0"]["kernel"]


BLOCKS_AND_TRACES: Uses = {
    "blocks by text": (
        lambda: in_blocks(find_layers, "x"),
        refused(TypeError, "block_of='x' is not a function; give one from a layer's name"),
    ),
    "blocks of nothing": (lambda: in_blocks(), by_others(TypeError, "missing 1 required positional argument: 'layers'")),
    "blocks of params": (lambda: in_blocks(PARAMS)(PARAMS), refused(TypeError, rf"layers=\{{'dense0'.*: {SEQUENCE}")),
    "blocks None": (
        lambda: in_blocks(find_layers, lambda name: None)(PARAMS),
        refused(TypeError, r"block_of\('dense0'\) returned None; it must return a block's name"),
    ),
    "one block": (
        lambda: with_layers(in_blocks(find_layers, lambda name: "all")),
        refused(
            ValueError, r"balances blocks of layers against each other, and found 1 to balance \(dense0, dense1, dense2\)"
        ),
    ),
    "a trace without data": (
        lambda: trace_layers(forward, PARAMS),
        by_others(TypeError, r"forward\(\) missing 1 required positional argument: 'x'"),
    ),
    "a trace with params first": (
        lambda: trace_layers(PARAMS, forward, jnp.ones(3)),
        refused(TypeError, r"fn=\{'dense0'.* is not a function; give trace_layers\(fn, params, \*data\)"),
    ),
    "a trace that uses no weight": (
        lambda: with_layers(trace_layers(lambda params, x: x, PARAMS, jnp.ones((1, 64)))),
        refused(ValueError, TOO_FEW.format("0 .*dense0/kernel: no matrix product with it in the forward pass")),
    ),
    "a trace of other data": (
        lambda: trace_layers(forward, PARAMS, jnp.ones((1, 63))),
        by_others(TypeError, r"contracting dimensions to have the same shape, got \(63,\) and \(64,\)"),
    ),
}


def nothing_decayed_but_floats(result):
    updates, _ = result
    return int(updates["steps"]) == 0 and float(jnp.abs(updates["dense0"]["kernel"]).max()) > 0


def with_integer_leaf():
    params = PARAMS | {"steps": jnp.int32(3)}
    tx = tb_optax.alphadecay(0.1, 3)
    return tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)


ALPHADECAY: Uses = {
    "swapped": (lambda: tb_optax.alphadecay(500, 0.1), refused(TypeError, "update_interval=0.1 must be a whole number")),
    "decay -1": (
        lambda: tb_optax.alphadecay(-1.0, 3),
        refused(ValueError, "weight_decay=-1.0 must be finite and at least 0"),
    ),
    "without params": (
        lambda: update(tb_optax.alphadecay(0.1, 3), params=None),
        refused(ValueError, r"alphadecay: params=None; .* tx\.update\(updates, state, params\)"),
    ),
    "mask text": (
        lambda: tb_optax.alphadecay(0.1, 3, mask="kernel"),
        refused(TypeError, "mask='kernel' must be a tree of True"),
    ),
    "mask all false": (
        lambda: tb_optax.alphadecay(0.1, 3, mask=each_leaf(lambda leaf: False)).init(PARAMS),
        refused(ValueError, TOO_FEW.format("0 to balance")),
    ),
    "schedule of nan": (  # as of optax.add_decayed_weights: NaN cannot be overlooked
        lambda: update(tb_optax.alphadecay(lambda count: jnp.nan, 3)),
        accepted(lambda result: all(jnp.isnan(leaf).all() for leaf in jax.tree.leaves(result[0]))),
    ),
    "an integer among params": (with_integer_leaf, accepted(nothing_decayed_but_floats)),
}

SGDP, ADAMP, SNR = baselines.sgdp(0.1), baselines.adamp(0.1), baselines.spectral_norm_regularization(0.1)


def snr_on_half():
    """Whose biases are half as long too, so that the other side is the outputs."""
    half = each_leaf(lambda leaf: leaf[:32])
    return SNR.update(half, SNR.init(PARAMS), half)


BASELINES: Uses = {
    "sgdp, rate text": (
        lambda: baselines.sgdp("a"),
        refused(TypeError, "sgdp: learning_rate='a' is not a number; give one"),
    ),
    "sgdp, rate nan": (lambda: baselines.sgdp(float("nan")), refused(ValueError, "learning_rate=nan must be finite")),
    "sgdp, momentum 1": (lambda: baselines.sgdp(0.1, 1.0), refused(ValueError, "sgdp: momentum=1.0 must be below 1")),
    "sgdp, momentum text": (lambda: baselines.sgdp(0.1, "x"), refused(TypeError, "momentum='x' is not a number; give one")),
    "sgdp, momentum None": (
        lambda: baselines.sgdp(0.1, None),
        refused(TypeError, "momentum=None is not a number; give one"),
    ),
    "sgdp, decay -1": (
        lambda: baselines.sgdp(0.1, weight_decay=-1),
        refused(ValueError, "weight_decay=-1.0 must be finite"),
    ),
    "adamp, b1 2": (lambda: baselines.adamp(0.1, b1=2.0), refused(ValueError, "adamp: b1=2.0 must be below 1")),
    "adamp, b1 -1": (
        lambda: baselines.adamp(0.1, b1=-1.0),
        refused(ValueError, "adamp: b1=-1.0 must be finite and at least 0"),
    ),
    "adamp, b2 1": (lambda: baselines.adamp(0.1, b2=1.0), refused(ValueError, "adamp: b2=1.0 must be below 1")),
    "adamp, b1 text": (lambda: baselines.adamp(0.1, b1="x"), refused(TypeError, "adamp: b1='x' is not a number; give one")),
    "sgdp without params": (lambda: update(SGDP, params=None), refused(ValueError, r"sgdp: params=None; .* tx\.update\(")),
    "sgdp, state of sgd": (
        lambda: update(SGDP, state=optax.sgd(0.1).init(PARAMS)),
        refused(TypeError, rf"sgdp: state=EmptyState\(\) {NOT_ITS_STATE}"),
    ),
    "adamp, state of adam": (  # the same moments: training goes on from them
        lambda: update(ADAMP, state=optax.adam(0.1).init(PARAMS)),
        accepted(lambda result: np.allclose(result[0]["dense0"]["bias"], -0.1, atol=1e-3)),
    ),
    "adamp, state of sgdp": (
        lambda: update(ADAMP, state=SGDP.init(PARAMS)),
        refused(TypeError, f"adamp: state=TraceState.* {NOT_ITS_STATE}"),
    ),
    "sgdp, updates of some layers": (
        lambda: update(SGDP, {name: GRADIENTS[name] for name in ("dense0", "dense1")}),
        refused(ValueError, f"params has 'dense2/kernel', but updates has not; {GIVE_GRADIENTS}"),
    ),
    "snr, coefficient -1": (
        lambda: baselines.spectral_norm_regularization(-1),
        refused(ValueError, "coefficient=-1.0 must be finite and at least 0"),
    ),
    "snr, schedule": (
        lambda: baselines.spectral_norm_regularization(lambda count: 0.1),
        refused(TypeError, "coefficient=<function .* is not a number; .* optax.inject_hyperparams"),
    ),
    "snr, 0 iterations": (
        lambda: baselines.spectral_norm_regularization(0.1, power_iterations=0),
        refused(ValueError, "power_iterations=0 must be at least 1"),
    ),
    "snr, seed 1.5": (
        lambda: baselines.spectral_norm_regularization(0.1, seed=1.5),
        refused(TypeError, "seed=1.5 must be a whole number"),
    ),
    "snr, seed -1": (
        lambda: baselines.spectral_norm_regularization(0.1, seed=-1),
        refused(ValueError, "seed=-1 must be at least 0"),
    ),
    "snr, state of other shapes": (
        snr_on_half,
        refused(
            ValueError, r"state has the layer 'dense0' with vectors of shape \(1, 64\), but params needs \(32, 1\); call"
        ),
    ),
    "snr, state of tempbalance": (
        lambda: with_state(STATE, SNR),
        refused(TypeError, f"state=TempBalance.* {NOT_ITS_STATE}"),
    ),
}

CHAINS_AND_REPORTS: Uses = {
    "tempbalance not called": (  # optax.chain says the same of any function
        lambda: optax.chain(optax.sgd(0.1), tempbalance).init(PARAMS),
        by_others(AttributeError, "'function' object has no attribute 'init'"),
    ),
    "tempbalance for a momentum": (  # Optax takes anything for a momentum until the first update
        lambda: optax.sgd(0.1, TB),
        accepted(lambda tx: isinstance(tx, optax.GradientTransformation)),
    ),
    "report of no file": (
        lambda: tb_optax.report("/nonexistent.safetensors"),
        refused(tb_optax.CheckpointError, "/nonexistent.safetensors: No such file or directory; give a path"),
    ),
    "report of None": (
        lambda: tb_optax.report(None),
        refused(tb_optax.CheckpointError, "params: it holds no arrays; give a network's parameters"),
    ),
    "report of texts": (
        lambda: tb_optax.report({"a": "b"}),
        refused(
            tb_optax.CheckpointError, r"params: it has no layers \(no array has two axes\); give a checkpoint of a network"
        ),
    ),
    "report, one fit": (
        lambda: tb_optax.report(PARAMS, fits=fits.median),
        refused(TypeError, r"fits=<function median .* must be a sequence of functions, such as"),
    ),
    "report, unknown path": (
        lambda: tb_optax.report(PARAMS, layers=[Layer("a", "x")]),
        refused(ValueError, f"names the path 'x', {NOT_IN_PARAMS}"),
    ),
    "report, min above max": (
        lambda: tb_optax.report(PARAMS, min_scale=2, max_scale=1),
        refused(ValueError, "min_scale=2 and max_scale=1; give 0 or more, the smaller one first"),
    ),
}

GROUPS: dict[str, Uses] = {
    "interval": INTERVALS,
    "bounds": BOUNDS,
    "metric": METRICS,
    "assign": ASSIGNMENTS,
    "layers": LAYERS,
    "params": PARAMETERS,
    "state": STATES,
    "updates": UPDATES,
    "solver": SOLVERS,
    "sparsities": SPARSITIES,
    "fits": FITS,
    "blocks and traces": BLOCKS_AND_TRACES,
    "alphadecay": ALPHADECAY,
    "baselines": BASELINES,
    "chains and reports": CHAINS_AND_REPORTS,
}
USES: Uses = {f"{group}: {name}": use for group, uses in GROUPS.items() for name, use in uses.items()}
