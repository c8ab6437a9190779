"""The spectrum of noise is the law of Marchenko and Pastur, which random matrices follow."""

import numpy as np
import pytest
from scipy.integrate import quad

from tb_optax import fits
from tb_optax._spectra.noise import noise_spectrum


@pytest.mark.parametrize(("rows", "columns"), [(100, 100), (128, 512), (96, 960), (300, 310)])
def test_its_values_are_the_quantiles_of_the_law(rows, columns):
    ratio, count = rows / columns, 50
    low, high = (1 - np.sqrt(ratio)) ** 2, (1 + np.sqrt(ratio)) ** 2
    density = lambda x: np.sqrt(max((high - x) * (x - low), 0)) / (2 * np.pi * ratio * x)
    values = noise_spectrum(rows, columns, count)
    for rank in (0, 10, 25, 49):
        # Integrated over the root, in which the density has no pole where low is 0.
        share, _ = quad(lambda root: 2 * root * density(root**2), np.sqrt(low), np.sqrt(values[rank]), limit=200)
        assert share == pytest.approx((rank + 0.5) / count, abs=1e-5)


@pytest.mark.parametrize(
    ("rows", "columns", "matrices", "alpha", "tolerance"),
    [(128, 512, 1, 3.496, 0.02), (96, 960, 1, 4.956, 0.02), (64, 64, 9, 2.112, 0.02), (512, 512, 9, 2.125, 0.005)],
)
def test_its_exponent_is_that_of_simulated_matrices(rows, columns, matrices, alpha, tolerance):
    """The simulated means are of 200 draws (9 matrices of 512: 20)."""
    spectrum = noise_spectrum(rows, columns, matrices * rows).astype(np.float32)
    assert float(fits.median(spectrum).alpha) == pytest.approx(alpha, rel=tolerance)
    assert spectrum.mean() == pytest.approx(1, abs=1e-3) and np.all(np.diff(spectrum) >= 0)


def test_a_random_matrix_has_its_quantiles():
    random = np.random.default_rng(0)
    values = np.mean([np.linalg.svd(random.standard_normal((60, 150)), compute_uv=False)[::-1] ** 2 for _ in range(50)], 0)
    np.testing.assert_allclose(noise_spectrum(60, 150, 60)[5:-5], (values / 150)[5:-5], rtol=0.02)
