"""The committed reports are what the committed results give, to the last character; figures are not drawn again."""

import importlib
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from examples.paper.report.markdown import Report, report


@pytest.mark.parametrize("name", ["vision", "language", "detection"])
def test_a_committed_report_is_rebuilt_from_the_committed_results(name, monkeypatch, tmp_path):
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: Path(path).touch())
    domain = getattr(importlib.import_module(f"examples.paper.{name}.domain"), name.upper())
    results = domain.folder / "results"
    rebuilt = report(domain, Report((results,), (), tmp_path))
    assert rebuilt.read_text() == (results / "report" / "README.md").read_text()
    files = lambda folder: {path.name for path in folder.iterdir()}
    assert files(tmp_path) == files(results / "report")
