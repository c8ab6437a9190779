import numpy as np
import pytest

from examples.paper.errors import UserError
from examples.paper.language.data import Tokens, load_corpus, rows


def write(folder, train="a b\na c\n", valid="a d\n", test="c\n", prefix=""):
    folder.mkdir(exist_ok=True)
    for split, content in (("train", train), ("valid", valid), ("test", test)):
        (folder / f"{prefix}{split}.txt").write_text(content, encoding="utf-8")
    return folder


def spelled(corpus, split):
    return [corpus.vocabulary[token] for token in getattr(corpus, split)]


def load(data_dir=None, text=None, tokens: Tokens = "words", train_fraction=1.0, dataset="pydoc"):
    return load_corpus(dataset, data_dir, text, tokens, train_fraction)


@pytest.mark.parametrize("prefix", ["", "ptb."])
def test_a_folder_is_read_a_sentence_a_line_and_words_not_trained_on_are_unknown(tmp_path, prefix):
    corpus = load(write(tmp_path / "tiny", prefix=prefix))
    assert corpus.name == "tiny"
    assert corpus.vocabulary == ("<eos>", "a", "b", "c", "<unk>")  # by frequency, then by name
    assert spelled(corpus, "train") == ["a", "b", "<eos>", "a", "c", "<eos>"]
    assert spelled(corpus, "valid") == ["a", "<unk>", "<eos>"] and spelled(corpus, "test") == ["c", "<eos>"]
    assert {stream.dtype for stream in (corpus.train, corpus.valid, corpus.test)} == {np.dtype("int32")}


def test_unknown_is_a_word_once_and_only_where_there_are_any(tmp_path):
    marked = load(write(tmp_path / "marked", train=" a <unk> b \n", valid="a z"))
    assert marked.vocabulary.count("<unk>") == 1 and spelled(marked, "valid") == ["a", "<unk>", "<eos>"]
    assert "<unk>" not in load(write(tmp_path / "known", valid="b a\n")).vocabulary


def test_characters_are_tokens_and_so_is_the_end_of_a_line(tmp_path):
    corpus = load(write(tmp_path / "tiny", train="Ab a\nb", valid="é\n"), tokens="characters")
    assert spelled(corpus, "train") == list("Ab a\nb\n") and spelled(corpus, "valid") == ["<unk>", "\n"]
    assert set(corpus.vocabulary) == set("Ab a\n") | {"<unk>"}


def test_the_embedded_text_is_tens_of_thousands_of_english_words_without_repetitions():
    corpus, again = load(), load()
    assert corpus.name == "pydoc" and corpus.vocabulary == again.vocabulary
    total = sum(len(stream) for stream in (corpus.train, corpus.valid, corpus.test))
    assert 40_000 < total < 90_000 and 1_500 < len(corpus.vocabulary) < 4_000
    assert len(corpus.train) / total == pytest.approx(0.9, abs=0.001)
    assert len(corpus.valid) / total == pytest.approx(0.05, abs=0.001)
    unknown = corpus.vocabulary.index("<unk>")
    counts = np.bincount(corpus.train, minlength=len(corpus.vocabulary))
    assert counts.min() >= 2 and np.mean(corpus.test == unknown) < 0.1
    assert {"the", "statement", "built-in", "<eos>"} <= set(corpus.vocabulary)
    passages = lambda stream: {tuple(stream[start : start + 30]) for start in range(len(stream) - 30)}
    assert len(passages(corpus.test) & passages(corpus.train)) < 0.01 * len(corpus.test)
    for split in ("train", "valid", "test"):
        np.testing.assert_array_equal(getattr(corpus, split), getattr(again, split))
    characters = load(tokens="characters")
    assert len(characters.train) > 250_000 and len(characters.vocabulary) < 300


def test_validation_and_test_are_spread_over_a_text(tmp_path):
    words = [f"{place:04}" for place in range(4000)]
    path = tmp_path / "numbers.txt"
    path.write_text(" ".join(words), encoding="utf-8")
    corpus = load(text=path, tokens="characters")
    assert corpus.name == "numbers"
    streams = {split: "".join(spelled(corpus, split)).removesuffix("<unk>") for split in ("train", "valid", "test")}
    numbers = {split: np.array(stream.split(), int) for split, stream in streams.items()}
    for split in ("valid", "test"):
        assert len(numbers[split]) == pytest.approx(200, abs=15)
        assert np.histogram(numbers[split], bins=10, range=(0, 4000))[0].min() > 15
    assert sorted("".join(streams.values())) == sorted(" ".join(words))  # each token in one of them


def test_a_text_is_words_in_lower_case_with_an_end_behind_each_sentence(tmp_path):
    path = tmp_path / "story.txt"
    path.write_text("The cat\nsat. Don't well-known!\n\nThe end\n" * 300, encoding="utf-8-sig")
    corpus = load(text=path)
    assert set(corpus.vocabulary) == {"the", "cat", "sat", "don't", "well-known", "end", "<eos>"}
    assert spelled(corpus, "train")[:9] == ["the", "cat", "sat", "<eos>", "don't", "well-known", "<eos>", "the", "end"]
    path.write_text("one two three\n" * 300 + "once\n", encoding="utf-8")
    corpus = load(text=path)
    assert "once" not in corpus.vocabulary


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 1.0])
def test_a_fraction_of_the_training_text_is_passages_from_all_over_it(tmp_path, fraction):
    length = 100_000
    folder = write(tmp_path / "long", train=" ".join(f"{place:05}" for place in range(length)))
    corpus, whole = load(folder, train_fraction=fraction), load(folder)
    assert corpus.vocabulary == whole.vocabulary
    assert len(corpus.train) == pytest.approx(fraction * len(whole.train), rel=0.01)
    places = np.array([int(word) for word in spelled(corpus, "train") if word != "<eos>"])
    assert (np.diff(places) > 0).all() and np.mean(np.diff(places) == 1) > 0.99
    assert np.mean(places) == pytest.approx(length / 2, rel=0.55 if fraction == 0.01 else 0.1)
    np.testing.assert_array_equal(corpus.valid, whole.valid)


def test_rows_are_one_stream_cut_and_what_is_left_over_is_dropped():
    np.testing.assert_array_equal(rows(np.arange(11), 3), [[0, 1, 2], [3, 4, 5], [6, 7, 8]])
    with pytest.raises(UserError, match="11 tokens is too short for 6 rows"):
        rows(np.arange(11), 6)


def test_what_cannot_be_read_is_named(tmp_path):
    missing, empty, latin = tmp_path / "missing", tmp_path / "empty.txt", tmp_path / "latin.txt"
    empty.write_text(" \n")
    latin.write_bytes("façade".encode("latin-1"))
    folder = write(tmp_path / "folder")
    with pytest.raises(UserError, match=r"--dataset ptb: .*pydoc.*--data-dir"):
        load(dataset="ptb")
    with pytest.raises(UserError, match=rf"--data-dir {folder} and --text {empty} "):
        load(folder, empty)
    with pytest.raises(UserError, match=rf"--data-dir {missing} is no folder"):
        load(missing)
    with pytest.raises(UserError, match=rf"--text: {missing} cannot be read: No such file"):
        load(text=missing)
    with pytest.raises(UserError, match=rf"--text: {folder} cannot be read"):
        load(text=folder)
    with pytest.raises(UserError, match=rf"--text: {empty} is empty"):
        load(text=empty)
    with pytest.raises(UserError, match=rf"--text: {latin} is not in UTF-8 \(byte 2\)"):
        load(text=latin)
    (folder / "valid.txt").unlink()
    with pytest.raises(UserError, match=rf"--data-dir {folder} has neither valid.txt nor ptb.valid.txt"):
        load(folder)
    empty.write_text("too few words")
    with pytest.raises(UserError, match=rf"--text {empty} has 4 tokens, too few"):
        load(text=empty)


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5, float("nan")])
def test_what_is_no_fraction_is_named(fraction):
    with pytest.raises(UserError, match=f"--train-fraction {fraction} "):
        load(train_fraction=fraction)
