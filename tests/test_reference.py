"""What the authors' released code gives for a small ResNet, in PyTorch's layout, is what this library gives."""

import functools
import json
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import ones_like

import tb_optax

HERE = pathlib.Path(__file__).parent / "reference"
REFERENCE = json.loads((HERE / "small_net.json").read_text())
PARAMS = {name: jnp.asarray(value) for name, value in np.load(HERE / "small_net.npz").items()}
NAMES = REFERENCE["median"]["names"]
BASE = 0.1
TOLERANCE = 1e-4

FITS = {
    "median": tb_optax.fits.median,
    "goodness-of-fit": tb_optax.fits.goodness_of_fit,
    "fix-finger": tb_optax.fits.fix_finger,
}
MEDIAN_FIRST = ["median", *(pytest.param(fit, marks=pytest.mark.slow) for fit in FITS if fit != "median")]
METRICS = {
    "alpha": tb_optax.metrics.pl_alpha_hill,
    "alphahat": tb_optax.metrics.alpha_weighted,
    "spectral_norm": tb_optax.metrics.spectral_norm,
}
ASSIGNMENTS = {
    "tb_linear_map": tb_optax.assignments.linear,
    "tb_sqrt": tb_optax.assignments.sqrt,
    "tb_log2": tb_optax.assignments.log2,
    "tb_step": tb_optax.assignments.step,
}


def layers_by_hand(names: Sequence[str]) -> list[tb_optax.Layer]:
    """PyTorch's layout, `(out, in, *window)`; a conv is followed by its norm, a dense layer by its bias."""

    def followers(name: str) -> tuple[str, ...]:
        module = name.replace("conv", "bn") if "conv" in name else name
        return tuple(path for path in (f"{module}.weight", f"{module}.bias") if path in PARAMS and path != f"{name}.weight")

    return [tb_optax.Layer(name, f"{name}.weight", followers(name), reduction_axes=(1,), output_axes=(0,)) for name in names]


def eigenvalue_count(name: str) -> int:
    outputs, inputs, *window = PARAMS[f"{name}.weight"].shape
    return min(outputs, inputs) * int(np.prod(window))


def balanced(first_removed: bool, last_removed: bool) -> tuple[str, ...]:
    removed = {NAMES[0]} if first_removed else set()
    removed |= {NAMES[-1]} if last_removed else set()
    return tuple(name for name in NAMES if eigenvalue_count(name) >= 50 and name not in removed)


@pytest.fixture(scope="module")
def spectra():
    return tb_optax.spectra(PARAMS, layers=layers_by_hand(NAMES))


@pytest.mark.parametrize("fit", MEDIAN_FIRST)
def test_alpha_distance_norm_and_weighted_alpha_under_each_fit(fit, spectra):
    of = {
        "alpha": lambda values: tb_optax.metrics.pl_alpha_hill(values, fit=FITS[fit]),
        "D": lambda values: FITS[fit](values).ks_distance,
        "spectral_norm": tb_optax.metrics.spectral_norm,
        "alphahat": lambda values: tb_optax.metrics.alpha_weighted(values, fit=FITS[fit]),
    }
    for quantity, function in of.items():
        ours = [function(spectra[name]) for name in NAMES]
        np.testing.assert_allclose(ours, REFERENCE[fit][quantity], rtol=TOLERANCE, err_msg=quantity)


@pytest.mark.parametrize("fit", MEDIAN_FIRST)
def test_metric_in_training_is_theirs_under_each_fit(fit):
    """Training takes spectra from Gram products, but for the fit whose histogram begins at the smallest eigenvalue."""
    names = balanced(True, True)
    metric = functools.partial(tb_optax.metrics.pl_alpha_hill, fit=FITS[fit])
    tx = tb_optax.tempbalance(1, metric=metric, layers=layers_by_hand(names))
    _, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    theirs = dict(zip(NAMES, REFERENCE[fit]["alpha"], strict=True))
    np.testing.assert_allclose([state.metric[name] for name in names], [theirs[name] for name in names], rtol=TOLERANCE)


def learning_rates(metric: str, names: Sequence[str]):
    """The learning rate of every parameter by one update of ones; all assignments in one program, to compile it once."""

    def rates(which, min_scale, max_scale):
        def assign(metrics, low, high):
            return jax.lax.switch(which, [lambda f=f: f(metrics, low, high) for f in ASSIGNMENTS.values()])

        tx = tb_optax.tempbalance(
            1,
            min_scale=min_scale,
            max_scale=max_scale,
            metric=METRICS[metric],
            assign=assign,
            layers=layers_by_hand(names),
        )
        updates, _ = tx.update(ones_like(PARAMS), tx.init(PARAMS), PARAMS)
        return jax.tree.map(lambda update: BASE * update, updates)

    return jax.jit(rates)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("last", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_learning_rate_of_every_parameter_under_each_assignment(metric, last):
    names = balanced(True, last)
    assert names == balanced(False, last)  # The first layer has too few eigenvalues, kept or removed.
    followed = {path for layer in layers_by_hand(names) for path in (layer.kernel, *layer.follows)}
    rates = learning_rates(metric, names)
    keys = [key for key in REFERENCE["lr"] if key.startswith(f"{metric}|") and key.endswith(f"|last={last}")]
    # No root or logarithm of AlphaWeighted, which can be negative; the first layer is removed and kept, but never alone.
    assert len(keys) == (2 if metric == "alphahat" else 4) * (2 if last else 1)
    for key in keys:
        theirs, assign = REFERENCE["lr"][key], key.split("|")[1]
        # sqrt and log2 do not read the bounds, and leave (0.5, 1.5).
        bounds = (0.0, 100.0) if assign in ("tb_sqrt", "tb_log2") else (0.5, 1.5)
        ours = {name: np.unique(rate).item() for name, rate in rates(list(ASSIGNMENTS).index(assign), *bounds).items()}
        if assign == "tb_step":
            # With ranks 0 to L - 1, theirs is s1 + rank (s2 - s1) / L, where the paper, and ours, divide by L - 1: so
            # theirs - BASE s1 = (ours - BASE s1) (L - 1) / L for a balanced parameter, and none of theirs has s2.
            low, shrink = 0.5 * BASE, (len(names) - 1) / len(names)
            ours = {name: low + (rate - low) * shrink if name in followed else rate for name, rate in ours.items()}
        assert ours.keys() == theirs.keys()
        # A logarithm of a spectral norm below 1 makes their learning rate negative; `min_scale` holds ours at zero.
        expected = [max(theirs[name], 0.0) for name in ours]
        np.testing.assert_allclose(list(ours.values()), expected, rtol=TOLERANCE, err_msg=key)


@pytest.mark.parametrize(("first", "last"), [(True, True), (False, False)])
def test_log2_of_norms_below_one_is_negative_as_theirs_is(first, last):
    names = balanced(first, last)
    norm = dict(zip(NAMES, REFERENCE["median"]["spectral_norm"], strict=True))
    ours = BASE * tb_optax.assignments.log2(jnp.asarray([norm[name] for name in names]))
    theirs = REFERENCE["lr"][f"spectral_norm|tb_log2|first={first}|last={last}"]
    assert ours.min() < 0
    np.testing.assert_allclose(ours, [theirs[f"{name}.weight"] for name in names], rtol=TOLERANCE)


def test_find_layers_finds_the_layers_they_balance(spectra):
    found = tb_optax.find_layers(PARAMS, exclude=("linear",))
    assert {layer.name for layer in found} == set(balanced(True, True))
    for name, own in tb_optax.spectra(PARAMS, layers=found).items():
        np.testing.assert_allclose(own, spectra[name], rtol=1e-6)
