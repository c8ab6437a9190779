"""The command line names its commands, and each of them is there."""

import importlib.util

import pytest

from examples.paper import __main__ as command_line
from examples.paper.__main__ import main


@pytest.mark.parametrize("arguments", [[], ["vision"], ["vision", "nosuch"], ["nosuch", "train"], ["curvature", "sweep"]])
def test_what_is_no_command_is_answered_with_all_commands(arguments, capsys):
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    said = capsys.readouterr().err
    assert exit.value.code == 2
    assert "tiny_imagenet ZIP" in said and said.splitlines()[-1].startswith("error: ")
    assert all(word in said.splitlines()[-1] for word in arguments)


def test_help_is_no_error(capsys):
    main(["--help"])
    assert "vision | language | detection" in capsys.readouterr().out


def test_every_command_is_there():
    for module in (*(module for module, _ in command_line.OTHERS.values()), *command_line.COMMANDS.values()):
        assert importlib.util.find_spec(f"examples.paper.{module}") is not None, module


def test_a_commands_help_names_the_command(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["language", "train", "--help"])
    said = capsys.readouterr().out
    assert exit.value.code == 0 and "python -m examples.paper language train" in said and "--evaluation-interval" in said
