"""Executables on disk: a program that this machine has compiled before is neither traced nor lowered again.

jax keeps what XLA compiled, too, but finds it by the lowered program, and on small models tracing and lowering take
longer than reading what was kept.  Here a file is found by everything that the executable follows from: what the
caller says that it computes, the arguments' structure, shapes and types, the code of this package, the versions of
the libraries that programs are written in, jax's settings, and the device.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import logging
import os
import pickle
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable
from jax.stages import Compiled, Lowered, Wrapped

LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy")
PARTS = ("scaling", "train", "eval")  # of the package: all that programs are made of
READING, KEEPING = "/wane/executables/reading", "/wane/executables/keeping"  # events, seconds
READ_BY_JAX = "/jax/compilation_cache/cache_hits"  # event
DIGEST = 32  # bytes, before what they are of

log = logging.getLogger("wane")
_kept: dict[str, Path] = {}


def keep_in(folder: Path | None) -> None:
    """Where executables are kept from now on; None: nowhere, as at first."""
    _kept.clear()
    if folder:
        _kept["folder"] = folder


def compiled(
    program: Wrapped, args: tuple, computes: str | None, cpu_options: Mapping[str, Any] | None = None
) -> Compiled:
    """program.lower(*args).compile(), or what an earlier process left of it.

    computes: all that the program follows from besides its arguments, in words that no other program shares; None
    where that cannot be said (closures of arrays or of functions from elsewhere), and nothing is read or kept.  A
    damaged file is made again; one that cannot be written is done without.  Kept is only what XLA compiled just
    now: an executable that jax has read from its own cache does not run (on CPU) after it was written once more.
    cpu_options: of XLA on a CPU, those that it knows.
    """
    if not _kept or computes is None:
        return _compile(program.lower(*args), cpu_options)
    file = (
        _kept["folder"]
        / hashlib.blake2b(
            repr((computes, cpu_options, signature(args), _surroundings(), _settings())).encode(),
            digest_size=16,
        ).hexdigest()
    )
    with _timed(READING):
        found = _read(file, args)
    if found is None:
        lowered = program.lower(*args)
        with _told(READ_BY_JAX) as read_by_jax:
            found = _compile(lowered, cpu_options)
        if not read_by_jax:
            with _timed(KEEPING):
                _write(file, found)
    return found


def _compile(lowered: Lowered, cpu_options: Mapping[str, Any] | None) -> Compiled:
    on_cpu = jax.devices()[0].platform == "cpu"
    try:
        return lowered.compile(compiler_options=dict(cpu_options) if cpu_options and on_cpu else None)
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return lowered.compile()  # a later XLA


def signature(args: Any) -> tuple:
    """What of arguments an executable depends on; hashable."""
    leaves, structure = jax.tree.flatten(args)
    types = map(jax.typeof, leaves)
    return structure, tuple((type_.shape, type_.dtype, type_.weak_type) for type_ in types)


@contextlib.contextmanager
def _timed(event: str) -> Iterator[None]:
    """Told to the listeners of jax.monitoring, as jax tells them what compiling takes."""
    started = time.perf_counter()
    yield
    jax.monitoring.record_event_duration_secs(event, time.perf_counter() - started)


@contextlib.contextmanager
def _told(event: str) -> Iterator[list[str]]:
    """The events of this name meanwhile."""
    seen: list[str] = []

    def listen(told: str, **_: Any) -> None:
        if told == event:
            seen.append(told)

    jax.monitoring.register_event_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_listener(listen)


def _read(file: Path, args: tuple) -> Compiled | None:
    try:
        content = file.read_bytes()
    except OSError:
        return None
    if hashlib.blake2b(content[DIGEST:], digest_size=DIGEST).digest() != content[:DIGEST]:
        log.warning("executable %s is damaged; compiling it again", file)
        return None
    executable, results = pickle.loads(content[DIGEST:])
    trees = jax.tree.structure((args, {})), jax.tree.structure(results)
    return serialize_executable.deserialize_and_load(executable, *trees)


def _write(file: Path, made: Compiled) -> None:
    try:
        executable, _, tree = serialize_executable.serialize(made)
    except (ValueError, NotImplementedError):  # holds arrays of its own, or the platform cannot
        return
    content = pickle.dumps((executable, jax.tree.unflatten(tree, range(tree.num_leaves))))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent)
        with os.fdopen(handle, "wb") as out:
            out.write(hashlib.blake2b(content, digest_size=DIGEST).digest() + content)
        os.replace(temporary, file)
    except OSError as error:
        log.warning("cannot keep an executable in %s: %s", file.parent, error.strerror or error)


def _settings() -> list[tuple[str, str]]:
    """jax's, but for where it keeps things."""
    return sorted((name, repr(value)) for name, value in jax.config.values.items() if "cache" not in name)


@functools.cache
def _surroundings() -> tuple:
    device = jax.devices()[0]
    code = hashlib.blake2b(digest_size=16)
    package = Path(__file__).parents[1]
    for path in sorted(path for part in PARTS for path in (package / part).rglob("*.py")):
        code.update(f"{path.relative_to(package)} {path.stat().st_size}\n".encode() + path.read_bytes())
    versions = tuple(importlib.metadata.version(name) for name in LIBRARIES)
    about = device.platform, device.device_kind, jax.device_count(), device.client.platform_version
    return code.hexdigest(), versions, about, _processor(), os.environ.get("XLA_FLAGS")


def _processor() -> tuple[str, ...]:
    """Of the host: XLA compiles for its instructions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text() if info.exists() else ""
    return tuple(sorted(set(re.findall(r"^(?:model name|flags|Features)\s*:.*$", lines, re.MULTILINE))))
