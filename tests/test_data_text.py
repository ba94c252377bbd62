"""Text: documents, the held-out split, tokenizers, packing and its cache, windows, errors."""

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wane.train.data import Data, cache, open_data
from wane.train.data.corpus import cut, open_corpus, text_documents
from wane.train.data.packed import is_held_out, open_packed, open_tokenizer
from wane.train.data.tokenizer import byte_tokenizer


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WANE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def paragraphs(count, size=2500, seed=0):
    """Paragraphs of `size` bytes or a little less, each beginning with its number, some of it two-byte letters."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("abcdefghij klmno é"))
    return [f"#{i:04d} " + "".join(rng.choice(letters, size - 200)) for i in range(count)]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "text").mkdir()
    for name, part in (("b.txt", paragraphs(30)), ("a.txt", paragraphs(30, seed=1)), ("c.md", ["no"])):
        (tmp_path / "text" / name).write_text("\n\n".join(part), encoding="utf-8")
    return tmp_path / "text"


def stream(folder, **fields):
    fields = {"sources": f"text:{folder}/*.txt", "context": 64} | fields
    return open_data(Data(**fields), steps=100, batch_size=8)


def packed(folder, **fields):
    config = Data(**({"sources": f"text:{folder}/*.txt"} | fields))
    corpus = open_corpus(config.sources[0][0], config)
    return open_packed(corpus, open_tokenizer([corpus], config), config)


def documents_in(tokens, end=256):
    ends = np.flatnonzero(tokens == end)
    return [bytes(part[part != end].astype(np.uint8)) for part in np.split(tokens, ends + 1)[:-1]]


@given(
    st.lists(st.integers(0, 9000), max_size=6), st.sampled_from([b"\n\n", b"\n", b" "]), st.integers(0, 3000)
)
@settings(max_examples=60, deadline=None)
def test_cut_loses_nothing_and_cuts_at_line_ends(sizes, separator, rest):
    content = separator.join(b"x" * size for size in sizes) + b"y" * rest
    parts = list(cut(content))
    assert b"".join(parts) == content
    assert all(len(part) >= 2048 for part in parts) or len(parts) <= 1
    assert all(part.endswith(b"\n") for part in parts[:-1])


def test_cut_prefers_blank_lines():
    content = b"a" * 1500 + b"\n" + b"b" * 1500 + b"\n\n" + b"c" * 3000 + b"\n" + b"d" * 9000
    assert [len(part) for part in cut(content)] == [3003, 3001, 9000]


def test_files_are_read_in_sorted_order_and_by_recursive_glob(folder, monkeypatch):
    with monkeypatch.context() as patch:  # a file system lists its files in any order
        patch.setattr(
            "wane.train.data.corpus.glob.glob", lambda *_, **__: [f"{folder}/b.txt", f"{folder}/a.txt"]
        )
        documents = list(text_documents(f"{folder}/*.txt"))
    assert len(documents) == 60
    assert documents[0] == (folder / "a.txt").read_bytes()[: len(documents[0])]
    (folder / "deep").mkdir()
    (folder / "deep" / "d.txt").write_text("deep")
    assert list(text_documents(f"{folder}/**/d.txt")) == [b"deep"]


def test_held_out_documents_are_never_trained_on(folder):
    pack = packed(folder)
    train, held_out = documents_in(pack.train), documents_in(pack.held_out)
    assert sorted(train + held_out) == sorted(text_documents(f"{folder}/*.txt"))
    assert not set(train) & set(held_out)
    assert pack.documents == {"train": len(train), "unique": len(train), "held_out": len(held_out)}
    assert 0 < len(held_out) < 20


def test_copies_of_a_document_fall_on_the_same_side(folder):
    before = {d for d in text_documents(f"{folder}/*.txt") if is_held_out(d, 0.1)}
    (folder / "copies.txt").write_bytes(b"".join(sorted(before)) + (folder / "b.txt").read_bytes())
    pack = packed(folder)
    train, held_out = documents_in(pack.train), documents_in(pack.held_out)
    assert not set(train) & set(held_out)
    assert len(held_out) > len(set(held_out))
    assert before <= set(held_out)  # adding files moves no document


def test_held_out_fraction_is_respected():
    documents = [f"{i}".encode() for i in range(4000)]
    for fraction in (0.05, 0.5):
        assert np.mean([is_held_out(d, fraction) for d in documents]) == pytest.approx(fraction, abs=0.03)


def test_unique_fraction_keeps_that_share_of_training_documents_and_all_held_out(folder):
    whole, half = packed(folder), packed(folder, unique_fraction=0.5)
    train = documents_in(half.train)
    assert len(train) == -(-whole.documents["train"] // 2) == half.documents["unique"]
    assert half.documents["train"] == whole.documents["train"]
    assert set(train) < set(documents_in(whole.train))
    np.testing.assert_array_equal(half.held_out, whole.held_out)
    fewer = documents_in(packed(folder, unique_fraction=0.25).train)
    assert set(fewer) < set(train)


def test_windows_of_an_epoch_hit_every_target_once(folder):
    data = stream(folder)
    source, S = data.sources[0], 64
    shifts = set()
    for epoch in range(3):
        ordinals = epoch * source.windows + np.arange(source.windows)
        rows = source.rows(0, 0, ordinals)
        targets = np.concatenate(sorted_by_place(source.packed.train, rows))
        shifts.add(find(source.packed.train, targets) - 1)
        assert len(targets) == source.windows * S
        assert not np.array_equal(rows, source.rows(1, 0, ordinals))
    assert shifts <= set(range(S))
    assert len(shifts) > 1
    assert source.windows == (len(source.packed.train) - S) // S


def sorted_by_place(train, rows):
    """The targets of windows in the order in which they stand in the text."""
    return [row[1:] for _, row in sorted((find(train, row), row.tolist()) for row in rows)]


def find(haystack, needle):
    """Where the tokens `needle` begin: the numbered paragraphs make windows of 64 tokens unique."""
    small, wanted = np.asarray(haystack).astype("<u2").tobytes(), np.asarray(needle).astype("<u2").tobytes()
    at = small.find(wanted)
    assert at >= 0
    assert at % 2 == 0
    return at // 2


@given(context=st.integers(1, 700), extra=st.integers(0, 1500))
@settings(max_examples=60, deadline=None)
def test_windows_never_leave_the_text(context, extra):
    from wane.train.data.packed import Packed
    from wane.train.data.source import TextSource

    tokens = np.arange(context + 1 + extra)
    pack = Packed(digest="x", train=tokens, held_out=tokens, documents={})
    source = TextSource(task=None, packed=pack, tokenizer=byte_tokenizer(), length=context + 1, offset=0)
    assert source.windows >= 1
    rows = source.rows(0, 0, np.arange(3 * source.windows))
    np.testing.assert_array_equal(rows, rows[:, :1] + np.arange(context + 1))
    for epoch in np.split(rows, 3):
        assert len(set(epoch[:, 0])) == source.windows
        assert (np.diff(np.sort(epoch[:, 0])) == context).all()
    assert source.calibration(50, 0).max() <= tokens[-1]


def test_evaluation_windows_are_held_out_and_different(folder):
    data = stream(folder)
    pack = data.sources[0].packed
    held_out = (len(pack.held_out) - 1) // 64
    evaluation = data.evaluation(held_out, 0)
    places = sorted(find(pack.held_out, row) for row in evaluation.tokens_NT)
    assert places == [64 * i for i in range(held_out)]
    with pytest.raises(
        ValueError, match=rf"evaluation sequences = {held_out + 1}: .* has {held_out} windows"
    ):
        data.evaluation(held_out + 1, 0)
    for row in data.calibration(20, 0):
        find(pack.train, row)


def test_bpe_counts_bytes_and_is_shared_and_deterministic(folder, monkeypatch, tmp_path):
    sources = {f"text:{folder}/a.txt": 1, f"text:{folder}/b.txt": 1}
    data = stream(folder, sources=sources, tokenizer="bpe", bpe_vocab=300)
    assert data.vocab == 300
    assert data.sources[0].tokenizer is data.sources[1].tokenizer
    evaluation = data.evaluation(8, 0)
    tokenizer = data.sources[0].tokenizer
    text = "naïve – ökonomisch 12"
    ids = tokenizer.encode([text.encode()])[0]
    assert tokenizer.bytes_V[ids].sum() == len(text.encode())
    assert tokenizer.bytes_V[299] == 0
    assert 1 < evaluation.bytes_NS.mean() < 4
    held_out = data.sources[0].packed.held_out
    size = sum(len(d) for d in text_documents(f"{folder}/a.txt") if is_held_out(d, 0.1))
    assert tokenizer.bytes_V[held_out].sum() == size
    monkeypatch.setenv("WANE_CACHE", str(tmp_path / "fresh"))
    again = stream(folder, sources=sources, tokenizer="bpe", bpe_vocab=300)
    assert again.digest == data.digest


def test_bpe_learns_nothing_from_held_out_text(folder):
    config = Data(sources=f"text:{folder}/*.txt", tokenizer="bpe", bpe_vocab=290)
    secret = next(
        text for i in range(200) if is_held_out((text := f"{i}" + "qzqz" * 4000).encode(), config.held_out)
    )
    plain = open_tokenizer([open_corpus(config.sources[0][0], config)], config)
    (folder / "z.txt").write_text(secret)
    with_secret = open_tokenizer([open_corpus(config.sources[0][0], config)], config)
    assert plain.digest == with_secret.digest


def test_bpe_of_a_tiny_text_has_fewer_tokens(folder):
    (folder / "tiny.md").write_text("ab" * 3000)
    config = Data(sources=f"text:{folder}/tiny.md", tokenizer="bpe", bpe_vocab=5000, held_out=1e-9)
    assert 257 < open_tokenizer([open_corpus(config.sources[0][0], config)], config).vocab < 300


def test_pack_is_made_once_and_memory_mapped(folder, monkeypatch):
    first = packed(folder)
    assert isinstance(first.train, np.memmap)
    monkeypatch.setattr("wane.train.data.packed._pack", lambda *_: pytest.fail("packed again"))
    second = packed(folder)
    assert first.digest == second.digest
    np.testing.assert_array_equal(first.train, second.train)


@pytest.mark.parametrize("damage", ["flip", "shorten", "remove", "index", "empty index"])
def test_damaged_cache_is_noticed_and_made_again(folder, cache_folder, caplog, damage):
    first = packed(folder)
    tokens, digest = np.array(first.train), first.digest
    entry = next(cache_folder.glob("pack-*"))
    if damage == "flip":
        content = bytearray((entry / "train").read_bytes())
        content[1000] ^= 1
        (entry / "train").write_bytes(content)
    elif damage == "shorten":
        (entry / "held_out").write_bytes((entry / "held_out").read_bytes()[:-4])
    elif damage == "remove":
        (entry / "train").unlink()
    else:
        (entry / cache.INDEX).write_text("[]" if damage == "empty index" else '{"train": "')
    with caplog.at_level(logging.WARNING, logger="wane"):
        again = packed(folder)
    assert again.digest == digest
    np.testing.assert_array_equal(again.train, tokens)
    assert ("damaged" in caplog.text) == (damage != "remove")
    assert sorted(p.name for p in entry.iterdir()) == ["documents.json", "held_out", "index.json", "train"]


def test_killed_writer_leaves_no_entry(folder, cache_folder, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("wane.train.data.cache.os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            packed(folder)
    assert not [path for path in cache_folder.rglob("*") if path.is_file()]
    assert packed(folder).documents["train"] > 0


def test_unwritable_cache_is_one_line(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WANE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(OSError, match="cannot write the token cache .*set WANE_CACHE") as error:
        packed(folder)
    assert "\n" not in str(error.value)


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("WANE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_dir() == tmp_path / "xdg" / "wane"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_dir() == tmp_path / ".cache" / "wane"


def test_errors_name_what_is_wrong(folder, tmp_path):
    def fails(kind, message, spec, **fields):
        with pytest.raises(kind, match=message) as error:
            stream(folder, sources=spec, **fields)
        assert "\n" not in str(error.value)

    fails(FileNotFoundError, "no file matches 'text:nowhere/x.txt'; check the path", "text:nowhere/x.txt")
    fails(FileNotFoundError, "it is a folder: give a glob", f"text:{folder}")
    (folder / "empty.txt").write_text("")
    fails(ValueError, "has no text; all of its files are empty", f"text:{folder}/empty.txt")
    (folder / "latin.txt").write_bytes(b"caf\xe9 au lait")
    fails(ValueError, r"latin.txt is not UTF-8 at byte 3; convert it", f"text:{folder}/*.txt")
    long = "data.context = 100000: the training part of .* tokens, fewer than one window of 100001; give more"
    fails(ValueError, long, f"text:{folder}/a.txt", context=100000)
    few = "the held-out part of .* has 0 tokens, fewer than one window of 65; .*raise data.held_out"
    fails(ValueError, few, f"text:{folder}/a.txt", held_out=1e-9)


def test_standard_library_is_a_corpus_of_whole_modules():
    documents = list(open_corpus("python", Data(sources="python")).documents())
    assert any(b"class JSONDecoder" in document for document in documents)
    assert 10**6 < sum(map(len, documents)) <= 16 * 2**20
