"""A report's numbers are those of independent formulas, and of training; layers are read one by one."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tb_optax
from tb_optax import fits
from tb_optax._balance.fits import fit_spectra
from tb_optax._report import layer_spectra, measuring
from tb_optax._report.comparison import labels, side_by_side
from tb_optax._report.layer_spectra import spectra_in_turn
from tb_optax._report.source import of_tree


@pytest.fixture(scope="module")
def params():
    random = np.random.default_rng(0)
    kernel = lambda *shape: (random.standard_normal(shape) * np.exp(random.standard_normal((shape[-2], 1)))).astype(
        np.float32
    )
    return {
        "layer1": {"kernel": kernel(64, 96), "bias": np.zeros(96, np.float32)},
        "layer2": {"kernel": kernel(3, 3, 16, 32), "bias": np.zeros(32, np.float32)},
        "layer10": {"kernel": kernel(80, 64)},
        "blocks": {"kernel": kernel(3, 64, 96), "bias": np.zeros((3, 96), np.float32)},
        "head": {"kernel": kernel(96, 10)},
    }


@pytest.fixture(scope="module")
def report(params):
    return tb_optax.report(params, fits=(fits.median, fits.goodness_of_fit))


def _spectrum(kernel):
    """By NumPy, in double precision."""
    matrices = kernel.reshape(-1, *kernel.shape[-2:]).astype(np.float64)
    values = np.sort(np.concatenate([np.linalg.svd(matrix, compute_uv=False) ** 2 for matrix in matrices]))
    return values / 2 if kernel.ndim > 2 else values


def test_layers_are_in_the_order_of_their_names_with_numbers_as_numbers_and_stacks_slice_by_slice(report):
    assert [record.layer for record in report.records] == [
        *("blocks[0]", "blocks[1]", "blocks[2]", "layer1", "layer2", "layer10")
    ]
    assert report.records[0].shape == (64, 96)
    assert report.left_out == {"head/kernel": "10 eigenvalues, fewer than min_eigenvalues=50"}
    assert report.complete


@pytest.mark.parametrize("name", ["layer1", "layer2", "layer10", "blocks[1]"])
def test_the_numbers_of_a_layer_are_those_of_its_formulas(report, params, name):
    kernel = params["blocks"]["kernel"][1] if name == "blocks[1]" else params[name]["kernel"]
    values = _spectrum(kernel)
    record = report.record(name)
    tail = values[len(values) // 2 :]
    alpha = 1 + len(tail) / np.log(tail / tail[0]).sum()
    gaps = 1 - (tail / tail[0]) ** (1 - alpha) - np.arange(len(tail)) / len(tail)
    row = record.row()
    assert (row["shape"], row["matrices"]) == ("x".join(map(str, kernel.shape)), math.prod(kernel.shape[:-2]))
    assert row["eigenvalues"] == len(values)
    np.testing.assert_allclose(record.eigenvalues, values, rtol=1e-3, atol=1e-6 * values[-1])
    expected = {
        "alpha": alpha,
        "ks_distance": np.abs(gaps).max(),
        "xmin": tail[0],
        "tail": len(tail) / len(values),
        "lambda_max": values[-1],
        "stable_rank": values.sum() / values[-1],
        "alpha_weighted": alpha * np.log10(values[-1]),
        "rank": np.prod(kernel.shape[:-2], initial=1) * np.linalg.matrix_rank(kernel.reshape(-1, *kernel.shape[-2:])[0]),
    }
    np.testing.assert_allclose([row[key] for key in expected], list(expected.values()), rtol=1e-3)


def test_the_least_distance_over_all_thresholds_is_that_of_goodness_of_fit(report, params):
    values = _spectrum(params["layer10"]["kernel"])
    found = []
    for start in range(len(values) - 1):
        tail = values[start:]
        alpha = 1 + len(tail) / np.log(tail / tail[0]).sum()
        found.append((np.abs(1 - (tail / tail[0]) ** (1 - alpha) - np.arange(len(tail)) / len(tail)).max(), alpha, tail[0]))
    row = report.record("layer10").row()
    numbers = [row[f"{key}_goodness_of_fit"] for key in ("ks_distance", "alpha", "xmin")]
    np.testing.assert_allclose(numbers, min(found), rtol=1e-3)


def test_alphas_and_scales_are_those_that_training_has(params, report):
    tx = tb_optax.tempbalance(update_interval=1)
    state = tx.init(params)
    _, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
    scales = {name: np.atleast_1d(scale) for name, scale in state.scale.items()}
    for name, stack in scales.items():
        records = [record for record in report.records if record.layer.partition("[")[0] == name]
        np.testing.assert_allclose([record.scale for record in records], stack, rtol=1e-4)


def test_given_layers_are_told_in_their_order_under_their_names(params):
    layers = (tb_optax.Layer("second", "layer10/kernel"), tb_optax.Layer("first", "layer1/kernel"))
    assert [record.layer for record in tb_optax.report(params, layers=layers).records] == ["second", "first"]


def test_rows_are_flat_and_of_other_fits_than_the_first_named_so(report):
    row = report.rows()[0]
    assert list(row)[4:12] == [
        *("alpha", "ks_distance", "xmin", "tail"),
        *(f"{key}_goodness_of_fit" for key in ("alpha", "ks_distance", "xmin", "tail")),
    ]
    assert all(isinstance(value, (str, int, float)) for value in row.values())


def test_the_summary_is_over_the_layers_that_have_a_number(report):
    alphas = np.array([row["alpha"] for row in report.rows()])
    assert report.summary()["alpha"] == pytest.approx(
        {
            "mean": alphas.mean(),
            "median": np.median(alphas),
            "deviation": alphas.std(),
            "least": alphas.min(),
            "greatest": alphas.max(),
        }
    )


def test_means_are_those_that_papers_compare_models_by(report, params):
    """Of one layer, by their formulas; of all, over the layers that have the number."""
    values = _spectrum(params["layer10"]["kernel"])
    record = report.record("layer10")
    expected = {
        "log_norm": np.log10(np.linalg.norm(params["layer10"]["kernel"]) ** 2),
        "log_spectral_norm": np.log10(values[-1]),
        "log_alpha_norm": np.log10((values**record.alpha).sum()),
    }
    assert record.norms == pytest.approx(expected, rel=1e-3)
    means = report.means()
    assert list(means) == ["alpha", "alpha_weighted", *expected, "stable_rank"]
    assert means["alpha"] == report.summary()["alpha"]["mean"]
    assert means["log_norm"] == pytest.approx(np.mean([each.norms["log_norm"] for each in report.records]))
    assert list(tb_optax.report(params, windows=tb_optax.Windows(32)).means()) == ["alpha"]


@pytest.mark.parametrize(
    ("options", "rank"),
    [
        ({}, 20),
        ({"solver": tb_optax.Exact(method="gram")}, math.nan),
        ({"solver": tb_optax.Lanczos(64)}, math.nan),
        ({"windows": tb_optax.Windows(60)}, math.nan),
    ],
)
def test_the_rank_is_told_where_small_singular_values_are_resolved(options, rank):
    """Singular values down to 1e-5 of the largest: a Gram product does not see them."""
    random = np.random.default_rng(0)
    left, right = (np.linalg.qr(random.standard_normal((80, 80)))[0] for _ in range(2))
    weight = (left[:, :20] * np.geomspace(1, 1e-5, 20)) @ right[:20]
    (record,) = tb_optax.report({"dense": {"kernel": weight.astype(np.float32)}}, **options).records
    # Rounding of the entries to float32 has singular values of 1e-7.
    assert record.rank == pytest.approx(rank, nan_ok=True)
    assert ("rank" in record.reasons) == math.isnan(rank)


def test_a_layer_with_nan_is_marked_and_the_others_are_measured(params):
    broken = params["layer1"]["kernel"].copy()
    broken[3, 5] = np.nan
    zero = np.zeros((64, 64), np.float32)
    report = tb_optax.report({"broken": {"kernel": broken}, "zero": {"kernel": zero}, "whole": params["layer10"]})
    row = report.record("broken").row()
    assert all(math.isnan(row[key]) for key in ("alpha", "xmin", "tail", "lambda_max", "stable_rank", "scale"))
    assert not report.record("broken").is_finite
    assert report.record("zero").is_finite and math.isnan(report.record("zero").alpha)
    assert report.record("whole").scale == 1
    assert report.summary()["alpha"]["mean"] == pytest.approx(report.record("whole").alpha)


@pytest.mark.parametrize(
    "fit",
    [
        fits.median,
        functools.partial(fits.median, tail_fraction=0.3),
        fits.goodness_of_fit,
        fits.fix_finger,
    ],
)
def test_spectra_of_several_lengths_are_fitted_together_as_each_alone(fit):
    random = np.random.default_rng(1)
    spectra = [np.sort(random.pareto(1.5, length)).astype(np.float32) + 0.01 for length in (64, 99, 64, 200)]
    for values, law in zip(spectra, fit_spectra(fit, spectra), strict=True):
        np.testing.assert_allclose(law, fit(jnp.asarray(values)), rtol=2e-5)


def test_a_fit_of_a_user_s_own_sees_no_spectrum_but_those_there_are():
    seen = []

    def mean(eigenvalues):
        seen.append(eigenvalues.shape)
        return fits.PowerLaw(eigenvalues.mean(-1), eigenvalues[..., 0], eigenvalues[..., -1])

    spectra = [np.arange(length, dtype=np.float32) for length in (4, 6, 4)]
    assert [float(law.alpha) for law in fit_spectra(mean, spectra)] == [1.5, 2.5, 1.5]
    assert sorted(seen) == [(1, 6), (2, 4)]


def test_every_kernel_is_read_once_and_few_before_their_turn(params):
    source, read = of_tree({f"layer{number}": params["layer1"] for number in range(20)}), []
    layers = tb_optax.find_layers(source.shapes)

    def spy(path):
        read.append(path)
        return source.read(path)

    in_turn = spectra_in_turn(layers, source.shapes, spy, tb_optax.Exact(), None)
    next(in_turn)
    assert len(read) < 20
    assert len(list(in_turn)) == 19 and sorted(read) == sorted(layer.kernel for layer in layers)


def test_what_would_not_fit_into_memory_is_left_out_unread(params, monkeypatch):
    monkeypatch.setattr(measuring, "_memory", lambda: 4 * 64 * 96 * 2)
    report = tb_optax.report({"small": params["layer1"], "large": {"kernel": np.zeros((128, 96), np.float32)}})
    assert [record.layer for record in report.records] == ["small"]
    assert "GiB" in report.left_out["large/kernel"]


def test_large_matrices_are_approximated_where_asked():
    kernel = np.random.default_rng(0).standard_normal((512, 600)).astype(np.float32)
    exact, near = (
        tb_optax.report({"dense": {"kernel": kernel}}, solver=solver).records[0].alpha
        for solver in (tb_optax.Exact(), tb_optax.Lanczos(512))
    )
    assert exact != near and near == pytest.approx(exact, rel=0.05)


def test_plots_have_a_point_for_each_layer_and_a_line_for_each_fit(report):
    (axes,) = report.plot().axes
    assert [len(line.get_xdata()) for line in axes.lines] == [6, 6, 6]
    np.testing.assert_array_equal(axes.lines[2].get_ydata(), [record.noise.alpha for record in report.records])
    (axes,) = report.plot("layer2").axes
    labels = [line.get_label().partition(":")[0] for line in axes.lines]
    assert labels[::2] == ["median", "goodness_of_fit", "edge of noise"]


def test_the_edge_of_noise_has_the_eigenvalues_beyond_noise_above_it(report):
    for record in report.records:
        assert (record.eigenvalues > record.noise.edge).sum() == record.row()["beyond_noise"]


def test_the_density_that_is_drawn_integrates_to_the_share_of_positive_eigenvalues():
    from tb_optax._report.figures import density, tail_line

    values = np.sort(np.concatenate([np.zeros(25), np.random.default_rng(0).pareto(2, 75) + 1])).astype(np.float32)
    edges, heights = density(values)
    assert (heights * np.diff(edges)).sum() == pytest.approx(0.75)
    law = fits.median(jnp.asarray(values))
    x, y = tail_line(values, float(law.alpha), float(law.xmin))
    beyond = 0.5 * (x[-1] / x[0]) ** (1 - float(law.alpha))
    assert np.trapezoid(y, x) + beyond == pytest.approx(0.5, rel=0.02)


def test_a_comparison_has_numbers_of_each_and_their_change(params, report):
    doubled = {**params, "layer1": {"kernel": 2 * params["layer1"]["kernel"]}, "new": params["layer1"]}
    del doubled["layer10"]
    both = side_by_side([report, tb_optax.report(doubled)])
    rows = {row["layer"]: row for row in both.rows()}
    assert rows["layer1"]["lambda_max change"] == pytest.approx(3 * report.record("layer1").lambda_max, rel=1e-4)
    assert rows["layer1"]["alpha change"] == pytest.approx(0, abs=1e-3)
    assert math.isnan(rows["layer10"]["alpha change"]) and math.isnan(rows["new"]["alpha change"])
    assert both.layers == [*(record.layer for record in report.records), "new"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["/a/b/step_1/default", "/a/b/step_2/default"], ["step_1", "step_2"]),
        (["a.npz", "b.npz"], ["a.npz", "b.npz"]),
        (["x/a.npz", "y/a.npz"], ["x", "y"]),
        (["x/base/model.safetensors", "x/adapter/adapter_model.safetensors"], ["base", "adapter"]),
        (["base.safetensors", "adapter/adapter_model.safetensors"], ["base.safetensors", "adapter"]),
        (["x/1/a.npz", "x/1/b.npz", "x/2/a.npz"], ["1/a.npz", "1/b.npz", "2/a.npz"]),
        (["run1/100", "run2/200"], ["run1/100", "run2/200"]),
        (["a", "a"], ["1: a", "2: a"]),
        (["run/1", "run/1/2"], ["1", "2"]),
    ],
)
def test_labels_are_what_tells_names_apart(names, expected):
    assert labels(names) == expected


def test_arguments_that_do_not_fit_say_how_they_would(params):
    with pytest.raises(TypeError, match=r"fits=.*must be a sequence of functions"):
        tb_optax.report(params, fits=fits.median)
    with pytest.raises(ValueError, match="two of the name 'median'"):
        tb_optax.report(params, fits=(fits.median, functools.partial(fits.median, tail_fraction=0.1)))
    with pytest.raises(ValueError, match=r"min_scale=2 .*max_scale=1"):
        tb_optax.report(params, min_scale=2, max_scale=1)
    with pytest.raises(tb_optax.CheckpointError, match=r"no layers .*10 eigenvalues"):
        tb_optax.report({"head": params["head"]})
    with pytest.raises(ValueError, match="layer='none' is not in the report"):
        tb_optax.report({"layer1": params["layer1"]}).plot("none")
    with pytest.raises(ValueError, match="at least two"):
        side_by_side([])


def test_weights_are_the_live_ones_of_a_training(params):
    """A tree of jax arrays, as training has them, gives what its NumPy copy gives."""
    tx = optax.sgd(0.1)
    live = optax.apply_updates(params, tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params))[0])
    ours, copied = tb_optax.report(live), tb_optax.report(jax.device_get(live))
    assert [row["alpha"] for row in ours.rows()] == [row["alpha"] for row in copied.rows()]


def _with_condition(rows, columns, least):
    """Singular values from 1 down to a least one."""
    random = np.random.default_rng(0)
    left, _, right = np.linalg.svd(random.standard_normal((rows, columns)), full_matrices=False)
    return ((left * np.geomspace(1, least, rows)) @ right).astype(np.float32)


@pytest.mark.parametrize("least", [0.1, 4e-3, 1e-3, 1e-5, 0.0])
def test_spectra_of_gram_products_are_taken_where_they_are_exact(least, monkeypatch):
    """At 4e-3, eigenvalues fall to 1.6e-5 of the largest; below 1e-5, singular values are computed."""
    weight = _with_condition(64, 160, max(least, 1e-5)) if least else np.zeros((64, 160), np.float32)
    exact = tb_optax.spectra({"dense": {"kernel": weight}})["dense"]
    solvers = []
    solve = layer_spectra._solve_on_cpu
    monkeypatch.setattr(layer_spectra, "_solve_on_cpu", lambda *args: solvers.append(args[1].method) or solve(*args))
    (record,) = tb_optax.report({"dense": {"kernel": weight}}).records
    assert solvers == (["gram"] if least >= 4e-3 else ["gram", "auto"])
    np.testing.assert_allclose(record.eigenvalues, exact, rtol=0.05 if least >= 4e-3 else 0)
    np.testing.assert_allclose(record.eigenvalues[32:], exact[32:], rtol=1e-3)
    assert record.rank == (64 if least else 0)


def test_gram_products_are_taken_for_fits_that_tolerate_them_alone(monkeypatch):
    solvers = []
    solve = layer_spectra._solve_on_cpu
    monkeypatch.setattr(layer_spectra, "_solve_on_cpu", lambda *args: solvers.append(args[1]) or solve(*args))
    tree = {"dense": {"kernel": _with_condition(64, 160, 0.1)}}
    for fit in (fits.fix_finger, lambda eigenvalues: fits.median(eigenvalues)):
        tb_optax.report(tree, fits=(fits.median, fit) if fit is fits.fix_finger else (fit,))
    tb_optax.report(tree, solver=tb_optax.Exact(method="svd"))
    tb_optax.report({"square": {"kernel": _with_condition(64, 64, 0.1)}})
    assert "gram" not in [solver.method for solver in solvers] and len(solvers) == 4
