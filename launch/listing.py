"""What `wane list` prints."""

import inspect

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from wane.eval.columns import COLUMNS
from wane.eval.measure import METRICS
from wane.launch.studies import description, names
from wane.scaling.config import close_matches
from wane.scaling.degrade import METHODS, describe
from wane.train.data import TASKS, sample
from wane.train.data.spec import FORMS


def show(what: str, name: str | None, console: Console) -> None:
    """Print one list.  name: a task to sample or a method to explain.  Raises ValueError for an unknown one."""
    if name is not None:
        known = {"tasks": TASKS, "methods": METHODS}.get(what)
        if known is None:
            raise ValueError(f"--show {name}: only `list tasks` and `list methods` take it")
        if name not in known:
            raise ValueError(
                f"--show {name}: not one of the {what}{close_matches(name, known)}: {', '.join(known)}"
            )
        text = sample(name, 0, 129) if what == "tasks" else inspect.getdoc(METHODS[name])
        console.print(text, highlight=False, markup=False)
        return
    columns, rows = LISTS[what]()
    table = Table(*columns, show_lines=False)
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)


def _studies():
    return ("study", "what it measures"), [(name, description(name)) for name in names()]


def _methods():
    columns = ("method", "what it removes", "settings (default first)", "severity", "default grid")
    return columns, [(name, *_method_row(describe(name))) for name in METHODS]


def _method_row(about) -> tuple[str, str, str, str]:
    settings = "\n".join(f"{name} = {s.default}  ({s})" for name, s in about.settings.items())
    grid = " ".join(f"{value:g}" for value in about.severities)
    return about.summary, settings, about.unit, grid


def _metrics():
    return ("metric", "unit", "better", "meaning"), [
        (m.name, m.unit, m.better, m.meaning) for m in METRICS.values()
    ]


def _tasks():
    return ("task", "what it asks", "scored", "knobs", "chance", "ceiling"), [
        (t.name, t.title, t.scored, t.knobs, f"{t.chance:.3g}", f"{t.ceiling:.3g}") for t in TASKS.values()
    ]


def _data():
    meanings = {
        "graded": "the synthetic task language, generated on the fly",
        "python": "the standard library's source of the running interpreter",
        "text:PATH|GLOB": "any UTF-8 text files",
        "tfds:NAME[/CONFIG][:VERSION]": "a TensorFlow Datasets text set, read without TensorFlow",
    }
    return ("source", "what it is"), [(form, meanings[form]) for form in FORMS.split(", ")]


def _columns():
    return ("column", "type", "unit", "meaning"), [(c.name, str(c.type), c.unit, c.meaning) for c in COLUMNS]


LISTS = {
    "studies": _studies, "methods": _methods, "metrics": _metrics,
    "tasks": _tasks, "data": _data, "columns": _columns,
}  # fmt: skip
