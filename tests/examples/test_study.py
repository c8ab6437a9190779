"""The report on the study: chosen learning rates, Holm's correction, and what its tables say."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from examples.paper.__main__ import main
from examples.paper.grids import load_grid
from examples.paper.language.domain import LANGUAGE
from examples.paper.report.statistics import paired
from examples.paper.report.study import (
    PARTS,
    chosen_rates,
    compare,
    holm_corrected,
    method_label,
    results_at_chosen_rates,
    study_runs,
)
from examples.paper.vision.domain import VISION

GRID = LANGUAGE.folder / "grids" / "study" / "gpt_300.toml"
BEST = {"AdamW": 0.003, "mean": 0.002, "shape": 0.00133, "LLR (1, 3)": 0.002}
TRUE = {"AdamW": 1.9, "mean": 1.9, "shape": 1.85, "LLR (1, 3)": 1.86}


def rows():
    """Runs of four methods: validation is least at the best rate, and results scatter by seed alike in all methods."""
    random = np.random.default_rng(0)
    by_seed = random.normal(0, 0.02, 11)
    found = []
    for settings in load_grid(LANGUAGE, str(GRID)).settings:
        label = method_label(settings)
        if label not in BEST:
            continue
        is_best = np.isclose(settings.learning_rate, BEST[label])
        for seed in range(1, 11) if is_best else (1, 2):
            loss = TRUE[label] + by_seed[seed] + random.normal(0, 0.005) + 0.05 * (not is_best)
            setting = json.loads(dataclasses.replace(settings, seed=seed).key())
            history = {"valid_loss": [loss + 0.4, loss + 0.01]}
            found.append({"settings": setting, "history": history, "test_loss": loss, "seconds": 36.0})
    return found


def test_holms_correction_is_that_of_a_worked_example():
    # 0.01 * 4, 0.02 * 3, then 0.03 * 2 and 0.04 * 1, which may not fall below the one before.
    np.testing.assert_allclose(holm_corrected(np.array([0.04, 0.01, 0.03, 0.02])), [0.06, 0.04, 0.06, 0.06])
    np.testing.assert_allclose(holm_corrected(np.array([0.9, 0.8])), [1.0, 1.0])


def test_every_grid_of_the_study_has_the_methods_of_a_group_at_as_many_rates():
    paths = sorted(GRID.parent.glob("*.toml"))
    assert len(paths) == 4
    for path in paths:
        rates = {}
        for settings in load_grid(LANGUAGE, str(path)).settings:
            rates.setdefault(method_label(settings), []).append(settings.learning_rate)
        for group in (set(BEST), set(rates) - set(BEST)):
            assert len(group) == 4 and len({len(rates[method]) for method in group}) == 1
        assert all(len(each) in (4, 5) and each == sorted(each) for each in rates.values())


def test_the_best_rate_on_validation_is_chosen_and_runs_at_it_are_compared_by_seed():
    runs = study_runs(LANGUAGE, rows())
    rates = chosen_rates(runs)
    assert dict(zip(rates["method"][rates["chosen"]], rates["learning rate"][rates["chosen"]], strict=True)) == BEST
    results = results_at_chosen_rates(runs)
    assert (results.groupby("method", observed=True)["seed"].count() == 10).all()
    table = compare(results, [("mean", "AdamW"), ("shape", "mean")], higher_is_better=False, holm=True)
    values: dict[Any, dict[Any, float]] = {
        method: of.set_index("seed")["result"].to_dict() for method, of in results.groupby("method", observed=True)
    }
    expected = paired(values["shape"], values["mean"], higher_is_better=False)
    assert expected is not None
    assert table["difference"][1] == pytest.approx(expected.difference) and table["p"][1] == pytest.approx(expected.p)
    assert table["corrected p"][1] == pytest.approx(2 * expected.p) and table["corrected p"][1] < 0.05
    assert table["corrected p"][0] == pytest.approx(table["p"][0]) and table["p"][0] > 0.05
    assert table["detectable"][1] > expected.detectable


def test_the_command_writes_tables_and_a_figure(tmp_path, capsys):
    results = tmp_path / "study.jsonl"
    results.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    main(["language", "study", str(results), "--out", str(tmp_path / "report")])
    text = (tmp_path / "report" / "README.md").read_text()
    assert "corrected by Holm's method for 3 comparisons" in text and "shape minus mean" in text
    assert "**" in text.split("## Learning rates")[1] and (tmp_path / "report" / "comparisons.png").stat().st_size > 10_000
    with pytest.raises(SystemExit):
        main(["detection", "study", str(results)])
    assert "no part on detection" in capsys.readouterr().out


def test_on_images_digits_are_corrected_for_five_comparisons_and_the_other_cell_is_secondary(tmp_path):
    random = np.random.default_rng(0)
    results = tmp_path / "study.jsonl"
    with results.open("w") as file:
        for path in sorted((VISION.folder / "grids" / "study").glob("*.toml")):
            grid = load_grid(VISION, str(path))
            for settings in grid.settings:
                for seed in grid.seeds:
                    accuracy = 0.99 + 0.001 * random.normal() - 0.05 * (method_label(settings) == "shape")
                    setting = json.loads(dataclasses.replace(settings, seed=seed).key())
                    file.write(json.dumps({"settings": setting, "test_accuracy": accuracy, "seconds": 30.0}) + "\n")
    main(["vision", "study", str(results), "--out", str(tmp_path / "report")])
    text = (tmp_path / "report" / "README.md").read_text()
    primary, secondary = text.split("## Primary comparisons")[1].split("## Results")[0].split("## Secondary comparisons")
    assert "Holm's method for 5 comparisons" in primary
    for part, cell, seeds in (
        (primary, "ResNet-18 on handwritten digits", 8),
        (secondary, "10,000 images of cifar10_jpeg", 4),
    ):
        lines = [line for line in part.splitlines() if " minus CAL" in line]
        assert len(lines) == 5 and all(cell in line and f"| {seeds} " in line for line in lines)
        assert {line.split("|")[2].strip().removesuffix(" minus CAL") for line in lines} == set(PARTS["vision"].methods) - {
            "CAL"
        }
        assert sum("-4.9" in line or "-5.0" in line for line in lines) == 1
