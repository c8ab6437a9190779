"""What changed between two checkpoints: how far, in how many directions, and where nothing did."""

import csv
import io
import json
import math
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import tb_optax
from tb_optax._report import command
from tb_optax._report.changes import edge_of_noise


def _random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _low(rows, columns, rank, seed=1):
    """Of this rank; its singular values differ by a factor of 30."""
    sizes = np.geomspace(1, 1 / 30, rank).astype(np.float32)
    return (_random(rows, rank, seed=seed) * sizes) @ _random(rank, columns, seed=seed + 1)


@pytest.fixture
def before():
    bias = np.zeros(96, np.float32)
    return {
        "dense": {"kernel": _random(64, 96), "bias": bias},
        "conv": {"kernel": _random(3, 3, 32, 64, seed=1), "bias": bias[:64]},
        "blocks": {"kernel": _random(3, 64, 96, seed=2), "bias": np.stack([bias] * 3)},
    }


def _rows(before, after):
    return {row["layer"]: row for row in tb_optax.compare(before, after).rows()}


def test_how_far_each_weight_moved_is_the_ratio_of_frobenius_norms(before):
    step = jax.tree.map(lambda each: 0.1 * _random(*each.shape, seed=9), before)
    after = jax.tree.map(np.add, before, step)
    rows = _rows(before, after)
    of = lambda name, place=...: np.linalg.norm(step[name]["kernel"][place]) / np.linalg.norm(before[name]["kernel"][place])
    expected = {"dense": of("dense"), "conv": of("conv")} | {f"blocks[{place}]": of("blocks", place) for place in range(3)}
    assert {name: row["relative_change"] for name, row in rows.items()} == pytest.approx(expected, rel=1e-4)
    assert {row["rank_of_change"] for row in rows.values()} <= {0, 1}, "noise has learned nothing"


@pytest.mark.parametrize("noise", [0.0, 1e-4])
def test_the_rank_of_a_change_is_that_of_what_was_learned(before, noise):
    step = {name: noise * _random(*each["kernel"].shape, seed=7) for name, each in before.items()}
    step["dense"] = step["dense"] + 0.1 * _low(64, 96, 16)
    step["blocks"][1] += 0.1 * _low(64, 96, 5)
    after = {name: each | {"kernel": each["kernel"] + step[name].astype(np.float32)} for name, each in before.items()}
    ranks = {name: row["rank_of_change"] for name, row in _rows(before, after).items()}
    assert ranks == {"dense": 16, "conv": 0, "blocks[0]": 0, "blocks[1]": 5, "blocks[2]": 0}


def test_what_is_unchanged_is_said_and_what_is_hardly_changed_is_not(before):
    after = jax.tree.map(np.copy, before)
    after["dense"]["kernel"][0, 0] = np.nextafter(after["dense"]["kernel"][0, 0], np.float32(9))
    after["blocks"]["kernel"][2] *= 2
    rows = _rows(before, after)
    assert {name for name, row in rows.items() if "unchanged" in row["mark"]} == {"conv", "blocks[0]", "blocks[1]"}
    assert rows["conv"]["mark"] == "unchanged, as noise" and rows["conv"]["relative_change"] == 0
    assert 0 < rows["dense"]["relative_change"] < 1e-6 and rows["blocks[2]"]["relative_change"] == pytest.approx(1)


def test_what_cannot_be_compared_is_nan(before):
    after = dict(before) | {"dense": {"kernel": _random(64, 80)}, "new": before["conv"]}
    before = before | {"zero": {"kernel": np.zeros((64, 64), np.float32)}}
    after["zero"] = {"kernel": _random(64, 64)}
    after["conv"] = {"kernel": np.full_like(before["conv"]["kernel"], np.nan), "bias": before["conv"]["bias"]}
    rows = _rows(before, after)
    for name in ("dense", "new", "zero", "conv"):
        assert math.isnan(rows[name]["relative_change"]) and "unchanged" not in rows[name]["mark"]
    assert math.isnan(rows["conv"]["rank_of_change"]) and math.isnan(rows["dense"]["rank_of_change"])


def test_two_networks_without_a_shared_layer_are_refused(before):
    with pytest.raises(
        ValueError, match=r"^compare: before=params and after=params share no layer of one name and shape; give"
    ):
        tb_optax.compare(before, {"other": before["dense"]})


@pytest.mark.parametrize("shape", [(64, 64, 1), (64, 256, 1), (32, 64, 9)])
def test_noise_has_learned_nothing(shape):
    rows, columns, matrices = shape
    values = np.linalg.svd(np.random.default_rng(0).standard_normal((100, matrices, rows, columns)), compute_uv=False) ** 2
    spectra = [np.sort(each.ravel()) for each in values]
    ranks = [(each > edge_of_noise(each, (rows, columns), matrices)).sum() for each in spectra]
    assert ranks.count(0) >= 95


# Adapters.


def _adapter(rank=8, prefix="base_model.model.", middle="", **config):
    weights = {
        f"{prefix}layers.0.q.lora_A{middle}.weight": _random(rank, 96, seed=3),
        f"{prefix}layers.0.q.lora_B{middle}.weight": _random(64, rank, seed=4),
    }
    return weights, {"lora_alpha": 2 * rank, "r": rank, **config}


BASE = {"layers.0.q.weight": _random(64, 96), "layers.0.k.weight": _random(64, 96, seed=5)}


@pytest.fixture
def saved(tmp_path):
    """Writes a base and an adapter, as PEFT lays them out; returns their paths."""

    def save(weights, config, base=BASE):
        (tmp_path / "adapter").mkdir(exist_ok=True)
        save_file(base, tmp_path / "base.safetensors", {"format": "pt"})
        save_file(weights, tmp_path / "adapter" / "adapter_model.safetensors", {"format": "pt"})
        if config is not None:
            (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
        return str(tmp_path / "base.safetensors"), str(tmp_path / "adapter")

    return save


@pytest.mark.parametrize("prefix", ["base_model.model.", "base_model.model.model.", ""])
@pytest.mark.parametrize(("config", "scale"), [({}, 2.0), ({"use_rslora": True}, 16 / math.sqrt(8))])
def test_an_adapter_after_its_base_is_the_change(saved, prefix, config, scale):
    weights, config = _adapter(prefix=prefix, **config)
    base, adapter = saved(weights, config)
    comparison = tb_optax.compare(base, adapter)
    rows = {row["layer"]: row for row in comparison.rows()}
    first, second = weights.values()
    change = scale * second @ first
    assert rows["layers.0.q"]["relative_change"] == pytest.approx(
        np.linalg.norm(change) / np.linalg.norm(BASE["layers.0.q.weight"]), rel=1e-4
    )
    assert rows["layers.0.q"]["rank_of_change"] == 8
    assert rows["layers.0.k"]["mark"] == "unchanged, as noise"
    largest = np.linalg.norm(BASE["layers.0.q.weight"] + change, 2) ** 2
    assert comparison.reports[1].record("layers.0.q").lambda_max == pytest.approx(largest, rel=1e-4)


def test_a_base_that_is_turned_gets_the_turned_change(saved):
    weights, config = _adapter(fan_in_fan_out=True)
    base, adapter = saved(weights, config, {name: each.T.copy() for name, each in BASE.items()})
    (row, _) = sorted(tb_optax.compare(base, adapter).rows(), key=lambda row: -row["relative_change"])
    assert row["rank_of_change"] == 8


def test_an_adapter_alone_is_measured_as_the_product(saved):
    weights, config = _adapter(middle=".default")
    _, adapter = saved(weights, config)
    report = tb_optax.report(adapter)
    first, second = weights.values()
    (record,) = report.records
    assert record.shape == (64, 96) and "lora_alpha / r" in report.format
    assert record.lambda_max == pytest.approx(np.linalg.norm(2 * second @ first, 2) ** 2, rel=1e-4)
    assert "only 8 of 64 eigenvalues" in record.reasons["alpha"]


def test_a_tree_is_taken_as_it_is(saved):
    weights, _ = _adapter()
    rows = {row["layer"]: row for row in tb_optax.compare(BASE, weights).rows()}
    first, second = weights.values()
    expected = np.linalg.norm(second @ first) / np.linalg.norm(BASE["layers.0.q.weight"])
    assert rows["layers.0.q"]["relative_change"] == pytest.approx(expected, rel=1e-4)


def test_whole_weights_beside_an_adapter_are_changes_and_other_arrays_are_told(saved):
    weights, config = _adapter()
    whole = {
        "base_model.model.layers.0.k.weight": 2 * BASE["layers.0.k.weight"],
        "base_model.model.new.weight": np.ones((9, 9)),
    }
    base, adapter = saved(weights | whole, config)
    comparison = tb_optax.compare(base, adapter)
    assert comparison.changes["layers.0.k"].relative == pytest.approx(1)
    assert "nor a weight of the base" in comparison.reports[1].left_out["base_model.model.new.weight"]
    assert "not a LoRA factor" in tb_optax.report(adapter).left_out["base_model.model.new.weight"]


@pytest.mark.parametrize(
    ("change", "config", "words"),
    [
        ({}, None, r"no adapter_config.json beside it, so the scale"),
        ({}, {"r": 8}, r"it has no lora_alpha"),
        ({}, {"lora_alpha": 16, "alpha_pattern": {"q": 3}}, r"alpha_pattern"),
        ({"base_model.model.layers.0.q.lora_magnitude_vector": np.ones(64, np.float32)}, {"lora_alpha": 1}, r"DoRA"),
        ({"base_model.model.layers.0.v.lora_A.weight": _random(8, 96)}, {"lora_alpha": 1}, r"no matching lora_B"),
        (
            {"base_model.model.layers.0.q.lora_B.weight": _random(60, 8)},
            {"lora_alpha": 1},
            r"shape \(60, 96\), and \(64, 96\)",
        ),
    ],
)
def test_an_adapter_that_cannot_be_added_is_refused(saved, change, config, words):
    weights, _ = _adapter()
    base, adapter = saved(weights | change, config)
    with pytest.raises(tb_optax.CheckpointError, match=words):
        tb_optax.compare(base, adapter)


def test_an_adapter_of_another_base_is_refused(saved):
    weights, config = _adapter()
    base, adapter = saved({name.replace("q", "other"): each for name, each in weights.items()}, config)
    with pytest.raises(tb_optax.CheckpointError, match=r"0 weights of the base .* have the name layers.0.other"):
        tb_optax.compare(base, adapter)


# What PEFT 0.21.2 writes beside an adapter of a model for classification, less what is null or false.
_WRITTEN_BY_PEFT = {
    **{
        "alpha_pattern": {},
        "base_model_name_or_path": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    },
    **{"init_lora_weights": True, "loftq_config": {}, "lora_alpha": 16, "lora_dropout": 0.0, "modules_to_save": ["score"]},
    **{"peft_type": "LORA", "peft_version": "0.21.2", "r": 4, "rank_pattern": {"v_proj": 12}, "task_type": "SEQ_CLS"},
    **{"target_modules": ["embed_tokens", "q_proj", "v_proj"], "use_dora": False, "use_rslora": False},
}


def test_a_folder_of_peft_is_read_as_peft_merges_it(tmp_path):
    """Names and shapes are those of `save_pretrained`; `v_proj` has a rank of its own, and the head is whole."""
    attention = "model.layers.1.self_attn"
    base = {
        "model.embed_tokens.weight": _random(200, 64, seed=1),
        f"{attention}.q_proj.weight": _random(64, 64, seed=2),
        f"{attention}.v_proj.weight": _random(96, 64, seed=3),
        "score.weight": _random(64, 64, seed=4),
    }
    adapter = {
        "model.embed_tokens.lora_embedding_A": _random(4, 200, seed=5),
        "model.embed_tokens.lora_embedding_B": _random(64, 4, seed=6),
        f"{attention}.q_proj.lora_A.weight": _random(4, 64, seed=7),
        f"{attention}.q_proj.lora_B.weight": _random(64, 4, seed=8),
        f"{attention}.v_proj.lora_A.weight": _random(12, 64, seed=9),
        f"{attention}.v_proj.lora_B.weight": _random(96, 12, seed=10),
        "score.weight": _random(64, 64, seed=11),
    }
    for name, weights in {
        "base/model": base,
        "adapter/adapter_model": {f"base_model.model.{path}": each for path, each in adapter.items()},
    }.items():
        (tmp_path / name).parent.mkdir()
        save_file(weights, tmp_path / f"{name}.safetensors", {"format": "pt"})
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(_WRITTEN_BY_PEFT))
    comparison = tb_optax.compare(tmp_path / "base", tmp_path / "adapter")
    assert comparison.labels == ("base", "adapter")
    product = lambda layer: adapter[f"{attention}.{layer}.lora_B.weight"] @ adapter[f"{attention}.{layer}.lora_A.weight"]
    expected = {
        f"{attention}.q_proj": (4, 16 / 4 * product("q_proj")),
        f"{attention}.v_proj": (12, 16 / 12 * product("v_proj")),
        "score": (0, adapter["score.weight"] - base["score.weight"]),
    }
    assert set(comparison.changes) == set(expected)
    for layer, (rank, change) in expected.items():
        found = comparison.changes[layer]
        assert found.rank == rank
        assert found.relative == pytest.approx(np.linalg.norm(change) / np.linalg.norm(base[f"{layer}.weight"]), rel=1e-5)
    left_out = comparison.reports[1].left_out
    assert "neither a LoRA factor" in left_out["base_model.model.model.embed_tokens.lora_embedding_A"]


# The command.


def test_the_command_tells_changes_in_its_table_and_its_files(saved, tmp_path, capsys):
    base, adapter = saved(*_adapter())
    files = {name: str(tmp_path / f"out.{name}") for name in ("json", "csv", "html")}
    command.run(["report", base, adapter, *(each for name, path in files.items() for each in (f"--{name}", path))])
    said = capsys.readouterr().out
    (changed,) = (line.split() for line in said.splitlines() if line.startswith("layers.0.q "))
    (same,) = (line.split() for line in said.splitlines() if line.startswith("layers.0.k "))
    assert "8" in changed and same[-3:] == ["unchanged,", "as", "noise"]
    content = json.loads((tmp_path / "out.json").read_text())
    assert [change["rank_of_change"] for change in content["changes"]] == [0, 8]
    assert [change["unchanged"] for change in content["changes"]] == [True, False]
    lines = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    assert [line["rank_of_change"] for line in lines] == ["", "", "0", "8"]
    document = " ".join((tmp_path / "out.html").read_text().split())
    assert "1 of 2 layers are unchanged" in document
    assert document.count('class="spectrum of-change"') == 1 and "56 of 64 are zero" in document


def test_the_page_draws_a_change_beside_the_edge_of_noise(before):
    noise = 1e-3 * _random(64, 96, seed=8)
    after = before | {"dense": {"kernel": before["dense"]["kernel"] + noise + _low(64, 96, 4)}}
    comparison = tb_optax.compare(before, after)
    change = comparison.changes["dense"]
    assert change.rank == 4 and change.eigenvalues[-5] < change.edge < change.eigenvalues[-4]
    (drawing,) = re.findall('<svg class="spectrum of-change".*?</svg>', comparison.html())
    assert "4 eigenvalues are beyond the edge of noise" in drawing and drawing.count('class="mark s1"') == 1
