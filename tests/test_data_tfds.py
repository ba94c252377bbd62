"""TensorFlow Datasets: a real data set, built here as array_record and read back without TensorFlow."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from wane.eval import load_curves
from wane.launch.run import run_study
from wane.launch.studies import load_study
from wane.train.data import Data, open_data
from wane.train.data.packed import is_held_out


def text(i):
    return f"Example number {i}: é " + "lorem ipsum " * (i % 7 + 3)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    import tensorflow_datasets as tfds

    class WaneExample(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"text": tfds.features.Text(), "number": tfds.features.Scalar(dtype=np.int32)}
            features = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, description="An example.", features=features)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(200), "test": self._generate_examples(5)}

        def _generate_examples(self, count):
            for i in range(count):
                yield i, {"text": text(i) if i else "", "number": i}

    folder = tmp_path_factory.mktemp("tfds")
    WaneExample.pkg_dir_path = folder
    WaneExample(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WANE_CACHE", str(tmp_path / "cache"))


def stream(data_dir, name="wane_example", **fields):
    config = Data(**({"sources": f"tfds:{name}", "tfds_data_dir": str(data_dir), "context": 32} | fields))
    return open_data(config, steps=10, batch_size=4)


def test_examples_are_documents(data_dir):
    data = stream(data_dir)
    train = np.array(data.sources[0].packed.train)
    documents = bytes(np.where(train == 256, 0, train).astype(np.uint8)).decode().split("\0")[:-1]
    expected = [text(i) for i in range(1, 200) if not is_held_out(text(i).encode(), 0.1)]
    assert sorted(documents) == sorted(expected)
    assert data.batch(0, 0).shape == (4, 33)
    assert data.describe()["sources"][0]["train documents"] == len(expected)
    assert stream(data_dir).digest == data.digest


def test_a_study_trains_on_it_and_measures_nats_per_byte(data_dir, tmp_path):
    study = load_study(
        str(Path(__file__).parent / "studies" / "tiny.py"),
        ["data.sources=tfds:wane_example", f"data.tfds_data_dir={data_dir}", "data.task_shares=none",
         "family.depths=1", "seeds=0", "arms=[]", "sweep_steps=[]", "train.lr=0.05"],
    )  # fmt: skip
    run_study(study, tmp_path / "study", ("train", "sweep"), Console(quiet=True))
    curves = load_curves(tmp_path / "study")
    assert set(curves.task) == {"all", "tfds:wane_example"}
    undegraded = (
        curves[(curves.severity == 0) & (curves.method == "magnitude_weights")].set_index("metric").value
    )
    assert undegraded["loss_per_byte"] < 0.9 * np.log(257), "it has learnt from the text"
    assert undegraded["kl"] == 0


def test_version_and_part_of_a_split(data_dir):
    data = stream(data_dir, "wane_example:1.0.0", tfds_split="train[:50%]")
    documents = data.sources[0].packed.documents
    assert 80 < documents["train"] + documents["held_out"] <= 100
    assert stream(data_dir).digest != data.digest


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tfds_split": "valid"}, "data.tfds_split = 'valid': wane_example has train, test"),
        ({"tfds_feature": "body"}, "data.tfds_feature = 'body': wane_example has text, number"),
        ({"tfds_feature": "number"}, "data.tfds_feature = 'number': not text in wane_example"),
        ({"name": "no_such_set"}, "tfds:no_such_set cannot be opened: Dataset no_such_set not found"),
        ({"name": "wiki40b/xx"}, "tfds:wiki40b/xx cannot be opened"),
        ({"name": "tiny_shakespeare:9.9.9"}, "tfds:tiny_shakespeare:9.9.9 cannot be opened"),
    ],
)
def test_wrong_names_are_one_line(data_dir, fields, message):
    with pytest.raises(ValueError, match=message) as error:
        stream(data_dir, **fields)
    assert "\n" not in str(error.value)


def test_tfrecord_names_the_conversion_command(data_dir, tmp_path):
    folder = tmp_path / "wane_example" / "1.0.0"
    folder.mkdir(parents=True)
    for path in (data_dir / "wane_example" / "1.0.0").iterdir():
        content = path.read_bytes()
        if path.name == "dataset_info.json":
            info = json.loads(content) | {"fileFormat": "tfrecord"}
            content = json.dumps(info).encode()
        (folder / path.name.replace("array_record", "tfrecord")).write_bytes(content)
    command = (
        f"is prepared as tfrecord.*tfds convert_format --dataset_version_dir={folder} --out_file_format=array"
    )
    with pytest.raises(ValueError, match=command) as error:
        stream(tmp_path)
    assert "\n" not in str(error.value)


def test_absent_set_without_network_fails_at_once(tmp_path, monkeypatch):
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # refuses: the test never reaches a network
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    start = time.monotonic()
    with pytest.raises(ValueError, match="is not prepared in .* and could not be downloaded") as error:
        stream(tmp_path, "tiny_shakespeare")
    assert time.monotonic() - start < 20
    assert "\n" not in str(error.value)


def test_set_that_needs_a_missing_module_names_it(tmp_path):
    with pytest.raises(ValueError, match="building it needs the module '(apache_beam|tensorflow)'"):
        stream(tmp_path, "wiki40b/en")


def test_missing_importlib_resources_is_named(data_dir, monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name="importlib_resources")

    monkeypatch.setattr("wane.train.data.tfds_source.importlib.import_module", absent)
    with pytest.raises(ValueError, match="needs the module 'importlib_resources'; pip install"):
        stream(data_dir)
