"""The README and the pages of the docs: what they show runs, what they link to is there, every error is among them."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SNIPPETS = [
    pytest.param(snippet, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, snippet in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE))
]


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippet_runs_and_prints_what_it_says(snippet, capsys):
    namespace = {"__name__": "snippet"}
    exec(compile(snippet, "snippet", "exec"), namespace)
    if "loss" in namespace:
        assert namespace["loss"] < 2.2  # ln(10) = 2.3: it has learned something
    expected = "".join(line[2:] + "\n" for line in snippet.splitlines() if line.startswith("# "))
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_links_to_is_there(page):
    for link in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        assert link.startswith("https://") or (page.parent / link).exists(), link


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def errors():
    """The fixed words of what the library raises, the longest of each message; what a file's reader says is in one line."""
    for path in sorted((ROOT / "tb_optax").rglob("*.py")):
        if "formats" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                name = getattr(node.exc.func, "id", "")
                parts = [each.value for each in ast.walk(node.exc.args[0]) if isinstance(each, ast.Constant)]
                words = [each for each in parts if isinstance(each, str)]
                if name in ("ValueError", "TypeError", "InvalidLayersError") and words:
                    yield pytest.param(max(words, key=len), id=f"{path.stem}-{node.lineno}")


@pytest.mark.parametrize("words", list(errors()))
def test_every_error_is_found_by_its_text(words):
    page = " ".join((ROOT / "docs/troubleshooting.md").read_text().split())
    beginning = words.strip().split("\n")[0].split("(Under")[0][:45].strip(" :;.,(`")
    assert beginning in page, words
