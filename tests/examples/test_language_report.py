"""Grids and reports of language models: the paper's, and learning rates that are chosen on validation."""

import dataclasses

import numpy as np
import pytest
from made_up import PROVENANCE, table_cells, write_rows

from examples.paper.grids import PAPER_SEEDS, load_grid, ready_grids
from examples.paper.language.domain import LANGUAGE
from examples.paper.language.settings import Settings
from examples.paper.report.markdown import Report, report
from examples.paper.report.published import read_published
from examples.paper.report.sections import comparisons, sections_of
from examples.paper.results import read_results

LAYERS = ("layers/attention/q[0]", "layers/attention/q[1]", "layers/feed_forward/out[0]", "layers/feed_forward/out[1]")


def make_row(perplexity, valid, **changes):
    """A finished run of two evaluations, of which the first was the better one."""
    settings = Settings(updates=200, **changes).resolved()
    random = np.random.default_rng([settings.seed, len(settings.method)])
    of_layers = lambda low, high: {layer: random.uniform(low, high, 2).tolist() for layer in LAYERS}
    history = {"valid_loss": [valid, valid + 0.3], "valid_perplexity": [np.exp(valid), np.exp(valid + 0.3)]}
    others = {name: [1.0, 1.0] for name in ("train_loss", "tokens_per_second", "learning_rate")}
    over_layers = dict(alpha=of_layers(2, 4), scale=of_layers(0.5, 1.5), gradient_norm=of_layers(0, 1))
    spectrum = dict(log10_edges=[-2.0, 1.0], counts=[1] * 50, alpha=2.5, threshold=1.0, eigenvalues=50)
    return {
        "settings": {name: value for name, value in vars(settings).items() if name not in LANGUAGE.settings.places()},
        **dict(train_loss=1.0, valid_loss=valid + 0.3, valid_perplexity=np.exp(valid + 0.3), seconds=60.0),
        "history": history | others | over_layers,
        **dict(test_loss=np.log(perplexity), test_perplexity=perplexity),
        "spectra": dict.fromkeys(LAYERS, spectrum),
        "provenance": PROVENANCE,
    }


@pytest.fixture(scope="module")
def rows():
    """Adam and TB at two rates. What is best on the test text is not what is best on validation; one rate has more seeds."""
    made = []
    for seed in (1, 2, 3, 4):
        noise = 0.1 * seed**2
        made.append(make_row(50 + noise, valid=4.0, method="adam", learning_rate=0.002, seed=seed))
        made.append(make_row(44 + 2 * noise, valid=3.9, method="tb+adam", learning_rate=0.002, seed=seed))
        if seed < 3:
            made.append(make_row(40 + noise, valid=4.1, method="adam", learning_rate=0.001, seed=seed))
            made.append(make_row(60 + noise, valid=4.05, method="tb+adam", learning_rate=0.001, seed=seed))
    return made


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    path = tmp_path_factory.mktemp("grid") / "two.toml"
    path.write_text(
        'title = "Two"\nseeds = [1, 2, 3, 4]\n'
        'runs = [{ method = ["adam", "tb+adam"], learning_rate = [1e-3, 2e-3], updates = 200 }]'
    )
    return str(path)


def section_of(rows, grid):
    ((section,), others) = sections_of(LANGUAGE, [load_grid(LANGUAGE, grid)], rows)
    assert not others
    return section


def test_the_learning_rates_that_were_best_on_validation_are_compared_on_the_test_text(rows, grid):
    (comparison,) = comparisons(section_of(rows, grid)).itertuples()
    assert (comparison.label, comparison.against, comparison.seeds) == ("TB + Adam", "Adam", 4)
    assert comparison.difference == pytest.approx(np.mean([-6 + 0.1 * seed**2 for seed in (1, 2, 3, 4)]))
    assert comparison.verdict == "better"  # the lower one


def test_a_rate_is_chosen_over_the_seeds_that_all_rates_have(rows, grid):
    """Seeds 3 and 4, which one rate has alone, would turn the choice; a run that diverged is the worst."""
    turning = {("adam", 0.002, seed) for seed in (3, 4)}
    key = lambda row: tuple(row["settings"][name] for name in ("method", "learning_rate", "seed"))
    changed = lambda row, values: {**row, "history": {**row["history"], "valid_loss": values}}
    harder = [changed(row, [9.0, 9.3]) if key(row) in turning else row for row in rows]
    diverged = [changed(rows[0], [None, float("nan")]), *rows[1:]]
    for made, rates in ((harder, [0.002, 0.002]), (diverged, [0.001, 0.002])):
        entries = section_of(made, grid).entries
        assert [settings["learning_rate"] for settings in entries.settings[entries.compared]] == rates


def test_the_report_says_what_was_chosen_by_what(rows, grid, tmp_path):
    path = write_rows(tmp_path / "results.jsonl", rows)
    text = report(LANGUAGE, Report((path,), (grid,), tmp_path / "report")).read_text()
    losses = {("Adam", "0.001"): "4.100", ("Adam", "0.002"): "**4.000**"}
    losses |= {("TB + Adam", "0.001"): "4.050", ("TB + Adam", "0.002"): "**3.900**"}
    for (method, rate), loss in losses.items():
        assert table_cells(text, "GPT tiny", rate, method)[1] == loss
    assert "valid loss is the least of a run" in text and "the best on validation" in text and "lower is better" in text
    assert "TB + Adam is better" in text and "accuracy" not in text and "epoch" not in text
    assert len(read_results(LANGUAGE, [path])) == 12


def test_ready_grids_are_the_papers_and_our_own():
    assert set(ready_grids(LANGUAGE)) == {"table7b", "kjv", "text", "heirs"}
    grid = load_grid(LANGUAGE, "table7b")
    assert grid.seeds == PAPER_SEEDS
    for model in ("tensorized", "tensorized_leaking"):
        settings = [each for each in grid.settings if each.model == model]
        rates = {1.25e-4, 2.5e-4, 5e-4, 1e-3, 1.25e-3, 2.5e-3, 5e-3}
        assert {each.learning_rate for each in settings if each.method == "adam"} == rates
        tb = [each for each in settings if each.method == "tb+adam"]
        assert len(settings) == 7 + len(tb) == 7 + 7 * 3 * 2 * 2
        assert {each.update_interval for each in tb} == {10, 25, 50} and {each.learning_rate for each in tb} == rates
        assert {(each.min_scale, each.max_scale) for each in tb} == {(0.5, 1.5), (1.0, 2.0)}
        assert {len(range(int(256 * (1 - each.tail_fraction)), 256)) for each in tb} == {128, 205}  # n/2 and n/1.25
    common = dataclasses.replace(grid.settings[0], method="adam", model="tensorized", learning_rate=1.0)
    assert (common.batch_size, common.window, common.updates, common.dropout) == (120, 32, 40_000, 0.3)
    chosen = {each.learning_rate for each in load_grid(LANGUAGE, "kjv").settings}
    assert len(chosen) >= 4


def test_what_is_published_is_of_the_network_that_sees_ahead_and_says_so():
    published = read_published(LANGUAGE)
    assert sorted(each.mean for each in published) == [47.30, 49.94]
    for each in published:
        assert "sees the tokens it is to predict" in each.source
        matched = [settings for settings in load_grid(LANGUAGE, "table7b").settings if each.is_of(vars(settings))]
        assert matched and {settings.model for settings in matched} == {"tensorized_leaking"}
