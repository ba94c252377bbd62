"""Files that are expensive to make and named by what they were made from: written atomically, checked when
opened, made again when damaged."""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

INDEX = "index.json"  # written last: an entry without it is not there
READ_BYTES = 2**22

log = logging.getLogger("wane")


def cache_dir() -> Path:
    """WANE_CACHE, else `wane` in the XDG cache directory."""
    if os.environ.get("WANE_CACHE"):
        return Path(os.environ["WANE_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "wane"


def key(*parts: object) -> str:
    """A short digest of values with a stable repr."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=12).hexdigest()


def entry(name: str, make: Callable[[], Mapping[str, Iterable[bytes]]]) -> tuple[Path, dict[str, str]]:
    """The folder of a cache entry and the digest of each of its files.

    When the entry is absent or a file differs from what was written, `make()` gives the files as chunks of
    bytes, in order.  Raises OSError in one line when the cache cannot be written.
    """
    folder = cache_dir() / name
    digests = _intact(folder)
    if digests is None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            written = {file: _write(folder / file, chunks) for file, chunks in make().items()}
            _write(folder / INDEX, [json.dumps(written).encode()])
        except OSError as error:
            raise OSError(
                f"cannot write the token cache {folder}: {error.strerror or error}; "
                "set WANE_CACHE to a folder with room"
            ) from None
        digests = written
    return folder, digests


def _intact(folder: Path) -> dict[str, str] | None:
    try:
        digests = json.loads((folder / INDEX).read_bytes())
        damaged = [file for file, digest in digests.items() if _file_digest(folder / file) != digest]
    except OSError:
        return None
    except (ValueError, AttributeError):
        damaged = [INDEX]
    if damaged:
        log.warning("token cache %s: %s is damaged; making it again", folder, ", ".join(damaged))
        return None
    return digests


def _write(path: Path, chunks: Iterable[bytes]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".")
    try:
        with os.fdopen(handle, "wb") as file:
            for chunk in chunks:
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return digest.hexdigest()


def _file_digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while chunk := file.read(READ_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
