"""What a release says of itself: types, version, dependencies, and what importing it costs."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tb_optax

ROOT = Path(__file__).parents[1]


def test_the_package_says_that_it_is_typed():
    assert (Path(tb_optax.__file__).parent / "py.typed").exists()


def test_versions_agree():
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited and cited[1] == tb_optax.__version__ == importlib.metadata.version("tb_optax")
    assert re.search(rf"^## {re.escape(tb_optax.__version__)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_every_dependency_has_a_licence_listed():
    listed = (ROOT / "docs/licences.md").read_text().replace("_", "-").lower()
    for requirement in importlib.metadata.requires("tb_optax") or ():
        name = re.match(r"[\w.\-]+", requirement)
        assert name and (name[0].startswith("tb") or re.search(rf"[ |]{re.escape(name[0].lower())}[ ,]", listed)), (
            requirement
        )


PUBLIC = {
    *(
        "tempbalance",
        "TempBalanceState",
        "TempBalanceTransitionState",
        "llr",
        "alphadecay",
        "AlphaDecayState",
        "sparsities",
        "scalars",
        "baselines",
    ),
    *("find_layers", "trace_layers", "Layer", "Layers", "in_blocks"),
    *("spectra", "Exact", "Lanczos", "Windows", "fits", "metrics", "assignments", "Fit", "Metric", "Assignment"),
    *("report", "Report", "LayerRecord", "CheckpointError", "compare", "Comparison", "LayerChange"),
}


@pytest.fixture(scope="module")
def fresh():
    """What is loaded and which names there are in a process that has only imported the library."""
    code = "import sys, tb_optax; print(*sys.modules); print(*dir(tb_optax))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    return [set(line.split()) for line in ended.stdout.splitlines()]


def test_the_public_names_are_these(fresh):
    _, names = fresh
    assert {name for name in names if not name.startswith("_")} == PUBLIC | {"importlib", "TYPE_CHECKING", "Any"}
    assert all(getattr(tb_optax, name) is not None for name in PUBLIC)
    with pytest.raises(AttributeError, match="module 'tb_optax' has no attribute 'Solver'"):
        _ = tb_optax.Solver


def test_importing_it_loads_nothing_but_what_it_needs(fresh):
    """Nothing that only reports or examples need."""
    modules, _ = fresh
    others = {
        "flax",
        "orbax",
        "matplotlib",
        "rich",
        "tyro",
        "safetensors",
        "msgpack",
        "scipy.special",
        "scipy.stats",
        "tensorflow",
        "sklearn",
    }
    assert not any(name.startswith("tb_optax._report") for name in modules)
    assert not others & {name.split(".")[0] if name.split(".")[0] in others else name for name in modules}


@pytest.mark.slow
def test_a_users_type_checker_sees_the_types(tmp_path):
    (tmp_path / "user.py").write_text(
        "import optax, tb_optax\n"
        "reveal_type(tb_optax.tempbalance(390))\n"
        "as_optax: optax.GradientTransformationExtraArgs = tb_optax.tempbalance(390)\n"
        "tb_optax.tempbalance('often')\n"
        "tb_optax.Exact(max_bytes=1.5)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable, "user.py"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert "BalancedTransformation" in ended.stdout
    errors = [line for line in ended.stdout.splitlines() if "error" in line and "user.py" in line]
    assert [line.split(":")[1] for line in errors] == ["4", "5"]
