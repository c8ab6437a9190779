"""The README's snippets run as they stand, each on its own."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
SNIPPETS = re.findall(r"^```python\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_snippet_runs_and_prints_what_it_says(snippet, capsys):
    namespace = {"__name__": "readme"}
    exec(compile(snippet, "README.md", "exec"), namespace)
    if "loss" in namespace:
        assert namespace["loss"] < 2.2  # ln(10) = 2.3: it has learned something
    expected = "".join(line[2:] + "\n" for line in snippet.splitlines() if line.startswith("# "))
    assert expected in capsys.readouterr().out


def test_the_picture_is_there():
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (Path(__file__).parents[1] / picture).exists()
