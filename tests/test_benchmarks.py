"""The benchmarks compare like with like, and their harness survives what contenders do."""

import collections
import functools
import json
import math
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import tb_optax
from benchmarks import busy, checkpoint, choice, devices, figure23, published, refresh, report, steps
from benchmarks.contenders import load
from benchmarks.networks import create
from benchmarks.tables import table
from benchmarks.timing import Contender, ContenderFailed, Deadline, Worker, measure, turns
from tb_optax._report.measuring import Measuring
from tb_optax._report.source import of_tree

FITS = ("median", "goodness_of_fit", "fix_finger")
NETWORKS = ("tiny", "resnet18-64", "resnet50-64", "vgg16-64", "gpt2")


@pytest.fixture
def weightless(monkeypatch):
    """Weights of one number in every place, which take no memory."""
    from benchmarks.networks import _Weights  # pyright: ignore[reportPrivateUsage]

    ones = lambda *shape: np.broadcast_to(np.float32(1), shape)
    kernel = lambda self, *shape, bias=False: {"kernel": ones(*shape)} | ({"bias": ones(shape[-1])} if bias else {})
    monkeypatch.setattr(_Weights, "kernel", kernel)


def count(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_contender_gets_the_layers_that_the_library_balances(name, weightless):
    network = create(name)
    found = tb_optax.find_layers(network.params, exclude=network.exclude)
    assert {layer.name for layer in found} == set(network.weights())


def test_a_scanned_network_is_one_layer_for_each_of_its_slices():
    from benchmarks.networks import _llama1b, _Weights  # pyright: ignore[reportPrivateUsage]

    network = _llama1b(_Weights(0), depth=3, width=64, hidden=96, keys=64)
    found = tb_optax.find_layers(network.params)
    assert {f"{layer.name}[{index}]" for layer in found for index in range(3)} == set(network.weights())
    assert all(layer.layer_axes == (0,) for layer in found)


@pytest.mark.parametrize(("name", "millions"), [("resnet18", 11.17), ("resnet50", 23.52), ("vgg16", 14.73), ("gpt2", 124.4)])
def test_networks_have_their_published_sizes(name, millions, weightless):
    assert count(create(name).params) == pytest.approx(1e6 * millions, rel=1e-3)


# Eigenproblems of each size: nine a 3x3 convolution, one a 1x1. By hand, from the published tables of stages and blocks.
EIGENPROBLEMS = {
    "resnet18": (19, {64: 46, 128: 37, 256: 37, 512: 27}),
    "resnet34": (35, {64: 64, 128: 73, 256: 109, 512: 45}),
    "resnet50": (52, {64: 34, 128: 44, 256: 67, 512: 34, 1024: 1}),
    "resnet101": (103, {64: 34, 128: 44, 256: 254, 512: 34, 1024: 1}),
    "resnet18-768": (19, {96: 46, 192: 37, 384: 37, 768: 27}),
    "resnet18-1024": (19, {128: 46, 256: 37, 512: 37, 1024: 27}),
    "resnet18-2048": (19, {256: 46, 512: 37, 1024: 37, 2048: 27}),
}


def test_figure_23_has_the_depths_and_widths_of_the_paper():
    assert set(figure23.Settings().networks) == set(EIGENPROBLEMS)


@pytest.mark.parametrize("name", EIGENPROBLEMS)
def test_networks_of_figure_23_have_their_kernels_and_eigenproblems(name, weightless):
    weights = create(name).weights()
    sizes = collections.Counter()
    for weight in weights.values():
        sizes[min(weight.shape[-2:])] += math.prod(weight.shape[:-2])
    assert (len(weights), sizes) == EIGENPROBLEMS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", EIGENPROBLEMS)
def test_epochs_of_figure_23_train_the_networks_that_are_refreshed(name, weightless):
    from flax import nnx

    from examples.paper.vision.models import create_model

    model, channels = figure23.split(name)
    trained = nnx.eval_shape(
        lambda: create_model(model, width=channels / 512, num_classes=10, image_shape=(32, 32, 3), rngs=nnx.Rngs(0))
    )
    kernels = lambda tree: sorted(leaf.shape for leaf in jax.tree.leaves(tree) if leaf.ndim > 1)
    assert kernels(nnx.state(trained, nnx.Param)) == kernels(create(name).params)


def test_an_unknown_network_or_contender_is_named():
    with pytest.raises(ValueError, match=r"resnet19.*resnet18"):
        create("resnet19")
    with pytest.raises(ValueError, match=r"nobody.*tb_optax"):
        load("nobody", {})


@pytest.mark.parametrize("fit", FITS)
def test_the_pytorch_contender_computes_what_the_library_does(fit):
    pytest.importorskip("torch")
    case = {"network": "resnet18-64", "fit": fit}
    ours, theirs = load("tb_optax", case), load("PyTorch", case)
    assert ours.alphas and theirs.alphas
    expected = theirs.alphas(theirs.run())
    for name, alpha in ours.alphas(ours.run()).items():
        assert alpha == pytest.approx(expected[name], rel=1e-4)


def test_the_pytorch_contender_sets_learning_rates_by_eq_2():
    torch = pytest.importorskip("torch")
    from benchmarks.torch_tempbalance import refresh as torch_refresh

    weights = {name: torch.tensor(weight).permute(3, 2, 0, 1) if weight.ndim == 4 else torch.tensor(weight).T
               for name, weight in create("tiny").weights().items()}  # fmt: skip
    optimizer = torch.optim.SGD([{"params": [weight], "name": name} for name, weight in weights.items()], lr=1.0)
    alphas = torch_refresh(optimizer, base_lr=1.0)
    network = create("tiny")
    tx = tb_optax.tempbalance(1, layers=functools.partial(tb_optax.find_layers, exclude=network.exclude))
    params = jax.device_put(network.params)
    state = tx.update(params, tx.init(params), params)[1]
    assert set(alphas) == set(state.scale)
    for group in optimizer.param_groups:
        assert group["lr"] == pytest.approx(float(state.scale[group["name"]]), rel=1e-3)


def test_the_plain_contender_and_the_floor_see_the_same_matrices():
    case = {"network": "tiny", "fit": "median"}
    ours, plain = load("tb_optax", case), load("plain eigvalsh", case)
    assert ours.alphas and plain.alphas
    assert ours.alphas(ours.run()) == pytest.approx(plain.alphas(plain.run()), rel=1e-4)
    products = load("Gram products alone", case).run()
    sizes = {name: min(weight.shape[-2:]) for name, weight in create("tiny").weights().items()}
    assert {name: product.shape[-1] for name, product in products.items()} == sizes
    eigenvalues = load("eigenvalues alone", case).run()
    assert sum(map(len, eigenvalues)) == sum(product.shape[0] * product.shape[1] for product in products.values())


def test_contenders_with_one_case_share_a_process_and_are_compared_with_their_base():
    alone = Contender("optimizer", {"network": "tiny", "method": "cal", "updates": 1}, base="first")
    results = measure({"first": alone, "second": alone}, rounds=2, seconds_each=20, deadline=Deadline(1))
    assert results["first"]["first_seconds"] == results["second"]["first_seconds"]
    assert results["first"]["ratio"] == 1
    ratios = np.divide(results["second"]["seconds"], results["first"]["seconds"])
    assert results["second"]["ratio"] == pytest.approx(np.median(ratios))


def test_a_table_aligns_the_columns_that_it_is_given_to_the_right():
    text = table(("name", "times"), [("long name", "5"), ("b", "12.0")], right=[1])
    assert text.splitlines() == [
        "| name      | times |",
        "| --------- | ----: |",
        "| long name |     5 |",
        "| b         |  12.0 |",
    ]


def test_every_other_round_goes_backwards():
    assert list(turns("abc", 3)) == list("abccbaabc")


def test_a_contender_that_fails_or_hangs_costs_the_others_nothing():
    contenders = {
        "good": Contender("Gram products alone", {"network": "tiny"}, base="bad"),
        "bad": Contender("plain eigvalsh", {"network": "tiny", "fit": "unknown"}),
    }
    results = measure(contenders, rounds=3, seconds_each=20, deadline=Deadline(1))
    assert len(results["good"]["seconds"]) == 3
    assert results["good"]["peak_memory"] > 0
    assert "fit='unknown'" in results["bad"]["error"]
    assert results["good"]["ratio"] is None
    worker = Worker(contenders["good"])
    with pytest.raises(ContenderFailed, match="longer than 0 s"):
        worker.ask("ready", 0.01)
    worker.close()


@pytest.mark.slow
def test_refreshes_are_timed_written_and_reported(tmp_path):
    settings = refresh.Settings(
        networks=("tiny",), all_fits=("tiny",), contenders=("tb_optax", "Gram products alone"), rounds=2, out=tmp_path
    )
    refresh.run(settings)
    written = json.loads((tmp_path / "refresh.json").read_text())
    assert {"commit", "versions", "processor", "date", "cores"} <= set(written["provenance"])
    result = written["cases"][0]["contenders"]["tb_optax, goodness_of_fit"]
    assert len(result["seconds"]) == 2
    assert result["median"] == pytest.approx(np.median(result["seconds"]))
    text = report.report(tmp_path)
    assert "tb_optax, fix_finger" in text
    assert text.index("## A refresh") < text.index("## To reach")
    assert (tmp_path / "refresh.png").exists()


def test_the_committed_report_is_that_of_the_committed_results(tmp_path):
    committed = Path(report.__file__).parent / "results" / "cpu-2-cores"
    for file in committed.glob("*.json"):
        shutil.copy(file, tmp_path)
    assert report.report(tmp_path) == (committed / "report.md").read_text()
    assert {file.name for file in tmp_path.glob("*.png")} == {file.name for file in committed.glob("*.png")}


def test_a_directory_without_results_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"refresh\.json"):
        report.report(tmp_path)


@pytest.mark.slow
def test_updates_are_timed_in_several_processes(tmp_path):
    cases = steps.run(steps.Settings(network="tiny", rounds=2, processes=2, out=tmp_path))
    for count in ("1", "20"):
        assert cases["update_ratios"][count] == pytest.approx(np.mean(cases["update_ratios_by_process"][count]))
    assert "## Updates" in report.report(tmp_path)


@pytest.mark.slow
def test_a_refresh_is_reported_beside_an_epoch(tmp_path):
    settings = figure23.Settings(networks=("resnet18-64",), rounds=2, batch_size=2, out=tmp_path)
    (case,) = figure23.run(settings)
    assert case["epoch"]["median"] == pytest.approx(np.median(case["epoch"]["seconds"]))
    text = report.report(tmp_path)
    row = [cell.strip() for cell in text[text.index("| resnet18 ") :].splitlines()[0].strip("|").split("|")]
    assert row[:2] == ["resnet18", "64"]
    expected = 100 * case["refresh"]["median"] / case["epoch"]["median"]
    assert float(row[4].strip("%")) == pytest.approx(expected, abs=0.01)
    assert (tmp_path / "figure23.png").exists()


@pytest.mark.slow
def test_ways_to_compute_spectra_are_compared_on_trained_weights(tmp_path):
    checkpoint.write_checkpoint("resnet18-128", tmp_path / "trained.safetensors")
    settings = choice.Settings(networks=("tiny",), trained=(tmp_path / "trained.safetensors",), rounds=1, out=tmp_path)
    result = choice.run(settings)
    found = result["agreement"]["trained.safetensors"]
    assert found["spearman"]["exact"] == pytest.approx(1)
    exact, windows = (found["alpha"][name] for name in ("exact", "windows, 81 of 100 rows"))
    assert found["layers"] == len(exact) == len(windows)
    assert found["alpha_differs"]["windows, 81 of 100 rows"] == pytest.approx(
        np.median(np.abs(np.divide(windows, exact) - 1))
    )
    assert "## Exact spectra, windows" in report.report(tmp_path)


def test_a_refresh_without_an_epoch_has_no_share():
    assert figure23.share({"refresh": {"median": 1.0}}) is None
    assert figure23.share({"refresh": {"error": "took too long"}, "epoch": {"median": 50.0}}) is None
    assert figure23.share({"refresh": {"median": 1.0}, "epoch": {"median": 50.0}}) == 0.02


def test_the_share_of_training_in_refreshes_is_that_of_so_many_updates():
    case = {"refresh": {"median": 1.0}, "epoch": {"median": 50_000 / 128}}  # a second a step
    assert figure23.share(case, 3) == pytest.approx(1 / 4)


@pytest.mark.slow
def test_busy_programs_and_devices_are_timed(tmp_path):
    result = busy.run(busy.Settings(network="tiny", contenders=("tb_optax",), rounds=1, out=tmp_path))
    assert math.isfinite(result["tb_optax"]["ratio"])
    cases = devices.run(devices.Settings(networks=("tiny",), devices=(1, 2), rounds=1, out=tmp_path))
    assert {number: "median" in result for number, result in cases[0]["devices"].items()} == {"1": True, "2": True}
    assert "## On several devices" in report.report(tmp_path)


def test_published_weights_are_given_to_others_as_the_matrices_that_the_report_measures():
    random = np.random.default_rng(0)
    kernel = lambda *shape: {
        "kernel": random.standard_normal(shape).astype(np.float32),
        "bias": np.zeros(shape[-1], np.float32),
    }
    tree = {"dense": kernel(96, 64), "conv": kernel(3, 3, 32, 48), "stack": kernel(2, 64, 80) | {"bias": np.zeros((2, 80))}}
    measuring = Measuring(of_tree(tree))
    measuring.run()
    weights = published.matrices(measuring)
    assert {layer: weight.shape for layer, weight in weights.items()} == {
        "conv": (48, 32, 9, 1),
        "dense": (96, 64),
        "stack[0]": (80, 64),
        "stack[1]": (80, 64),
    }
    for record in measuring.report().records:
        weight = weights[record.layer]
        values = np.linalg.svd(weight.reshape(*weight.shape[:2], -1).transpose(2, 0, 1), compute_uv=False)
        np.testing.assert_allclose(
            record.eigenvalues, np.sort(values.ravel() ** 2) / (2 if record.layer == "conv" else 1), rtol=1e-4
        )


def test_the_checkpoint_of_a_benchmark_says_what_the_network_does(tmp_path):
    checkpoint.write_checkpoint("tiny", tmp_path / "model.safetensors")
    written = tb_optax.report(tmp_path)
    assert set(checkpoint.COLUMNS) <= set(written.rows()[0])
    found = {record.layer: record for record in written.records}
    expected = {record.layer.replace("/", "."): record for record in tb_optax.report(create("tiny").weights()).records}
    assert set(found) == set(expected)
    for name, record in expected.items():
        np.testing.assert_allclose(found[name].eigenvalues, record.eigenvalues, rtol=1e-5)


def test_numbers_side_by_side_are_compared_column_by_column():
    ours = {f"layer{number}": dict.fromkeys(checkpoint.COLUMNS, "2.0") for number in range(9)}
    theirs = {layer: dict.fromkeys(checkpoint.COLUMNS.values(), "2.0") for layer in ours}
    theirs["layer7"]["D"] = "1.6"
    found = checkpoint.agreement(ours, theirs)
    assert found["layers"] == 9
    assert found["differ"].pop("ks_distance") == pytest.approx(0.25)
    assert set(found["differ"].values()) == {0.0}
    with pytest.raises(ValueError, match="layer8"):
        checkpoint.agreement(ours, {layer: row for layer, row in theirs.items() if layer != "layer8"})


@pytest.mark.slow
def test_a_command_that_fails_costs_the_other_nothing(tmp_path, monkeypatch):
    (tmp_path / "weightwatcher.py").write_text("raise SystemExit('no such package')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (case,) = checkpoint.run(checkpoint.Settings(networks=("tiny",), rounds=1, out=tmp_path))
    assert len(case["commands"]["tb-optax report"]["seconds"]) == 1
    assert "ended with" in case["commands"]["WeightWatcher"]["error"]
    text = report.report(tmp_path)
    assert "## A report of a checkpoint" in text and "ended with" in text
