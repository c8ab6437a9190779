"""What the report's figures are given, and what is computed of it before it is drawn."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from made_up import LAYERS, finals, make_row, with_norms_within, with_spectra_within
from on_vision import other_runs, pooled_by_task

from examples.paper.report.alphas import layer_history, pooled
from examples.paper.report.layer_figures import in_first_interval, norms_within, over_seeds, shared_bins, two_layers
from examples.paper.report.result_figures import DECAYS, outline, synthetic_alphas
from examples.paper.report.spectrum_figures import density_of, logged_weight, moments, tail_share, when

SEEDS = (43, 37, 13, 51)


@pytest.fixture
def rows():
    """ResNet18 by CAL and TB with four seeds, VGG16 by CAL alone."""
    found = [make_row(70.0, method=method, seed=seed) for method in ("cal", "tb") for seed in SEEDS]
    return [*found, make_row(60.0, method="cal", model="vgg16", seed=SEEDS[0])]


def test_a_violin_is_of_all_seeds_and_of_the_layers_that_both_methods_balance(rows):
    rows[4] = make_row(70.0, method="tb", seed=43, first_and_last=True)
    rows[4]["history"]["alpha"][LAYERS[2]][-1] = None
    runs = other_runs(rows[:8]).runs.assign(label=["CAL"] * 4 + ["TB"] * 4)
    found = pooled(runs).pivot(index=["label", "seed"], columns="layer", values="alpha")[list(LAYERS[1:-1])]
    np.testing.assert_array_equal(found.loc["CAL"].loc[list(SEEDS)], finals(rows, "cal", LAYERS[1:-1]))
    assert found.loc["TB"].shape == (4, len(LAYERS[1:-1])) and found.isna().sum().sum() == 1


def test_networks_and_data_sets_that_cal_and_tb_have_both_been_run_on_are_grouped(rows):
    more = [make_row(70.0, method=method, dataset="digits", fit="fix_finger") for method in ("cal", "tb")]
    found = pooled_by_task([*rows, *more])
    assert list(found.task.unique()) == ["ResNet18, cifar10_jpeg", "ResNet18, digits"]  # VGG16 has no TB
    tb = found[(found.task == "ResNet18, cifar10_jpeg") & (found.label == "TB")]
    np.testing.assert_array_equal(np.sort(tb.alpha), np.sort(finals(rows, "tb", LAYERS[1:-1]).ravel()))
    assert pooled_by_task(rows[:4]).empty


def test_a_violin_holds_the_density_between_the_extremes():
    alphas = np.random.default_rng(0).normal(2.0, 0.3, 5000)
    places, density = outline(alphas)
    assert (places[0], places[-1]) == (alphas.min(), alphas.max())
    np.testing.assert_allclose(density, scipy.stats.norm.pdf(places, 2.0, 0.3), atol=0.15)
    assert not len(outline(np.full(3, 2.0))[0]) and not len(outline(np.array([]))[0])


@pytest.mark.parametrize(
    ("balanced", "shown"),
    [
        (("a", "layer1/0/conv2", "layer4/0/conv2", "b"), ("layer1/0/conv2", "layer4/0/conv2")),
        (("a", "layer1/0/conv2", "b", "c", "d"), ("layer1/0/conv2", "c")),
        (("a", "b", "c"), ("b",)),
        (("a", "b"), ("a", "b")),
        (("a",), ("a",)),
        ((), ()),
    ],
)
def test_the_papers_two_layers_are_shown_where_the_network_has_them(balanced, shown):
    assert two_layers(balanced) == shown


def test_a_layers_rates_and_alphas_are_of_every_seed(rows):
    chosen = rows[4:8]
    histories = [row["history"] for row in chosen]
    rates = np.array([history["learning_rate"] for history in histories])
    scales = np.array([history["scale"][LAYERS[2]] for history in histories])
    np.testing.assert_allclose(over_seeds(chosen, "learning_rate", LAYERS[2]), (rates * scales).T)
    histories[0]["alpha"][LAYERS[2]][0] = None
    alphas = over_seeds(chosen, "alpha", LAYERS[2]).to_numpy()
    assert alphas.shape == (24, 4) and np.isnan(alphas[0, 0]) and np.isfinite(alphas[:, 1:]).all()
    norms = layer_history(chosen[0], "gradient_norm", LAYERS[:2])
    assert list(norms.index) == list(range(1, 25)) and list(norms[LAYERS[1]]) == histories[0]["gradient_norm"][LAYERS[1]]


def test_norms_within_epochs_are_at_their_iterations_and_of_the_layers():
    row = with_norms_within(make_row(70.0), steps=70, epochs=2)
    own = row["history"]["gradient_norms_within"]["norms"]
    own[LAYERS[1]][1][2] = None
    found = norms_within(row, LAYERS[1:3])
    expected = {layer: np.array(own[layer], float).ravel() for layer in LAYERS[1:3]}
    pd.testing.assert_frame_equal(found, pd.DataFrame(expected, [0, 30, 60, 70, 100, 130]))


def test_histograms_are_of_iterations_of_the_first_epoch_and_hold_all_layers():
    row = with_norms_within(make_row(70.0), steps=390, epochs=2)
    chosen = in_first_interval(row, LAYERS[1:-1])
    pd.testing.assert_frame_equal(chosen, norms_within(row, LAYERS[1:-1]).loc[[0, 120, 240, 360]])
    bins = shared_bins(np.array([*chosen.to_numpy().ravel(), np.nan, 0.0]))
    assert np.histogram(chosen, bins)[0].sum() == chosen.size
    assert list(in_first_interval(with_norms_within(make_row(70.0), steps=11), LAYERS).index) == [0]
    assert len(shared_bins(np.array([np.nan]))) == len(bins)


def test_the_fits_find_the_exponent_of_synthetic_spectra():
    for alphas in synthetic_alphas().values():
        np.testing.assert_allclose(alphas, 1 + 1 / DECAYS, rtol=0.01)


def test_densities_hold_all_eigenvalues_and_the_law_its_share():
    spectrum = make_row(70.0)["spectra"]["layer1/0/conv1"]
    counts, edges, density = density_of(spectrum)
    assert (density * np.diff(edges)).sum() == pytest.approx(1)
    assert tail_share(counts, edges, spectrum["threshold"]) == pytest.approx(0.5, abs=0.03)
    assert tail_share(counts, edges, edges[0]) == pytest.approx(1)


def test_a_weights_spectra_are_those_of_the_first_epoch_one_later_and_the_last():
    row, short = (with_spectra_within(make_row(70.0), steps=70, **of) for of in ({}, {"iterations": (0, 70)}))
    spectra = moments(row)
    assert list(spectra) == [0, 17, 35, 52, 70, 350, 700] and list(moments(short)) == [0, 70]
    assert all(spectrum["iteration"] == iteration for iteration, spectrum in spectra.items())
    told = ["initial", "iteration 17", "after epoch 1", "after epoch 5"]
    assert [when(each, 70, "epoch") for each in (0, 17, 70, 350)] == told
    other = with_spectra_within(make_row(70.0))
    other["history"]["spectra_within"]["layer"] = LAYERS[1]
    assert logged_weight([row, short]) == LAYERS[2]
    assert logged_weight([row, make_row(70.0)]) is logged_weight([row, other]) is None
