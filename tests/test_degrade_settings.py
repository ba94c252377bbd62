"""Methods by name: what `build` accepts, what `describe` shows."""

import inspect
from pathlib import Path

import pytest
from degrade_cases import SHAPES

from wane.launch.listing import show_methods
from wane.scaling.degrade import GROUPS, METHODS, build, describe
from wane.scaling.degrade.contract import severity_of

ROOT = Path(__file__).parents[1]
SHAPE = SHAPES["mha-swiglu"]

BAD = [
    ("random_weight", {}, "did you mean random_weights"),
    ("rtn", {"symetric": True}, "did you mean symmetric"),
    ("rtn", {"symmetric": 1}, "rtn.symmetric = 1"),
    ("rtn", {"group_size": "8"}, "rtn.group_size = '8'"),
    ("rtn", {"group_size": -1}, "group_size = -1"),
    ("rtn", {"group_size": 5}, "group_size = 5: must divide the 16 inputs of matrix q"),
    ("gaussian_noise", {"match": "rtn", "group_size": 16}, "must divide the 24 inputs of matrix down"),
    ("random_heads", {"group": "row"}, "random_heads.group = 'row'"),
    ("magnitude_weights", {"normalise": True}, "normalise = True"),
    ("remove_layers", {"order": "middle"}, "'random' or 'first' or 'last'"),
]


@pytest.mark.parametrize(("name", "settings", "words"), BAD)
def test_a_wrong_name_or_value_is_one_line(name, settings, words):
    with pytest.raises(ValueError, match=words) as error:
        build(name, SHAPE, settings=settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_described_as_it_is_built(name):
    about, built = describe(name), build(name, SHAPES["moe"] if name in GROUPS["Routing"] else SHAPE)
    assert built.name == name
    assert about.summary.endswith(".")
    assert about.summary == inspect.getdoc(METHODS[name]).splitlines()[0]
    assert {key: setting.default for key, setting in about.settings.items()} == dict(built.settings)
    assert (about.built.unit, about.built.severities) == (built.unit, built.severities)
    assert about.text == inspect.getdoc(METHODS[name])
    severities = [severity_of(setting, built.unit) for setting in built.severities]
    assert severities == sorted(severities)
    assert severities[0] == 0
    assert all(str(setting) for setting in about.settings.values())


def test_settings_reach_the_method():
    assert dict(build("rtn", SHAPE, settings={"group_size": 8}).settings) == {
        "symmetric": True,
        "group_size": 8,
        "per_tensor": False,
        "convention": "gptq",
        "mse": False,
    }
    assert build("gaussian_noise", SHAPE).unit == "sigma"
    assert build("gaussian_noise", SHAPE, settings={"match": "rtn"}).unit == "bits"
    assert not build("remove_layers", SHAPE, settings={"order": "first"}).random


def test_the_page_of_all_methods_is_what_the_command_prints(capsys):
    show_methods("methods", None)
    assert (ROOT / "docs" / "methods.md").read_text() == capsys.readouterr().out


def test_the_page_says_of_every_method_where_it_comes_from_or_what_it_does(capsys):
    show_methods("methods", "gptq")
    text = capsys.readouterr().out
    for words in (
        "Frantar",
        "| group_size | `0` | whole number |",
        "learns from calibration sequences",
        "Cost:",
    ):
        assert words in text
    with pytest.raises(ValueError, match="only `list methods` takes it"):
        show_methods("tasks", None)
