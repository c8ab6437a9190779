"""What the report's figures are given, and what is computed of it before it is drawn."""

import numpy as np
import pytest
import scipy.stats
from made_up import LAYERS, finals, make_row, with_norms_within, with_spectra_within
from on_vision import pooled_by_task

from examples.paper.report.alphas import pooled
from examples.paper.report.few_layers import over_seeds, two_layers
from examples.paper.report.figures import DECAYS, synthetic_alphas
from examples.paper.report.gradient_figures import extremes, in_first_interval, norms_within, shared_bins
from examples.paper.report.layer_figures import density_of, tail_share
from examples.paper.report.violins import center, outline
from examples.paper.report.weight_figure import moments, tells_spectra, when

SEEDS = (43, 37, 13, 51)


@pytest.fixture
def rows():
    """ResNet18 by CAL and TB with four seeds, VGG16 by CAL alone."""
    found = [make_row(70.0, method=method, seed=seed) for method in ("cal", "tb") for seed in SEEDS]
    return [*found, make_row(60.0, method="cal", model="vgg16", seed=SEEDS[0])]


def test_a_violin_is_of_all_seeds_and_of_the_layers_that_both_methods_balance(rows):
    both = {method: [row for row in rows if row["settings"]["method"] == method] for method in ("cal", "tb")}
    both["tb"][0] = make_row(70.0, method="tb", seed=43, first_and_last=True)
    both["tb"][0]["history"]["alpha"][LAYERS[2]][-1] = None
    found = pooled({method: of[:4] for method, of in both.items()})
    assert found["cal"].seeds == found["tb"].seeds == 4
    np.testing.assert_array_equal(found["cal"].alphas, finals(rows, "cal", LAYERS[1:-1]).ravel())
    assert len(found["tb"].alphas) == 4 * len(LAYERS[1:-1]) - 1 and np.isfinite(found["tb"].alphas).all()


def test_networks_and_data_sets_that_cal_and_tb_have_both_been_run_on_are_grouped(rows):
    more = [make_row(70.0, method=method, dataset="digits", fit="fix_finger") for method in ("cal", "tb")]
    found = pooled_by_task([*rows, *more])
    assert list(found) == ["ResNet18, cifar10_jpeg", "ResNet18, digits"]  # VGG16 has no TB
    np.testing.assert_array_equal(found["ResNet18, cifar10_jpeg"]["TB"].alphas, finals(rows, "tb", LAYERS[1:-1]).ravel())
    assert found["ResNet18, digits"]["CAL"].seeds == 1


def test_a_violin_holds_the_density_between_the_extremes():
    alphas = np.random.default_rng(0).normal(2.0, 0.3, 5000)
    places, density = outline(alphas)
    assert (places[0], places[-1]) == (alphas.min(), alphas.max())
    np.testing.assert_allclose(density, scipy.stats.norm.pdf(places, 2.0, 0.3), atol=0.15)
    assert center(alphas) == (np.median(alphas), alphas.mean())
    assert outline(np.full(3, 2.0)) is None and outline(np.array([])) is None


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


def test_the_two_layers_rates_and_alphas_are_of_every_seed(rows):
    chosen = [row for row in rows if row["settings"]["method"] == "tb"]
    histories = [row["history"] for row in chosen]
    rates = np.array([history["learning_rate"] for history in histories])
    scales = np.array([history["scale"][LAYERS[2]] for history in histories])
    np.testing.assert_allclose(over_seeds(chosen, "learning rate", LAYERS[2]), rates * scales)
    histories[0]["alpha"][LAYERS[2]][0] = None
    alphas = over_seeds(chosen, "PL_Alpha_Hill", LAYERS[2])
    assert alphas.shape == (4, 24) and np.isnan(alphas[0, 0]) and np.isfinite(alphas[1:]).all()


def test_norms_within_epochs_are_at_their_iterations_and_of_the_layers():
    row = with_norms_within(make_row(70.0), steps=70, epochs=2)
    own = row["history"]["gradient_norms_within"]["norms"]
    own[LAYERS[1]][1][2] = None
    found = norms_within(row, LAYERS[1:3])
    assert found.iterations.tolist() == [0, 30, 60, 70, 100, 130]
    expected = np.array([[value for epoch in own[layer] for value in epoch] for layer in LAYERS[1:3]], float)
    np.testing.assert_array_equal(found.norms, expected.T)
    least, mean, largest = extremes(found.norms)
    np.testing.assert_array_equal(least, np.nanmin(expected, axis=0))
    np.testing.assert_allclose(mean, np.nanmean(expected, axis=0))
    np.testing.assert_array_equal(largest, np.nanmax(expected, axis=0))
    assert np.isnan(extremes(np.full((1, 2), np.nan)).mean).all()


def test_histograms_are_of_iterations_of_the_first_epoch_and_hold_all_layers():
    found = norms_within(with_norms_within(make_row(70.0), steps=390, epochs=2), LAYERS[1:-1])
    chosen = in_first_interval(found, 4)
    assert list(chosen) == [0, 120, 240, 360]
    np.testing.assert_array_equal(chosen[120], found.norms[4])
    bins = shared_bins([*chosen.values(), np.array([np.nan, 0.0])])
    assert sum(np.histogram(norms, bins)[0].sum() for norms in chosen.values()) == 4 * len(LAYERS[1:-1])
    assert list(in_first_interval(norms_within(with_norms_within(make_row(70.0), steps=11), LAYERS), 4)) == [0]


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
    row = with_spectra_within(make_row(70.0), steps=70)
    layer, spectra, steps = moments(row)
    assert (layer, steps) == (LAYERS[2], 70) and list(spectra) == [0, 17, 35, 52, 70, 350, 700]
    assert all(spectrum["iteration"] == iteration for iteration, spectrum in spectra.items())
    assert [when(each, steps, "epoch") for each in (0, 17, 70, 350)] == [
        "initial",
        "iteration 17",
        "after epoch 1",
        "after epoch 5",
    ]
    short = with_spectra_within(make_row(70.0), iterations=(0, 70))
    assert list(moments(short).spectra) == [0, 70]
    assert tells_spectra([row, short]) and not tells_spectra([row, make_row(70.0)])
    other = with_spectra_within(make_row(70.0))
    other["history"]["spectra_within"]["layer"] = LAYERS[1]
    assert not tells_spectra([row, other])
