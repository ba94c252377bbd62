"""Find a study: by its name in `wane.configs`, or in the user's own file."""

import importlib
import importlib.util
import pkgutil
from collections.abc import Sequence
from pathlib import Path

import wane.configs
from wane.eval.degrade import Degrade
from wane.eval.study import Study
from wane.scaling.config import close_matches, override, parse


def names() -> list[str]:
    """Names of the studies that come with the package."""
    return sorted(module.name for module in pkgutil.iter_modules(wane.configs.__path__))


def load_study(name: str, assignments: Sequence[str] = ()) -> Study:
    """The study of a name or of a Python file that defines STUDY, with FIELD=VALUE overrides applied.

    Raises ValueError in one line for an unknown name, a file without STUDY, or an override that does not fit.
    """
    study = _from_file(Path(name)) if name.endswith(".py") or "/" in name else _from_name(name)
    # reads every field anew, so types in a study file are checked too
    return override(study, _pairs(assignments, "--set train.lr=0.002"))


def degrade_of(method: str, assignments: Sequence[str], setting: float, calibration: str) -> Degrade:
    """One method at one severity, from SETTING=VALUE texts.  Raises ValueError in one line."""
    pairs = {name: parse(value) for name, value in _pairs(assignments, "--set group=row").items()}
    return Degrade(method=method, settings=pairs, severities=(setting,), calibration=calibration)


def _pairs(assignments: Sequence[str], example: str) -> dict[str, str]:
    pairs = {}
    for text in assignments:
        field, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set {text}: must be NAME=VALUE, such as {example}")
        pairs[field.strip()] = value.strip()
    return pairs


def description(name: str) -> str:
    """First line of a study's docstring."""
    return (importlib.import_module(f"wane.configs.{name}").__doc__ or "").strip().split("\n")[0]


def _from_name(name: str) -> Study:
    if name not in names():
        known = ", ".join(names())
        raise ValueError(
            f"study {name!r} is not known{close_matches(name, names())}: there are {known};"
            " or give the path of a .py file"
        )
    return importlib.import_module(f"wane.configs.{name}").STUDY


def _from_file(path: Path) -> Study:
    if not path.is_file():
        raise ValueError(f"study file {path}: there is no such file; `wane list studies` shows the names")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"study file {path}: {type(error).__name__}: {error}") from error
    study = getattr(module, "STUDY", None)
    if not isinstance(study, Study):
        raise ValueError(f"study file {path}: must define STUDY = Study(...)")
    return study
