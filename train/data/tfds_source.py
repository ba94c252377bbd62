"""Text of TensorFlow Datasets, read through random access (array_record) without TensorFlow."""

import hashlib
import importlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from wane.train.data.spec import Data

CHUNK = 1024  # examples read at once


def open_tfds(name: str, config: Data) -> tuple[str, Callable[[], Iterable[bytes]]]:
    """The digest and the documents of `NAME[/CONFIG][:VERSION]`: one per example, the text of
    `data.tfds_feature` in the split `data.tfds_split`.  Prepares the data set when it is not, which may
    download it.  Raises ValueError in one line, within seconds when there is no network."""
    builder = prepared(name, config.tfds_data_dir)
    if config.tfds_feature not in builder.info.features:
        known = ", ".join(builder.info.features)
        raise ValueError(f"data.tfds_feature = {config.tfds_feature!r}: {name} has {known}")
    try:
        examples = builder.as_data_source(split=config.tfds_split)
    except (ValueError, KeyError):
        known = ", ".join(builder.info.splits)
        raise ValueError(
            f"data.tfds_split = {config.tfds_split!r}: {name} has {known}, and parts such as 'train[:10%]'"
        ) from None

    def documents() -> Iterator[bytes]:
        for start in range(0, len(examples), CHUNK):
            indices = list(range(start, min(start + CHUNK, len(examples))))
            for example in examples.__getitems__(indices):
                if text := _text(example[config.tfds_feature], name, config.tfds_feature):
                    yield text

    return _digest(builder, config), documents


def prepared(name: str, data_dir: str | None):
    """A builder whose data set is on disk as array_record."""
    tfds = _import_tfds()
    at = f"data.tfds_data_dir = {data_dir}"
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except Exception as error:  # TFDS raises ValueError, AssertionError, KeyError and more for a wrong name
        raise ValueError(_why_not(tfds, name, data_dir, error)) from None
    if builder.is_prepared():
        return builder
    try:
        with _few_retries():
            builder.download_and_prepare()
    except ImportError as error:
        raise ValueError(
            f"data.sources: tfds:{name} is not prepared in {at}, and building it needs the module "
            f"{error.name!r}; prepare it once where that is installed and copy the folder"
        ) from None
    except Exception as error:
        raise ValueError(
            f"data.sources: tfds:{name} is not prepared in {at} and could not be downloaded "
            f"({type(error).__name__}: {_first_line(error)}); prepare it where there is a network, "
            "and copy the folder"
        ) from None
    return builder


def _import_tfds():
    try:
        tfds = importlib.import_module("tensorflow_datasets")
        importlib.import_module("tensorflow_datasets.text")  # or wiki40b and wikipedia are not found
    except ImportError as error:
        raise ValueError(
            f"data.sources: a tfds source needs the module {error.name!r}; "
            "pip install tensorflow-datasets importlib_resources array_record"
        ) from None
    return tfds


def _why_not(tfds, name: str, data_dir: str | None, error: Exception) -> str:
    try:
        other = tfds.builder(name, data_dir=data_dir)
        if other.is_prepared():
            return (
                f"data.sources: tfds:{name} is prepared as {other.info.file_format.value}, which has no random "
                f"access; run: tfds convert_format --dataset_version_dir={other.data_path} "
                "--out_file_format=array_record"
            )
    except Exception:  # the first error says it all
        pass
    why = _first_line(error)
    return f"data.sources: tfds:{name} cannot be opened: {why}; the form is tfds:NAME[/CONFIG][:VERSION]"


@contextmanager
def _few_retries() -> Iterator[None]:
    """Without a network TFDS retries silently for 204 s."""
    downloader: Any = importlib.import_module("tensorflow_datasets.core.download.downloader")
    before, downloader.MAX_RETRIES = downloader.MAX_RETRIES, 1
    try:
        yield
    finally:
        downloader.MAX_RETRIES = before


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _text(value: object, name: str, feature: str) -> bytes:
    content = value.encode() if isinstance(value, str) else value
    if not isinstance(content, bytes):
        raise ValueError(f"data.tfds_feature = {feature!r}: not text in {name}; name a text feature")
    try:
        content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"data.sources: tfds:{name} has an example that is not UTF-8 at byte {error.start} of {feature!r}"
        ) from None
    return content


def _digest(builder, config: Data) -> str:
    """Of what is on disk (name, version, shards and their sizes), which is cheap for any size of data set."""
    shards = sorted((path.name, path.stat().length) for path in builder.data_path.iterdir())
    seen = (builder.info.full_name, shards, config.tfds_split, config.tfds_feature)
    return hashlib.blake2b(repr(seen).encode(), digest_size=16).hexdigest()
