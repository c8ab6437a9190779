"""Texts as streams of tokens: a folder such as Penn Treebank's, any text file, and an embedded default."""

import collections
import dataclasses
import itertools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Int

from examples.paper.errors import UserError

Tokens: TypeAlias = Literal["words", "characters"]

UNKNOWN = "<unk>"
END_OF_SENTENCE = "<eos>"
_SPLITS = ("train", "valid", "test")
_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_END_OF_PARAGRAPH = re.compile(r"\n\s*\n")
_BEHIND_SENTENCE = re.compile(r"(?<=[.!?:])\s+")
# Of each twenty blocks in a row, one is for validation and one for testing: far apart, so that each is like the whole.
_BLOCKS = 200
_PERIOD, _VALID, _TEST = 20, 9, 19
_LEAST_PIECE = 500  # tokens: a fraction of a text is to be of passages, not of snippets


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A text in memory, cut in three.

    Attributes:
      name: of the data set, its folder or its file.
      vocabulary: a token's id is its place here; the most frequent ones of the training text come first.
    """

    name: str
    vocabulary: tuple[str, ...]
    train: Int[np.ndarray, " train"]
    valid: Int[np.ndarray, " valid"]
    test: Int[np.ndarray, " test"]

    def contents(self) -> bytes:
        """Which tell whether several processes have the same."""
        return b"".join(split.tobytes() for split in (self.train, self.valid, self.test))


def load_corpus(dataset: str, data_dir: Path | None, text: Path | None, tokens: Tokens, train_fraction: float) -> Corpus:
    """Loads a text as token ids, int32.

    The vocabulary is that of the whole training text, whatever `train_fraction` is. All else becomes `<unk>`, which joins
    the vocabulary if there is such a thing.

    Args:
      dataset: `pydoc`, the help topics that come with CPython (`pydoc_data.topics`), each paragraph once. They differ a
        little from one version of Python to the next, and so do results on them. Cut like `text`.
      data_dir: a folder with `train.txt`, `valid.txt` and `test.txt`, or with `ptb.train.txt` and so on: one sentence a
        line, words apart by blanks, `<eos>` behind each line. Goes before `dataset`.
      text: any text file in UTF-8. Words are in lower case and without punctuation, `<eos>` is behind each sentence, and
        those seen but once in the training text are not in the vocabulary. 90% of the text are for training, 5% for
        validation, 5% for testing, the latter two in blocks from all over it. Goes before `dataset`.
      tokens: with `characters`, each character is a token, and so is the end of a line.
      train_fraction: trains on so much of the training text, in passages from all over it.

    Raises:
      UserError: no such data set, folder or file, both of them given, no UTF-8, or too little text.
    """
    if data_dir is not None and text is not None:
        raise UserError(f"--data-dir {data_dir} and --text {text} are both given; give one of them.")
    if not 0 < train_fraction <= 1:
        raise UserError(f"--train-fraction {train_fraction} is no fraction; give more than 0, and at most 1.")
    if data_dir is not None:
        name, least_count = data_dir.resolve().name, 1
        splits = [_tokens_of_lines(_read_split(data_dir, split), tokens) for split in _SPLITS]
    else:
        name, content, which = _embedded(dataset) if text is None else (text.stem, _read(text, "--text"), f"--text {text}")
        least_count = 2 if tokens == "words" else 1
        splits = _cut(_tokens_of_text(content, tokens), which)
    vocabulary = _vocabulary(splits, least_count)
    train, valid, test = (_encode(stream, vocabulary) for stream in splits)
    return Corpus(name, vocabulary, _spread_fraction(train, train_fraction), valid, test)


def rows(tokens: Int[np.ndarray, " n"], count: int) -> Int[np.ndarray, "count length"]:
    """Cuts a stream into `count` rows of one length; what is left over is dropped.

    Raises:
      UserError: a row would have no token to predict.
    """
    length = len(tokens) // count
    if length < 2:
        raise UserError(f"a text of {len(tokens)} tokens is too short for {count} rows; give a longer text or fewer rows.")
    return tokens[: count * length].reshape(count, length)


def windows(rows: Int[np.ndarray, "rows length"], window: int) -> Int[np.ndarray, "windows rows window_and_one"]:
    """Cuts rows into windows, in order: what is read, and one token more, for each token is to tell the next.

    A window begins with the last token of the one before. What is left over at the end of a row is dropped.
    """
    starts = range(0, rows.shape[1] - window, window)
    return np.stack([rows[:, start : start + window + 1] for start in starts])


def _embedded(dataset: str) -> tuple[str, str, str]:
    """A data set's name, its text, and what to call it in an error."""
    if dataset != "pydoc":
        raise UserError(f"--dataset {dataset}: there is no data set of that name; give pydoc, or --data-dir or --text.")
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise UserError("--dataset pydoc: this Python comes without pydoc_data; give --data-dir or --text.") from error
    paragraphs = (paragraph for name in sorted(topics) for paragraph in _END_OF_PARAGRAPH.split(topics[name]))
    # Topics quote each other at length: what is quoted would be trained on and tested on.
    return "pydoc", "\n\n".join(dict.fromkeys(paragraph.strip("\n") for paragraph in paragraphs)), f"--dataset {dataset}"


def _read_split(data_dir: Path, split: str) -> str:
    if not data_dir.is_dir():
        raise UserError(f"--data-dir {data_dir} is no folder; give one with train.txt, valid.txt and test.txt.")
    for name in (f"{split}.txt", f"ptb.{split}.txt"):
        if (data_dir / name).is_file():
            return _read(data_dir / name, "--data-dir")
    raise UserError(f"--data-dir {data_dir} has neither {split}.txt nor ptb.{split}.txt; it must have one of them.")


def _read(path: Path, flag: str) -> str:
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{flag}: {path} is not in UTF-8 (byte {error.start}); convert it, with iconv for example."
        ) from error
    except OSError as error:
        raise UserError(f"{flag}: {path} cannot be read: {error.strerror or error}; give a text file.") from error
    if not content.strip():
        raise UserError(f"{flag}: {path} is empty; give a file with text in it.")
    return content


def _tokens_of_lines(content: str, tokens: Tokens) -> list[str]:
    """Tokens of a text that has one sentence a line."""
    if tokens == "characters":
        return list(content.removesuffix("\n") + "\n")
    return [word for line in content.removesuffix("\n").split("\n") for word in (*line.split(), END_OF_SENTENCE)]


def _tokens_of_text(content: str, tokens: Tokens) -> list[str]:
    """Tokens of a running text, whose lines may end within a sentence."""
    if tokens == "characters":
        return _tokens_of_lines(content, tokens)
    paragraphs = _END_OF_PARAGRAPH.split(content.lower())
    sentences = (_WORD.findall(sentence) for paragraph in paragraphs for sentence in _BEHIND_SENTENCE.split(paragraph))
    return [word for sentence in sentences if sentence for word in (*sentence, END_OF_SENTENCE)]


def _cut(stream: list[str], which: str) -> list[list[str]]:
    """Cuts a stream into training, validation and test, the latter two evenly spread over it."""
    count = min(_BLOCKS, len(stream)) // _PERIOD * _PERIOD
    if count == 0:
        raise UserError(f"{which} has {len(stream)} tokens, too few to cut it in three; give a text of {_PERIOD} at least.")
    bounds = [len(stream) * block // count for block in range(count + 1)]
    splits: dict[str, list[str]] = {split: [] for split in _SPLITS}
    for block, (start, stop) in enumerate(itertools.pairwise(bounds)):
        split = {_VALID: "valid", _TEST: "test"}.get(block % _PERIOD, "train")
        splits[split] += stream[start:stop]
    return list(splits.values())


def _vocabulary(splits: list[list[str]], least_count: int) -> tuple[str, ...]:
    counts = collections.Counter(splits[0])
    by_count = sorted(counts, key=lambda token: (-counts[token], token))
    known = dict.fromkeys(token for token in by_count if counts[token] >= least_count)
    if any(token not in known for stream in splits for token in stream):
        known.setdefault(UNKNOWN)
    return tuple(known)


def _encode(stream: Iterable[str], vocabulary: tuple[str, ...]) -> Int[np.ndarray, " n"]:
    ids = {token: place for place, token in enumerate(vocabulary)}
    unknown = ids.get(UNKNOWN, 0)
    return np.array([ids.get(token, unknown) for token in stream], np.int32)


def _spread_fraction(stream: Int[np.ndarray, " n"], fraction: float) -> Int[np.ndarray, " m"]:
    """The first `fraction` of each of many parts of one length, as many as leave passages."""
    parts = min(_BLOCKS, max(1, round(len(stream) * fraction) // _LEAST_PIECE))
    kept = (part[: round(len(part) * fraction)] for part in np.array_split(stream, parts))
    return np.concatenate(list(kept))
