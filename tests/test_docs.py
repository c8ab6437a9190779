"""The README and the pages of the docs: what they show runs, what they link to is there, every error is among them."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STALE_PHRASES = (
    "is told", "are told", "As it says", "Likewise", "none is", "so many of", "says the way out", "nothing that shows",
    "of no format", "in one way",
)  # fmt: skip
MOST_IN_CODE = 2  # of STALE_PHRASES in all Python files; lower it, never raise it
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_is_plain_markdown(page):
    """A repository browser shows it too: no directive, role or label of Sphinx."""
    assert not re.findall(r"^```\{.*|\{\w+\}`|^\(\S+\)=$", page.read_text(), flags=re.MULTILINE)


def occurrences(path):
    text = " ".join(path.read_text().split())
    return [f"{path.relative_to(ROOT)}: {phrase}" for phrase in STALE_PHRASES for _ in range(text.count(phrase))]


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.stem)
def test_a_page_has_no_phrase_that_stopped_readers(page):
    assert not occurrences(page)


def test_code_has_few_phrases_that_stopped_readers():
    """In docstrings, comments, messages and help texts."""
    files = [*(ROOT / "tb_optax").rglob("*.py"), *(ROOT / "examples").glob("*.py")]
    found = [each for path in files for each in occurrences(path)]
    assert len(found) <= MOST_IN_CODE, "\n".join(found)


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


def test_every_message_of_the_page_is_in_the_code():
    """The longest of its fixed parts, as far as one string constant of the source goes."""
    trees = [ast.parse(path.read_text()) for path in (ROOT / "tb_optax").rglob("*.py")]
    constants = [node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    source = " ".join(" ".join(each for each in constants if isinstance(each, str)).split())
    rows = re.findall(r"^\| (`.*?) \| ", (ROOT / "docs/troubleshooting.md").read_text(), flags=re.MULTILINE)
    for message in re.findall(r"`([^`]+)`", " ".join(rows)):
        parts = [part.strip(" .:;(,") for part in re.split(r"\.\.\.|'[^']*'", message)]
        assert any(part[:25] in source for part in parts if len(part) >= 10), message
