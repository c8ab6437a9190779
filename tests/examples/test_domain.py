"""A domain with other words than vision's goes through training, a kill, resuming, a sweep and a report."""

import json

import numpy as np
import pytest
from outcomes import assert_resumes
from regression import REGRESSION, Settings, build, forward, load

from examples.paper.checkpoints import Checkpoints
from examples.paper.compare import compare
from examples.paper.parallel import Devices, create_mesh
from examples.paper.report.markdown import Report, report
from examples.paper.results import read_results
from examples.paper.run_directory import RunDirectory
from examples.paper.sweep import Sweep, sweep
from examples.paper.train import train

ONE = Devices(mesh=1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return train(REGRESSION, Settings(), tmp_path_factory.mktemp("runs") / "run", devices=ONE)


@pytest.mark.slow
def test_what_is_tested_at_the_end_is_what_was_best_on_validation(tmp_path):
    """At a learning rate at which the last is not the best."""
    settings = Settings(learning_rate=0.16, evaluations=2)
    run = train(REGRESSION, settings, tmp_path / "run", devices=ONE)
    losses = [line["valid_loss"] for line in run.log()]
    assert min(losses) < losses[-1]
    data = load(settings)
    with Checkpoints(run.checkpoints) as checkpoints:
        state = checkpoints.restore(2, build(settings, data, create_mesh(1, 16)).init(1))
    loss = lambda part: float(np.mean((forward(state.best, part[0]) - part[1]) ** 2))
    _, valid, test = data.parts
    assert float(state.best_loss) == min(losses)
    assert loss(valid) == pytest.approx(min(losses), rel=1e-4)
    assert run.summary()["test_loss"] == pytest.approx(loss(test), rel=1e-4)


def test_a_run_stopped_and_gone_on_with_ends_as_one_that_was_not(finished, monkeypatch, tmp_path):
    assert [line["evaluation"] for line in finished.log()] == [1, 2, 3]
    assert_resumes(REGRESSION, Settings(), finished, monkeypatch, tmp_path / "run")


@pytest.mark.slow
def test_a_sweep_and_its_report_say_what_is_better_where_lower_is(tmp_path):
    grid = tmp_path / "two.toml"
    grid.write_text('title = "Two methods"\nseeds = [1, 2]\nruns = [{ method = ["sgd", "tb+sgd"] }]\n')
    command = Sweep(str(grid), results=tmp_path / "results.jsonl", runs=tmp_path / "runs")
    sweep(REGRESSION, command)
    rows = read_results(REGRESSION, [command.results])
    assert len(rows) == 4 and all(len(row["history"]["valid_loss"]) == 3 for row in rows)
    worse = {"sgd": 0.5, "tb+sgd": 1.0}
    made = [{**row, "test_loss": worse[row["settings"]["method"]] + 1e-3 * row["settings"]["seed"] ** 2} for row in rows]
    command.results.write_text("".join(json.dumps(row) + "\n" for row in made))
    text = report(REGRESSION, Report((command.results,), (str(grid),))).read_text()
    assert "TB + SGD is worse" in text and "lower is better" in text and "test loss" in text
    assert "accuracy" not in text and "epoch" not in text and "CAL" not in text
    folder = next((tmp_path / "runs").iterdir())
    table = compare(REGRESSION, (folder,))
    assert [column.header for column in table.columns][3:5] == ["evaluations", "test loss"]
    assert RunDirectory(folder, REGRESSION).settings()["model"] == "mlp"
