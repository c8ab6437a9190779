"""`tb-optax report`: what it prints and writes, in which order, and how it ends."""

import csv
import io
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

import tb_optax
from tb_optax._report import command, layer_spectra, measuring
from tb_optax._report.table import sparkline


@pytest.fixture(scope="module")
def weights():
    random = np.random.default_rng(0)
    kernel = lambda *shape: (random.standard_normal(shape) * np.exp(random.standard_normal((shape[0], 1)))).astype(
        np.float32
    )
    return {f"layer{number}.weight": kernel(64, 96) for number in (1, 2, 10)} | {"head.weight": kernel(10, 64)}


@pytest.fixture
def checkpoint(weights, tmp_path):
    save_file(weights, tmp_path / "model.safetensors")
    return str(tmp_path / "model.safetensors")


def _run(*arguments):
    """The exit code."""
    try:
        command.run(["report", *arguments])
    except SystemExit as end:
        return end.code
    return 0


def _fails(capsys, code, *arguments):
    """The one line that a failing command says."""
    assert _run(*arguments) == code
    said = capsys.readouterr()
    assert not said.out
    assert said.err.startswith("tb-optax: ") and said.err.count("\n") == 1
    return said.err


def test_the_table_has_every_layer_their_summary_and_what_was_left_out(checkpoint, capsys):
    assert _run(checkpoint, "--fit", "median", "goodness_of_fit") == 0
    said = capsys.readouterr().out
    lines = [line.split() for line in said.splitlines()]
    report = tb_optax.report(checkpoint)
    for record in report.records:
        (line,) = (line for line in lines if line[:1] == [record.layer])
        assert line[1] == "64×96" and float(line[3]) == pytest.approx(record.alpha, rel=0.01)
    assert [line[0] for line in lines[-7:-2]] == ["mean", "median", "deviation", "least", "greatest"]
    assert f"means over layers: alpha {report.means()['alpha']:.3f}, alpha weighted " in said
    assert "left out: head.weight: 10 eigenvalues" in said


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], ["layer1", "layer2", "layer10"]),
        (["--reverse"], ["layer10", "layer2", "layer1"]),
        (["--filter", "layer1*"], ["layer1", "layer10"]),
        (["--exclude", "layer2"], ["layer1", "layer10"]),
    ],
)
def test_the_table_is_filtered_and_in_order(checkpoint, capsys, flags, expected):
    assert _run(checkpoint, *flags) == 0
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines() if line.startswith("layer") and "64×96" in line] == expected


def test_a_layer_of_a_stack_is_chosen_by_the_name_that_the_table_has(tmp_path, capsys):
    stack = np.random.default_rng(0).normal(size=(3, 64, 64)).astype(np.float32)
    save_file({"blocks/kernel": stack, "blocks/bias": stack[:, 0]}, file := tmp_path / "stack.safetensors")
    assert _run(str(file), "--filter", "blocks[1]") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines() if "64×64" in line] == ["blocks[1]"]


def test_the_table_is_sorted_by_a_column_with_nan_last(weights, tmp_path, capsys):
    save_file(weights | {"layer3.weight": np.zeros((64, 64), np.float32)}, file := tmp_path / "zero.safetensors")
    assert _run(str(file), "--sort", "alpha", "--reverse") == 0
    layers = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("layer") and "×" in line]
    assert layers[-1][0] == "layer3" and "–" in layers[-1]
    alphas = [float(line[3]) for line in layers[:-1]]
    assert alphas == sorted(alphas, reverse=True)


def test_json_has_all_there_is(checkpoint, tmp_path, capsys):
    assert _run(checkpoint, "--json", str(tmp_path / "report.json")) == 0
    (report,) = json.loads((tmp_path / "report.json").read_text())["reports"]
    own = tb_optax.report(checkpoint)
    assert [{key: layer[key] for key in row} for layer, row in zip(report["layers"], own.rows(), strict=True)] == own.rows()
    assert report["checkpoint"] == checkpoint and report["format"] == "safetensors" and report["complete"]
    assert report["left_out"] == {"head.weight": "10 eigenvalues, fewer than min_eigenvalues=50"}
    assert report["summary"]["alpha"] == own.summary()["alpha"]
    assert "layer10" in capsys.readouterr().out


def test_on_standard_output_are_the_numbers_alone(checkpoint, capsys):
    assert _run(checkpoint, "--csv", "-") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["layer"] for row in rows] == ["layer1", "layer2", "layer10"]
    assert float(rows[0]["alpha"]) == pytest.approx(tb_optax.report(checkpoint).records[0].alpha)
    assert _run(checkpoint, "--json", "-") == 0
    assert len(json.loads(capsys.readouterr().out)["reports"]) == 1


def test_weights_with_nan_are_told_and_end_with_1(weights, tmp_path, capsys):
    broken = weights["layer2.weight"].copy()
    broken[0, 0] = np.inf
    save_file(weights | {"layer2.weight": broken}, file := tmp_path / "broken.safetensors")
    assert _run(str(file), "--json", str(tmp_path / "report.json"), "--csv", str(tmp_path / "report.csv")) == 1
    said = capsys.readouterr()
    assert "layer10" in said.out
    assert said.err == "tb-optax: layer2: the weights hold NaN or infinity; look for where training diverged.\n"
    layers = json.loads((tmp_path / "report.json").read_text())["reports"][0]["layers"]
    assert layers[1]["alpha"] is None and layers[0]["alpha"] > 1
    rows = list(csv.DictReader((tmp_path / "report.csv").open()))
    assert rows[1]["alpha"] == "" and rows[1]["shape"] == "64x96"


def test_two_checkpoints_are_told_with_what_changed(weights, checkpoint, tmp_path, capsys):
    save_file(weights | {"layer1.weight": 2 * weights["layer1.weight"]}, other := tmp_path / "other.safetensors")
    assert _run(checkpoint, str(other)) == 0
    said = capsys.readouterr().out
    assert "model.safetensors: " in said and "other.safetensors: " in said
    assert said.count("left out: head.weight") == 1
    (line,) = (line.split() for line in said.splitlines() if line.startswith("layer1 "))
    assert float(line[2]) == 1, "the weight moved by its own size"
    assert float(line[6]) == 0 and float(line[8]) == pytest.approx(4 * float(line[7]), rel=0.01)


def test_steps_of_a_run_are_in_the_order_of_their_numbers(weights, tmp_path, capsys):
    for step in (200, 1000, 30):
        shifted = weights["layer1.weight"] + np.float32(step / 1e4)
        (tmp_path / f"step_{step}").mkdir()
        save_file(weights | {"layer1.weight": shifted}, tmp_path / f"step_{step}" / "model.safetensors")
    assert _run(*(str(tmp_path / f"step_{step}") for step in (1000, 200, 30)), "--csv", str(tmp_path / "all.csv")) == 0
    said = capsys.readouterr().out
    assert said.index("step_30:") < said.index("step_200:") < said.index("step_1000:")
    (line,) = (line.split() for line in said.splitlines() if line.startswith("layer1 "))
    assert float(line[4]) == pytest.approx(float(line[3]) - float(line[1]), abs=0.02)
    assert len(line[5]) == 3
    rows = list(csv.DictReader((tmp_path / "all.csv").open()))
    assert len(rows) == 9 and "step_30/" in rows[0]["checkpoint"]


def test_a_sparkline_runs_from_the_least_to_the_greatest():
    assert sparkline([1, 8, float("nan"), 4.5]) == "▁█ ▅"
    assert len(set(sparkline([2, 2, 2]))) == 1


def test_layers_get_the_width_that_there_is_and_lines_do_not_exceed_it(checkpoint, capsys, monkeypatch):
    monkeypatch.setattr("tb_optax._report.table._PIPED_WIDTH", 60)
    assert _run(checkpoint) == 0
    said = capsys.readouterr().out.splitlines()
    table = said[1 : next(number for number, line in enumerate(said) if line.startswith("A wider terminal"))]
    assert max(map(len, table)) <= 60


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--exclude", "no"], "exclude='no' matches no layer"),
        (["--filter", "no"], "filter='no' matches no layer"),
        (["--sort", "change"], "sort='change' needs two checkpoints"),
        (["--sort", "relative_change"], "sort='relative_change' needs two checkpoints"),
        (["--min-eigenvalues", "1"], "min_eigenvalues=1"),
        (["--filter", "ayer1"], "filter='ayer1' matches no layer (--filter '*ayer1*' matches names that contain it)"),
        (["--lanczos", "1"], "min_size=1"),
        (["--lanczos", "64", "--fit", "median", "fix_finger"], "leave out --lanczos, or give --fit median"),
        (["--min-scale", "2"], "min_scale=2.0 and max_scale=1.5"),
        (["--json", "no/such/folder.json"], "json='no/such/folder.json' cannot be written"),
        (["--json", "a", "--csv", "a"], "two outputs would go there"),
    ],
)
def test_what_was_asked_wrongly_is_one_line_and_2(checkpoint, capsys, flags, words):
    assert words in _fails(capsys, 2, checkpoint, *flags)


def test_wrong_flags_are_told_before_anything_is_measured(checkpoint, capsys, monkeypatch):
    monkeypatch.setattr(measuring, "spectra_in_turn", None)
    assert "sort" in _fails(capsys, 2, checkpoint, "--sort", "change")
    assert "filter" in _fails(capsys, 2, checkpoint, "--filter", "no")
    assert "is a checkpoint" in _fails(capsys, 2, checkpoint, "--json", checkpoint)
    assert _run(checkpoint, "--no-such-flag") == 2
    assert _run() == 2


def test_a_checkpoint_that_cannot_be_read_is_one_line_and_1_before_the_others_are_measured(checkpoint, capsys, monkeypatch):
    monkeypatch.setattr(measuring, "spectra_in_turn", None)
    said = _fails(capsys, 1, checkpoint, checkpoint + ".missing")
    assert "model.safetensors.missing" in said


def test_networks_that_share_no_layer_and_an_adapter_before_its_base_are_one_line(weights, checkpoint, tmp_path, capsys):
    other, adapter = str(tmp_path / "other.safetensors"), str(tmp_path / "adapter.safetensors")
    save_file({f"net.{name}": weight for name, weight in weights.items()}, other)
    save_file(
        {"layer1.lora_A.weight": weights["layer1.weight"], "layer1.lora_B.weight": weights["layer2.weight"].T}, adapter
    )
    for flags in ((), ("--sort", "relative_change")):
        assert "share no layer of one name and shape" in _fails(capsys, 2, checkpoint, other, *flags)
    assert "give the base first, then the adapter" in _fails(capsys, 1, adapter, checkpoint)


def test_a_filter_leaves_the_summary_of_all_layers(checkpoint, capsys):
    assert _run(checkpoint, "--filter", "layer1*") == 0
    said = capsys.readouterr().out
    assert "mean of all 3 layers" in said and "layer2 " not in said


def test_names_in_the_table_cannot_command_a_terminal(weights, tmp_path, capsys):
    save_file({"\x1b[31mred\u202e[bold]x[/bold].weight": weights["layer1.weight"]}, file := tmp_path / "hostile.safetensors")
    assert _run(str(file)) == 0
    said = capsys.readouterr().out
    assert r"\x1b[31mred\u202e[bold]x[/bold]" in said and "\x1b" not in said


def test_an_interrupt_leaves_what_has_been_measured(checkpoint, tmp_path, capsys, monkeypatch):
    def interrupted(*args):
        yield from (each for each, _ in zip(layer_spectra.spectra_in_turn(*args), range(2), strict=False))
        raise KeyboardInterrupt

    monkeypatch.setattr(measuring, "spectra_in_turn", interrupted)
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    assert _run(checkpoint, "--json", str(tmp_path / "report.json")) == 0 and ended == [130]
    (report,) = json.loads((tmp_path / "report.json").read_text())["reports"]
    assert [layer["layer"] for layer in report["layers"]] == ["layer1", "layer2"] and not report["complete"]
    assert "interrupted" in capsys.readouterr().out


@pytest.mark.parametrize("blocked", ["", "sys.modules['tyro'] = None; "])
def test_the_version_is_told_without_the_extra_too(blocked):
    program = f"import sys; {blocked}sys.argv = ['tb-optax', '--version']; from tb_optax.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"tb-optax {tb_optax.__version__}\n", "")


def test_the_help_has_examples_and_what_is_not_read(capsys):
    assert _run("--help") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "tb-optax report before.safetensors after.safetensors" in said
    assert "Does not read" in said and "(default: )" not in said


@pytest.mark.parametrize("module", ["tyro", "rich", "platformdirs"])
def test_without_the_extra_one_line_names_it(module):
    blocked = f"import sys; sys.modules['{module}'] = None; from tb_optax.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f'tb-optax: {module} is not installed; pip install "tb_optax[report]".\n'


_TELLS_WHAT_IT_READS = """
import sys
from tb_optax._report import command, measuring
in_turn = measuring.spectra_in_turn
def telling(layers, shapes, read, *options):
    def tell(path):
        print(path, file=sys.stderr, flush=True)
        return read(path)
    return in_turn(layers, shapes, tell, *options)
measuring.spectra_in_turn = telling
command.run(sys.argv[1:])
"""


@pytest.mark.slow
def test_control_c_ends_the_command_at_once_and_leaves_the_json(tmp_path):
    kernel = np.random.default_rng(0).standard_normal((1024, 1024), np.float32)
    save_file({f"layer{number}.weight": kernel for number in range(40)}, tmp_path / "model.safetensors")
    arguments = ["report", str(tmp_path), "--json", str(tmp_path / "report.json")]
    process = subprocess.Popen(
        [sys.executable, "-c", _TELLS_WHAT_IT_READS, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    assert process.stderr is not None
    for _ in range(10):
        process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    (report,) = json.loads((tmp_path / "report.json").read_text())["reports"]
    assert 0 < len(report["layers"]) < 40 and not report["complete"]
    assert "interrupted" in out and "interrupted" in err


@pytest.mark.slow
def test_a_reader_that_leaves_is_no_error(checkpoint):
    done = subprocess.run(
        f"{sys.executable} -m tb_optax report {checkpoint} --csv - | head -n 1", shell=True, capture_output=True, text=True
    )
    assert done.stdout.startswith("checkpoint,layer") and not done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="where Linux tells a process's peak")
def test_a_large_model_is_read_layer_by_layer(tmp_path):
    """A billion parameters of bfloat16, most of them a hole in the file, in less memory than they take in float32."""
    import struct

    shapes = {f"layers.{number}.weight": (4096, 8192) for number in range(32)}
    header, start = {}, 0
    for name, shape in shapes.items():
        stop = start + 2 * shape[0] * shape[1]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + start)
    arguments = ["report", str(tmp_path), "--lanczos", "2048", "--csv", "-"]
    program = f"from tb_optax._report.command import run; run({arguments!r}); "
    # Not getrusage's: a child begins with the peak of the process that it was forked from.
    program += "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    *rows, peak = done.stdout.splitlines()
    assert len(rows) == 33
    assert int(peak) < 3 * 2**20, "KiB"


def test_windows_are_those_of_the_library_and_of_a_size_that_can_be(checkpoint, tmp_path, capsys):
    assert _run(checkpoint, "--windows", "40", "--csv", str(tmp_path / "layers.csv")) == 0
    rows = list(csv.DictReader((tmp_path / "layers.csv").open()))
    windows = tb_optax.Windows(40)
    for row, record in zip(rows, tb_optax.report(checkpoint, windows=windows).records, strict=True):
        assert float(row["alpha"]) == pytest.approx(record.alpha, rel=1e-5)
        assert int(row["eigenvalues"]) == 40 * 81
    assert "; spectra of windows of 40 rows; fit: median" in capsys.readouterr().out
    assert "size=1" in _fails(capsys, 2, checkpoint, "--windows", "1")
