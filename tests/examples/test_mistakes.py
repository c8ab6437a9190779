"""A mistake in a command's flags ends it with one line that names the flag, its value and the way out."""

import pytest

from examples.paper.__main__ import main

WHOLE_NETWORK = "--weights nowhere.safetensors"


@pytest.mark.parametrize(
    ("task", "flags", "message"),
    [
        ("vision", "--dataset no_such_set", "no_such_set"),
        ("vision", "--data-dir /nowhere", "/nowhere is not a data set"),
        ("vision", "--batch-size 5000", "--batch-size 5000 is more than the 1437 training images"),
        ("vision", "--epochs 0", "--epochs 0 must be above 0"),
        ("vision", "--seed 4294967296", "--seed 4294967296 must be a whole number from 0 to 4294967295"),
        ("vision", "--min-scale 2", "--min-scale 2.0 is above --max-scale 1.5"),
        ("vision", "--width 0.001", "width=0.001"),
        ("vision", "--resume --out /nowhere/at/all", "holds no run"),
        ("vision", "--mesh 0", "--mesh 0 must be at least 1"),
        ("vision", "--mesh 9", "--mesh 9 is more than the 8 devices"),
        ("vision", "--mesh 3", "128 does not split evenly over 3 devices; give a multiple of 3, or a --mesh"),
        ("vision", "--batch-size 20", "--batch-size 20 does not split evenly over 8 devices"),
        ("vision", "--num-processes 2", "--num-processes 2 and --process-id None must be given together"),
        (
            *("vision", "--coordinator-address host --num-processes 2 --process-id 0"),
            "--coordinator-address host, --num-processes 2 and --process-id 0 must be given together: HOST:PORT",
        ),
        (
            *("vision", "--coordinator-address host:1 --num-processes 2 --process-id 2"),
            "--process-id 2 must be given together: HOST:PORT, such as 10.0.0.1:8476, a number, and one from 0 on",
        ),
        (
            "language",
            "--updates 250",
            "--updates 250 do not end with an evaluation; give a multiple of --evaluation-interval",
        ),
        ("language", "--window 600", "--window 600: the valid text of pydoc has"),
        ("language", "--width 100", "width=100 does not give each of the 4 heads"),
        ("language", "--dropout 1", "dropout=1.0 is no share"),
        ("language", "--tail-fraction 1.5", "--tail-fraction 1.5 must be at most 1"),
        ("language", "--clip 0", "--clip 0.0 must be above 0"),
        ("language", "--dataset ptb", "--dataset ptb: there is no data set of that name"),
        ("language", "--text /nowhere.txt", "/nowhere.txt cannot be read"),
        ("detection", "--image-size 100", "--image-size 100 must be a multiple of 32"),
        ("detection", "--batch-size 1000", "--batch-size 1000 is more than the 512 training images"),
        ("detection", "--min-eigenvalues 1", "--min-eigenvalues 1 must be at least 2"),
        ("detection", "--test-split extra", "data set 'digits' has no split 'extra'"),
        # The network is built first.
        pytest.param("detection", WHOLE_NETWORK, f"{WHOLE_NETWORK} is no safetensors file", marks=pytest.mark.slow),
    ],
)
def test_a_mistake_gets_one_line(task, flags, message, capsys, tmp_path):
    out = [] if "--out" in flags else ["--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as exit:
        main([task, "train", *flags.split(), *out])
    (line,) = capsys.readouterr().out.strip().splitlines()
    assert exit.value.code == 2
    assert line.startswith("error: ") and message in line


def test_a_folder_that_cannot_be_made_gets_one_line(small, capsys):
    with pytest.raises(SystemExit):
        main(["vision", "train", "--out", "/proc/runs"])
    (line,) = capsys.readouterr().out.strip().splitlines()
    assert line.startswith("error: ") and "/proc/runs" in line
