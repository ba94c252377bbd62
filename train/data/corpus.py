"""Text as a sequence of documents: the user's files, the standard library, a TFDS data set."""

import dataclasses
import glob
import hashlib
import os
import sysconfig
from collections.abc import Callable, Iterable
from pathlib import Path

from wane.train.data.spec import Data
from wane.train.data.tfds_source import open_tfds

DOCUMENT_BYTES = (
    2048  # files are cut into documents of at least this, so that one file can be held out in part
)
PYTHON_BYTES = 16 * 2**20  # the most that `python` reads
NOT_SOURCE = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Corpus:
    """Documents in a fixed order, readable any number of times; `digest` is of their content and order,
    not of where they lie."""

    spec: str
    digest: str
    documents: Callable[[], Iterable[bytes]]


def open_corpus(spec: str, config: Data) -> Corpus:
    """The corpus of a text source.  Raises ValueError or FileNotFoundError in one line."""
    kind, _, rest = spec.partition(":")
    if kind == "tfds":
        digest, documents = open_tfds(rest, config)
        return Corpus(spec=spec, digest=digest, documents=documents)
    read = list(python_documents() if kind == "python" else text_documents(rest))
    if not read:
        raise ValueError(f"data.sources: {spec!r} has no text; all of its files are empty")
    return Corpus(spec=spec, digest=_digest(read), documents=lambda: read)


def text_documents(pattern: str) -> Iterable[bytes]:
    """Documents of all files that match a path or glob (`**` goes into folders), in sorted order."""
    paths = [Path(path) for path in sorted(glob.glob(os.path.expanduser(pattern), recursive=True))]
    files = [path for path in paths if path.is_file()]
    if not files:
        hint = "it is a folder: give a glob such as '**/*.txt' below it" if paths else "check the path"
        raise FileNotFoundError(f"data.sources: no file matches 'text:{pattern}'; {hint}")
    for path in files:
        content = path.read_bytes()
        try:
            content.decode()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"data.sources: {path} is not UTF-8 at byte {error.start}; convert it or leave it out"
            ) from None
        yield from cut(content)


def cut(content: bytes) -> Iterable[bytes]:
    """Cut a file at blank lines into documents of at least 2 kB; at the next end of a line where no blank
    line comes within 8 kB.  A shorter rest stays with the last document."""
    start = 0
    while start < len(content):
        least = start + DOCUMENT_BYTES
        end, mark = content.find(b"\n\n", least, start + 4 * DOCUMENT_BYTES), 2
        if end < 0:
            end, mark = content.find(b"\n", least), 1
        end = len(content) if end < 0 or len(content) - end < DOCUMENT_BYTES else end + mark
        yield content[start:end]
        start = end


def python_documents() -> Iterable[bytes]:
    """The standard library's modules, one document each, without tests and files that are not UTF-8, in
    sorted order up to 16 MiB."""
    root, total = Path(sysconfig.get_path("stdlib")), 0
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        # _sysconfigdata describes the machine that built the interpreter, not the library.
        if NOT_SOURCE & set(path.relative_to(root).parts) or path.name.startswith("_sysconfigdata"):
            continue
        content = path.read_bytes()
        try:
            content.decode()
        except UnicodeDecodeError:
            continue
        total += len(content)
        if total > PYTHON_BYTES:
            return
        if content:
            yield content


def _digest(documents: list[bytes]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for document in documents:
        digest.update(len(document).to_bytes(8, "little") + document)
    return digest.hexdigest()
