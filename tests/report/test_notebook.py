"""Reports in a notebook: short, escaped, and as a data frame where pandas is."""

import sys
import types

import matplotlib.figure
import numpy as np
import pytest

import tb_optax


def _tree(seed=0, layers=44):
    random = np.random.default_rng(seed)
    return {f"layer{number}<b>": {"kernel": random.standard_normal((64, 64))} for number in range(layers)}


@pytest.fixture(scope="module")
def report():
    return tb_optax.report(_tree())


@pytest.fixture(scope="module")
def comparison():
    tree = _tree()
    return tb_optax.compare(tree, tree | {"layer3<b>": {"kernel": 1.5 * tree["layer3<b>"]["kernel"]}})


def test_what_a_cell_ends_with_is_one_short_line(report, comparison):
    assert repr(report).startswith("Report('params', tree: 44 layers, alpha ") and "as noise" in repr(report)
    assert repr(report.records[0]) == f"LayerRecord('layer0<b>', 64x64, alpha {report.records[0].alpha:.2f}, as noise)"
    assert repr(comparison) == "Comparison('1: params' to '2: params': 44 layers, 43 of 44 layers unchanged)"
    assert repr(comparison.changes["layer3<b>"]).startswith("LayerChange('layer3<b>', |ΔW| / |W| = 0.5, rank ")
    assert len(repr(report)) < 200


def test_its_table_has_a_row_for_each_layer_and_names_are_text(report, comparison):
    for shown in (report._repr_html_(), comparison._repr_html_()):
        assert shown.count("<tr>") == 45 and "<b>" not in shown and "layer43&lt;b&gt;" in shown
    assert "unchanged" in comparison._repr_html_()


def test_a_report_without_layers_is_shown():
    assert "0 layers, no alpha" in tb_optax.Report("a", "tree", (), ("median",), {})._repr_html_()


def test_a_data_frame_has_all_rows(report, comparison, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", types.SimpleNamespace(DataFrame=lambda rows: rows))
    assert report.to_pandas() == report.rows()
    assert len(comparison.to_pandas()) == 44 and "relative_change" in comparison.to_pandas()[0]


def test_without_pandas_one_line_says_what_to_do(report, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"^to_pandas: pandas is not installed; pip install pandas, or take rows\(\)\.$"):
        report.to_pandas()


def test_the_page_is_that_of_the_command(report, comparison):
    assert report.html().count("<tr data-place=") == 44
    assert "43 of 44 layers are unchanged" in comparison.html()


def test_plots_go_to_the_axes_that_are_given(report):
    figure = matplotlib.figure.Figure()
    left, right = figure.subplots(1, 2)
    assert report.plot(ax=left) is figure and report.plot("layer1<b>", ax=right) is figure
    assert len(left.lines) == 2 and right.get_title() == "layer1<b>"
