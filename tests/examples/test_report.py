"""The report says what the results are, of made-up runs."""

import functools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from flax import nnx
from made_up import LAYERS, finals, make_row, table_cells, with_norms_within, with_spectra_within, write_rows
from matplotlib.figure import Figure
from on_vision import load_grid, other_runs, read_published, ready_grids, report, sections_of

import tb_optax
from examples.paper.__main__ import main
from examples.paper.errors import UserError
from examples.paper.report.alphas import spreads
from examples.paper.report.markdown import Report
from examples.paper.report.sections import comparisons
from examples.paper.results import setting_key
from examples.paper.vision.models import create_model

CAL = {43: 73.46, 37: 75.90, 13: 74.64, 51: 75.41}
TB = {43: 75.12, 37: 73.54, 13: 75.23, 51: 73.28}
GRID = """
title = "A small grid"
seeds = [43, 37, 13, 51, 71]
runs = [{ %s, method = ["cal", "tb", "snr", "tb+snr"], model = ["resnet18", "vgg16"] }]
"""
SETTING = 'dataset = "cifar10_jpeg", train_split = "train[:10000]", width = 0.25, epochs = 24'
TASK = "ResNet18, cifar10_jpeg"


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    path = tmp_path_factory.mktemp("grids") / "small.toml"
    path.write_text(GRID % SETTING)
    return str(path)


@pytest.fixture(scope="module")
def rows():
    """ResNet18 by CAL and TB with four seeds of five, VGG16 by CAL with two others."""
    found = [
        make_row(value, method=name, seed=seed) for name, of in (("cal", CAL), ("tb", TB)) for seed, value in of.items()
    ]
    return [*found, *(make_row(value, method="cal", model="vgg16", seed=seed) for seed, value in ((37, 60.0), (71, 62.0)))]


@pytest.fixture(scope="module")
def written(rows, grid, tmp_path_factory):
    """A report's text, and the folder it is in."""
    folder = tmp_path_factory.mktemp("results")
    write_rows(folder / "all.jsonl", rows)
    path = report(Report(results=(folder,), grids=(grid,)))
    return path.read_text(), path.parent


@pytest.fixture
def text_of(monkeypatch, tmp_path):
    """The text of a report on rows, whose figures are empty files; with all ready grids, or those given."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: Path(path).touch())

    def of(rows, *grids):
        return report(Report((write_rows(tmp_path / "r.jsonl", rows),), grids, tmp_path / "report")).read_text()

    return of


def others(text):
    return text[text.index("## Other runs") : text.index("## Figure 10")]


def compared(rows, grid=None):
    """The comparisons in a grid, or where there is none."""
    section = other_runs(rows) if grid is None else sections_of([load_grid(grid)], rows)[0][0]
    return comparisons(section).set_index(["task", "label", "against"])


def test_settings_have_their_mean_deviation_and_published_figure_or_say_what_is_missing(written):
    text, _ = written
    assert table_cells(text, "ResNet18", "CAL") == ["4/5", "74.85 ± 1.06", "74.85 ± 1.06 [1]", "+0.00 (p 0.997)"]
    assert table_cells(text, "ResNet18", "TB") == ["4/5", "74.29 ± 1.03", "74.29 ± 1.03 [1]", "+0.00 (p 0.997)"]
    assert "[1] the authors' code, PyTorch 2.13, CPU" in text
    assert table_cells(text, "VGG16", "CAL") == ["2/5", "61.00 ± 1.41", "—", "—"]
    assert table_cells(text, "ResNet18", "TB + SNR") == ["0/5", "not run", "—", "—"]


def test_a_setting_is_tested_against_its_published_figure(grid, text_of):
    ours, theirs = {43: 71.0, 37: 72.5, 13: 73.0}, list(CAL.values())
    rows = [make_row(value, method="cal", seed=seed) for seed, value in ours.items()]
    text = text_of([*rows, make_row(75.29, method="tb", seed=43)], grid)
    p = scipy.stats.ttest_ind(list(ours.values()), theirs, equal_var=False).pvalue  # pyright: ignore[reportAttributeAccessIssue]
    assert 0.005 < p < 0.1
    difference, told = re.fullmatch(r"(\S+) \(p (\S+)\)", table_cells(text, "ResNet18", "CAL")[3]).groups()
    assert float(difference) == pytest.approx(72.1667 - 74.85, abs=0.006)
    assert float(told) == pytest.approx(p, rel=0.05)  # The published mean and deviation are rounded.
    assert table_cells(text, "ResNet18", "TB")[3] == "+1.00"  # One seed has no deviation.


def test_comparisons_are_told_with_their_number(written):
    text, _ = written
    seeds, difference, interval, p, detectable, verdict = table_cells(text, TASK, "TB against CAL")
    assert (seeds, difference, verdict) == ("4", "-0.56", "not told apart")
    assert re.fullmatch(r"-\d\.\d\d to \+\d\.\d\d", interval) and 0.05 < float(p) < 1 and float(detectable) > 2
    assert "Paired by seed, 1 comparison, uncorrected" in text and "There is 1 paired comparison below" in text


def test_the_spread_of_alphas_is_over_the_balanced_layers(written, rows):
    text, _ = written
    text = text[text.index("How far apart") : text.index("Final alphas beside")]

    def minus(layers):
        cal, tb = (np.std(finals(rows, method, layers), axis=1) for method in ("cal", "tb"))
        low, high = scipy.stats.ttest_1samp(tb - cal, 0).confidence_interval()
        return f"{(tb - cal).mean():+.3f} ({low:+.3f} to {high:+.3f})"

    balanced = finals(rows, "tb", LAYERS[1:-1])
    extent, deviation = np.ptp(balanced, axis=1).mean(), np.std(balanced, axis=1).mean()
    # The layers have the more eigenvalues the later they come.
    own = ["4", f"{extent:.3f}", f"{deviation:.3f}", minus(LAYERS[1:-1]), minus(LAYERS[3:-1])]
    assert table_cells(text, TASK, "TB") == own
    assert table_cells(text, TASK, "CAL")[-2:] == ["—", "—"]


def test_final_alphas_are_held_against_published_ones(written, rows):
    text, _ = written
    (published,) = [each.alphas for each in read_published() if each.alphas and each.settings["method"] == "tb"]
    ours, theirs = finals(rows, "tb", LAYERS).mean(axis=0), np.array([published[layer] for layer in LAYERS])
    differences = ours - theirs
    largest = np.abs(differences).argmax()
    assert table_cells(text[text.index("Final alphas beside") :], TASK, "TB") == [
        str(len(LAYERS)),
        f"{differences.mean():+.3f}",
        f"{np.abs(differences).mean():.3f}",
        f"{differences[largest]:+.2f} ({LAYERS[largest]})",
        f"{np.ptp(ours[1:-1]):.2f}",
        f"{np.ptp(theirs[1:-1]):.2f}",
    ]


def test_alphas_are_published_for_every_layer_of_that_network():
    create = functools.partial(create_model, "resnet18", width=0.25, num_classes=10, image_shape=(32, 32, 3))
    network = nnx.eval_shape(lambda: create(rngs=nnx.Rngs(0)))
    layers = [layer.name for layer in tb_optax.find_layers(nnx.state(network, nnx.Param), min_eigenvalues=2)]
    for published in read_published():
        assert sorted(published.alphas) == sorted(layers) or not published.alphas


def test_every_figure_shown_is_there_with_a_text_in_its_place(written):
    text, folder = written
    shown = {name: says for says, name in re.findall(r"!\[(.+)\]\((.+)\)", text)}
    of_layers = ("alphas", "layers", "deviations", "pair", "training", "gradients", "spectra")
    names = ["small-accuracy.png", *(f"small-1-{name}.png" for name in of_layers), "figure10.png", "figure12.png"]
    assert list(shown) == names and {path.name for path in folder.iterdir()} == {"README.md", *names}
    for name, says in shown.items():
        assert len(says) > 20
        data = (folder / name).read_bytes()
        assert data.startswith(b"\x89PNG\r\n\x1a\n") and len(data) < 300_000
    says = shown["small-1-pair.png"]
    assert f"{LAYERS[2]} and {LAYERS[3]} over the epochs" in says and "this network has not the paper's two" in says


def test_provenance_is_told_once_for_runs_alike(written):
    text, _ = written
    assert "10 runs, 1.0 h of training in all." in text
    assert "- 10 runs, 1.0 h, 2026-02-03: A processor, 2 cores; commit 0123456789; python 3.11.2, jax 0.10.2" in text


def test_pairs_are_of_one_network_and_of_seeds_that_both_have(rows, grid):
    more = [make_row(70.0 + seed / 10, method="tb", model="vgg16", seed=seed) for seed in (37, 13, 71)]
    found = compared([*rows, *more], grid)
    vgg16 = found.loc["VGG16, cifar10_jpeg", "TB", "CAL"]
    assert vgg16.seeds == 2 and vgg16.difference == pytest.approx((73.7 + 77.1 - 60 - 62) / 2)
    assert found.difference[TASK, "TB", "CAL"] == pytest.approx(-0.56)


def test_one_common_seed_is_no_comparison(grid, text_of):
    text = text_of(
        [make_row(70.0, method=method, seed=seed) for method, seed in (("cal", 43), ("cal", 37), ("snr", 43))], grid
    )
    assert table_cells(text, TASK, "SNR against CAL") == ["1", *["—"] * 4, "needs 2 seeds that both have"]
    assert table_cells(text, "ResNet18", "SNR")[:2] == ["1/5", "70.00"]


def test_tb_with_a_method_is_held_against_cal_and_that_method(grid):
    methods = ("cal", "snr", "tb", "tb+snr")
    rows = [make_row(70.0 + seed % 3, method=method, seed=seed) for method in methods for seed in (43, 37)]
    pairs = [("TB", "CAL"), ("SNR", "CAL"), ("TB + SNR", "CAL"), ("TB + SNR", "SNR")]
    assert list(compared(rows, grid).index) == [(TASK, *pair) for pair in pairs]


def test_tb_is_held_against_its_controls_of_the_same_setting():
    """Not those of another range; and what is published of TB is not its controls'."""
    ranges = ((0.5, 1.5), (0.6, 1.4))
    controls = ("none", "placebo", "mean")
    found = [
        make_row(70.0, method="tb", control=control, min_scale=low, max_scale=high)
        for low, high in ranges
        for control in controls
    ]
    tb = {f"TB, scales {low} to {high}" for low, high in ranges}
    pairs = {(label, against) for _, label, against in compared([*found, make_row(70.0, method="cal")]).index}
    assert {pair for pair in pairs if pair[0] in tb} == {
        (label, against) for label in tb for against in (*(f"TB, {name}, {label[4:]}" for name in controls[1:]), "CAL")
    }
    balanced, control = (make_row(70.0, method="tb", control=control)["settings"] for control in controls[:2])
    (published,) = [each for each in read_published() if each.is_of(balanced)]
    assert not published.is_of(control)


def test_cal_of_the_same_learning_rate_is_held_against_where_there_is_one():
    rates = {"cal": (0.05, 0.1), "tb": (0.05, 0.1), "lars": (28.0,)}
    rows = [make_row(70.0, method=method, learning_rate=rate) for method, of in rates.items() for rate in of]
    found = {label: against for _, label, against in compared(rows).index}
    assert all(found[f"TB, learning rate {rate}"] == f"CAL, learning rate {rate}" for rate in (0.05, 0.1))
    assert found["LARS"].startswith("CAL")


def test_another_learning_rates_cal_does_not_stand_in_for_one_not_run():
    full = dict(dataset="cifar100", train_split="train", width=1.0, epochs=200)
    rows = [make_row(70.0, **full, method=method, learning_rate=rate) for method, rate in (("cal", 0.05), ("tb", 0.1))]
    ((table3,), left) = sections_of([load_grid("table3")], rows)
    assert len(table3.runs) == 2 and not left and comparisons(table3).empty


@pytest.mark.parametrize("without", ["layers that one balances alone", "a layer without alpha", "layers larger than others"])
def test_spreads_are_over_the_layers_that_all_have(without):
    rows = [make_row(70.0, method=method, seed=seed) for method in ("cal", "tb") for seed in (1, 2)]
    layers = LAYERS[1:-1]
    if without == "layers that one balances alone":
        rows[2:] = [make_row(70.0, method="tb", seed=seed, first_and_last=True) for seed in (1, 2)]
    elif without == "a layer without alpha":
        layers = LAYERS[2:-1]
        for row in rows:
            row["history"]["alpha"][LAYERS[1]][-1] = None
    else:
        for row in rows:
            row["spectra"] = {layer: {**spectrum, "eigenvalues": 72} for layer, spectrum in row["spectra"].items()}
    found = spreads(other_runs(rows)).set_index("method")
    for label, method in (("CAL", "cal"), ("TB", "tb")):
        assert found.deviation[label] == pytest.approx(np.std(finals(rows, method, layers), axis=1).mean())
    assert found.minus["TB"].seeds == 2 and found.minus["CAL"] is None
    assert (found["in larger layers"]["TB"] is None) == (without == "layers larger than others")


@pytest.mark.slow
def test_only_runs_that_tell_of_the_steps_within_epochs_have_figures_of_them(grid, tmp_path):
    rows = [with_spectra_within(with_norms_within(make_row(70.0, method=method))) for method in ("cal", "tb")]
    path = write_rows(tmp_path / "r.jsonl", rows)
    text = report(Report(results=(path,), grids=(grid,), out=tmp_path / "report")).read_text()
    within = ("norms", "histograms", "weight")
    for name in within:
        assert f"(small-1-{name}.png)" in text and (tmp_path / "report" / f"small-1-{name}.png").exists()
    del rows[0]["history"]["gradient_norms_within"], rows[1]["history"]["spectra_within"]
    text = report(Report(results=(write_rows(path, rows),), grids=(grid,), out=tmp_path / "older")).read_text()
    assert "small-1-training.png" in text and not any(f"-{name}.png" in text for name in within)


def test_a_run_in_two_files_counts_once_and_the_last_one_holds(rows, grid, tmp_path):
    first, second = write_rows(tmp_path / "a.jsonl", rows[:2]), tmp_path / "b.jsonl"
    write_rows(second, [make_row(80.0, method="cal", seed=37)])
    text = report(Report(results=(first, second), grids=(grid,), out=tmp_path / "report")).read_text()
    assert table_cells(text, "ResNet18", "CAL")[:2] == ["2/5", f"{(73.46 + 80) / 2:.2f} ± {(80 - 73.46) / 2**0.5:.2f}"]


def test_every_figure_of_the_papers_tables_is_of_one_run_of_its_tables_grid():
    tables = {f"the paper, Table {number}": load_grid(f"table{number}").settings for number in range(1, 7)}
    settings = {source: [json.loads(setting_key(each)) for each in grid] for source, grid in tables.items()}
    figures = [figure for figure in read_published() if figure.source in tables]
    assert len(figures) == 122 and all(figure.seeds == 5 for figure in figures)
    for figure in figures:
        assert sum(figure.is_of(each) for each in settings[figure.source]) == 1, figure


def test_without_results_every_grid_is_not_run_and_has_its_published_figures(tmp_path):
    path = report(Report(results=(tmp_path,)))
    text = path.read_text()
    assert path == tmp_path / "report" / "README.md"
    for name in ready_grids():
        assert f"(`{name}`): {len(load_grid(name).runs())} runs" in text
    assert {file.name for file in path.parent.iterdir()} == {"README.md", "figure10.png"}
    assert "## Other runs" not in text
    start = text.index("## Table 1, Figure 3: CAL, SNR, TB and TB + SNR: published, not run here")
    table = text[start : text.index("## ", start + 3)]
    assert "not run" in table and "78.97 ± 0.29 [1]" in table and "[1] the paper, Table 1" in table
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    assert len(rows) == 48 and all("±" in row and "| 0/5" in row for row in rows)


@pytest.mark.slow
def test_runs_of_no_grid_have_a_section_and_with_grids_given_a_line(grid, text_of):
    rows = [make_row(50.0, method="cal", epochs=3)]
    assert table_cells(others(text_of(rows)), "ResNet18", "CAL") == ["1/1", "50.00", "—", "—"]
    assert "1 more run is in none of these grids." in text_of(rows, grid)


@pytest.mark.slow
def test_a_diverged_run_is_reported(tmp_path):
    rows = [make_row(10.0, method=method, epochs=2) for method in ("cal", "tb")]
    rows[1]["history"]["alpha"] = {layer: [3.0, None] for layer in LAYERS}
    rows[1]["history"]["gradient_norm"] = {layer: [None, None] for layer in LAYERS}
    rows = [with_norms_within(row, steps=30, epochs=1) for row in rows]
    rows[1]["history"]["gradient_norms_within"]["norms"] = {layer: [[None]] for layer in LAYERS}
    for spectrum in rows[1]["spectra"].values():
        spectrum.update(alpha=float("nan"), threshold=float("nan"))
    text = report(Report(results=(write_rows(tmp_path / "r.jsonl", rows),))).read_text()
    assert table_cells(others(text), "ResNet18", "TB") == ["1/1", "10.00", "—", "—"]


def test_settings_are_in_words(text_of):
    fits = ("median", "goodness_of_fit")
    rows = [make_row(60.0, method="tb", epochs=2, fit=fit, min_scale=0.6, max_scale=1.4) for fit in fits]
    text = others(text_of(rows))
    assert table_cells(text, "ResNet18", "goodness of fit", "TB")
    assert "train split train[:10000]" in text and "scales 0.6 to 1.4" in text


def test_published_figures_are_of_the_settings_they_name(tmp_path):
    cal, tb = (each for each in read_published() if each.alphas)
    settings = make_row(0.0, method="tb")["settings"]
    assert tb.is_of(settings) and not cal.is_of(settings)
    assert not tb.is_of({**settings, "epochs": 25}) and not tb.is_of({**settings, "fit": "fix_finger"})
    for line in ('{"source": "x"}', '{"source": "x", "settings": {"lr": 1}, "mean": 1, "deviation": 1, "seeds": 1}', "x"):
        (tmp_path / "p.jsonl").write_text(line + "\n")
        with pytest.raises(UserError, match=r"p\.jsonl, line 1"):
            read_published(tmp_path / "p.jsonl")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["/nowhere"], "/nowhere: no such file of results"),
        ([".", "--grids", "table7"], "table7 is no file, and none of the ready grids"),
        ([".", "--grids", "table1", "table1"], "two are called table1"),
        ([".", "--out", "/proc/report"], "/proc/report"),
    ],
)
def test_mistakes_get_one_line(monkeypatch, capsys, tmp_path, flags, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:
        main(["vision", "report", *flags])
    (line,) = capsys.readouterr().out.strip().splitlines()
    assert exit.value.code == 2
    assert line.startswith("error: ") and message in line
