"""A domain with other words than vision's goes through training, a kill, resuming, a sweep and a report."""

import contextlib
import json
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from outcomes import assert_resumes
from regression import REGRESSION, Settings, build, forward, load

from examples.paper import balance, parallel
from examples.paper.__main__ import main
from examples.paper.checkpoints import Checkpoints
from examples.paper.compare import compare
from examples.paper.parallel import Devices, create_mesh
from examples.paper.report.markdown import Report, report
from examples.paper.results import read_results
from examples.paper.run_directory import RunDirectory
from examples.paper.sweep import Sweep, sweep
from examples.paper.train import train

ONE = Devices(mesh=1)
ROOT = Path(__file__).parents[2]


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


def test_an_interrupt_that_was_swallowed_stops_the_run_after_the_interval(tmp_path, monkeypatch):
    """As by a callback of the garbage collector, in which Python drops what is raised."""
    interrupted = threading.Event()
    monkeypatch.setattr(parallel, "_interrupted", interrupted)
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.default_int_handler)
    handlers = {}
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)

    def swallowing():
        with contextlib.suppress(KeyboardInterrupt):
            handlers[signal.SIGINT](signal.SIGINT, None)

    with pytest.raises(SystemExit):
        parallel.run_command(swallowing)
    assert interrupted.is_set()

    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(SystemExit) as left:
        train(REGRESSION, Settings(), tmp_path / "run", devices=ONE)
    assert left.value.code == 130 and len(RunDirectory(tmp_path / "run", REGRESSION).log()) == 1


def test_a_metric_of_ones_own_is_used_as_the_docs_say(monkeypatch):
    stable_rank = lambda eigenvalues: eigenvalues.sum(axis=-1) / eigenvalues[..., -1]
    monkeypatch.setitem(balance._METRICS, "stable_rank", stable_rank)
    assert balance.create_metric("stable_rank", balance.tail_fit(REGRESSION.settings())) is stable_rank
    assert "`_METRICS` in `examples/paper/balance.py`" in (ROOT / "docs/paper.md").read_text()


def test_sweeps_and_comparisons_of_nothing_are_refused(capsys):
    for arguments, words in ((["sweep", "digits", "--seeds"], "--seeds has no seed"), (["compare"], "no run is given")):
        with pytest.raises(SystemExit):
            main(["vision", *arguments])
        assert words in "".join(capsys.readouterr())
