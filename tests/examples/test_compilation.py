"""Compiled programs are kept for later runs, where users want it."""

import json
import sys

import jax
import pytest
from processes import finish, start

from examples.paper import train as runs_train
from examples.paper.__main__ import main
from tb_optax._report.compilation import keep_compiled_programs

RUN = ["--dataset", "digits", "--width", "0.0625", "--epochs", "1", "--batch-size", "512"]


@pytest.fixture
def nothing_chosen(monkeypatch, tmp_path):
    """As for a user who has told JAX of no folder; the tests have."""
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before[0])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])


@pytest.mark.skipif(sys.platform != "linux", reason="the user's cache folder is found in another way")
def test_programs_are_kept_in_the_users_cache_folder_or_where_jax_was_told(nothing_chosen):
    keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir.startswith(str(nothing_chosen / "tb_optax"))
    jax.config.update("jax_compilation_cache_dir", "elsewhere")
    keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir == "elsewhere"


@pytest.mark.parametrize(("flags", "kept"), [([], True), (["--no-compilation-cache"], False)])
def test_a_flag_leaves_the_users_folder_alone(nothing_chosen, monkeypatch, flags, kept):
    monkeypatch.setattr(runs_train, "train", lambda *_: None)
    main(["vision", "train", *flags])
    assert (jax.config.jax_compilation_cache_dir is not None) == kept


@pytest.mark.slow
def test_a_run_that_finds_its_programs_computes_the_same(tmp_path):
    """And compiles none of the large programs anew; small ones are kept or not by the time that they happened to take."""
    large = ("jit_train_", "jit_evaluate", "jit_create")
    environment, logs, programs = {"JAX_COMPILATION_CACHE_DIR": "", "XDG_CACHE_HOME": str(tmp_path / "cache")}, [], []
    for name in ("first", "second"):
        command = ["-m", "examples.paper", "vision", "train", *RUN, "--out", tmp_path / name]
        (said,) = finish(start([command], 1, [environment]))
        log = tmp_path / name / "log.jsonl"
        assert log.exists(), said
        line = json.loads(log.read_text())
        logs.append({key: value for key, value in line.items() if "second" not in key})
        programs.append({path.name for path in (tmp_path / "cache").rglob("*-cache") if path.name.startswith(large)})
    assert logs[0] == logs[1]
    assert len(programs[0]) == len(large) and programs[0] == programs[1]
