"""What a GPU or TPU computes is what the CPU does. Skipped where JAX has no device but the CPU."""

import functools

import jax
import numpy as np
import pytest

import tb_optax
from benchmarks.networks import create

pytestmark = pytest.mark.skipif(jax.default_backend() == "cpu", reason="JAX has no device but the CPU here")

RESNET18 = create("resnet18")
LAYERS = functools.partial(tb_optax.find_layers, exclude=RESNET18.exclude)


def on(device, function):
    """What a compiled function makes of ResNet-18's weights on a device."""
    return jax.device_get(jax.jit(function)(jax.device_put(RESNET18.params, device)))


def on_both(function):
    return on(jax.devices()[0], function), on(jax.devices("cpu")[0], function)


@pytest.mark.parametrize(
    "fit", [tb_optax.fits.median, tb_optax.fits.goodness_of_fit, tb_optax.fits.fix_finger], ids=lambda fit: fit.__name__
)
def test_a_refresh_is_the_cpus(fit):
    tx = tb_optax.tempbalance(1, layers=LAYERS, metric=functools.partial(tb_optax.metrics.pl_alpha_hill, fit=fit))

    def refresh(params):
        updates, state = tx.update(params, tx.init(params), params)
        return updates, state.metric, state.scale

    found, expected = on_both(refresh)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4), found, expected)


def test_spectra_are_the_cpus():
    found, expected = on_both(functools.partial(tb_optax.spectra, layers=LAYERS))
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-6 * values[-1], err_msg=name)
