"""The layout of the repository: which folder may import which, what is packaged, how files are called."""

import ast
import re
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = ("scaling", "train", "eval", "launch")  # imports follow the data; never back
MAY_IMPORT = {
    package: {"scaling", "train", "eval", "launch"} - set(ORDER[i + 1 :]) for i, package in enumerate(ORDER)
}
MAY_IMPORT["launch"] |= {"configs"}
MAY_IMPORT["configs"] = {"scaling", "train", "eval", "configs"}
BANNED_NAMES = {"utils", "util", "helpers", "helper", "misc", "common"}
SOURCES = [path for package in MAY_IMPORT for path in sorted((ROOT / package).rglob("*.py"))]
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(source: str) -> list[str]:
    """Dotted names that a module imports, anywhere in it; relative ones keep their leading dots."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            names += [f"{base}.{alias.name}" for alias in node.names]
    return names


def wrong_imports(source: str, package: str) -> list[str]:
    """Imports in a module of `package` that run against the order of the packages."""
    ours = [name.split(".") for name in imports(source) if name.startswith("wane.")]
    return [".".join(parts) for parts in ours if parts[1] not in MAY_IMPORT[package]]


def bare_imports(source: str) -> list[str]:
    """Imports of our packages past the import root `wane`, which would make a second copy of the module."""
    return [name for name in imports(source) if name.split(".")[0] in MAY_IMPORT]


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_follow_the_data(path):
    source = path.read_text()
    assert wrong_imports(source, path.relative_to(ROOT).parts[0]) == []
    assert [name for name in imports(source) if name.startswith(".")] == []


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ("scaling", "from wane.train import loop"),
        ("scaling", "def f():\n    import wane.eval.record"),
        ("train", "from wane import eval"),
        ("eval", "from wane.launch.cli import main"),
        ("eval", "import wane.configs"),
        ("configs", "from wane.launch import cli"),
    ],
)
def test_an_import_against_the_order_would_be_found(package, line):
    assert wrong_imports(line, package)


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=name_of)
def test_our_packages_are_imported_through_wane(path):
    assert bare_imports(path.read_text()) == []


@pytest.mark.parametrize(
    "line", ["import train", "from scaling.shape import Shape", "from eval import record"]
)
def test_a_bare_import_would_be_found(line):
    assert bare_imports(line)


def test_only_the_model_knows_the_module_library():
    users = {name_of(p) for p in SOURCES if any(n.split(".")[0] == "flax" for n in imports(p.read_text()))}
    assert users == {"scaling/model.py"}


def test_the_package_map_is_what_is_on_disk():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    on_disk = {
        str(path.parent.relative_to(ROOT))
        for package in MAY_IMPORT
        for path in (ROOT / package).rglob("*.py")
    }
    assert set(setuptools["package-dir"].values()) == on_disk
    assert set(setuptools["packages"]) == set(setuptools["package-dir"])
    for package, folder in setuptools["package-dir"].items():
        assert package == "wane." + folder.replace("/", ".")
        assert (ROOT / folder / "__init__.py").is_file()
        assert (ROOT / folder / "py.typed").is_file()


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=name_of)
def test_no_file_is_a_drawer_for_leftovers(path):
    words = {word for part in path.relative_to(ROOT).parts for word in re.split(r"[_.]", part)}
    assert words & BANNED_NAMES == set()


def test_the_imports_that_the_readme_shows_exist():
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert [name for block in code for name in bare_imports(block)] == []
    shown = {name for block in code for name in imports(block) if name.startswith("wane")}
    assert [name for name in sorted(shown) if not importable(name)] == []


def importable(name: str) -> bool:
    """Whether a dotted name is a module, or a name in one."""
    try:
        if find_spec(name) is not None:
            return True
    except ModuleNotFoundError:
        pass
    module, _, attribute = name.rpartition(".")
    return hasattr(__import__(module, fromlist=[attribute]), attribute)


def test_importable_knows_what_exists():
    assert importable("wane.scaling.shape")
    assert importable("wane.scaling.shape.Shape")
    assert not importable("wane.scaling.shape.Nothing")
