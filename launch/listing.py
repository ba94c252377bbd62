"""What `wane list` prints."""

import dataclasses
import inspect

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from wane.eval import pairs
from wane.eval.columns import COLUMNS
from wane.eval.examine import EXAMINATIONS
from wane.eval.metrics import INSTRUMENTS
from wane.launch.studies import description, names
from wane.scaling.config import close_matches
from wane.scaling.degrade import GROUPS, METHODS, describe
from wane.scaling.degrade.settings import Description
from wane.train.data import TASKS, sample
from wane.train.data.graded import CATEGORIES
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
    grid = " ".join(f"{value:g}" for value in about.built.severities)
    return about.summary, settings, about.built.unit, grid


def show_methods(what: str, name: str | None) -> None:
    """Print all methods, group by group, or one, as Markdown.  Raises ValueError for another list."""
    if what != "methods":
        raise ValueError(f"--verbose: only `list methods` takes it, not `list {what}`")
    if name is not None:
        print(_method_text(name, describe(name)))
        return
    print("# Degradation methods\n\nWritten by `wane list methods --verbose`.")
    for group, methods in GROUPS.items():
        about = {name: describe(name) for name in methods}
        print(f"\n## {group}\n\n| method | what it does | severity | default grid |\n|---|---|---|---|")
        for name, a in about.items():
            grid = " ".join(f"{value:g}" for value in a.built.severities)
            print(f"| [{name}](#{name}) | {_cell(a.summary)} | {a.built.unit} | {grid} |")
        for name, a in about.items():
            print(_method_text(name, a))


def _cell(value: object) -> str:
    return str(value).replace("|", r"\|")


def _method_text(name: str, about: Description) -> str:
    """One method as Markdown: docstring, settings, what it needs and promises."""
    built, promises = about.built, about.built.promises
    identity = "the same bits" if promises.identity == 0 else f"logits within {promises.identity:g}"
    facts = {
        "random: one realisation per draw": built.random,
        "learns from calibration sequences": built.needs_calibration,
        "block after block, each on the degraded ones before it": built.sequential,
        "nested in severity": promises.nested,
        "exact counts": promises.exact_count,
        f"severity 0: {identity}": True,
    }
    rows = [f"\n### {name}\n\n{about.text}\n"]
    if about.settings:
        rows += ["| setting | default | allowed |", "|---|---|---|"]
        rows += [
            f"| {n} | `{s.default}` | {str(s).replace('|', chr(92) + '|')} |"
            for n, s in about.settings.items()
        ]
        rows.append("")
    return "\n".join([*rows, "; ".join(fact for fact, holds in facts.items() if holds) + "."])


def _metrics():
    in_cells_of_their_own = {"Study.pairs": pairs.METRICS}
    return ("instrument", "metric", "unit", "better", "meaning"), [
        (instrument, m.name, m.unit, m.better, m.meaning)
        for instrument, metrics in (INSTRUMENTS | in_cells_of_their_own).items()
        for m in metrics
    ]


def _examinations():
    columns = ("examination", "what it does", "settings", "metrics", "source")
    return columns, [
        (name, e.meaning, "\n".join(f"{f.name} = {f.default}" for f in dataclasses.fields(e.settings)),
         "\n".join(f"{m.name} [{m.unit}]: {m.meaning}" for m in e.metrics), e.source)
        for name, e in EXAMINATIONS.items()
    ]  # fmt: skip


def _tasks():
    columns = ("category", "task", "mixed", "what it asks", "scored", "knobs", "chance", "ceiling")
    return columns, [
        (
            category,
            t.name,
            "yes" if t.mixed else "",
            t.title,
            t.scored,
            t.knobs,
            f"{t.chance:.3g}",
            f"{t.ceiling:.3g}",
        )
        for category, names in CATEGORIES.items()
        for t in map(TASKS.__getitem__, names)
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
    "studies": _studies, "methods": _methods, "metrics": _metrics, "examinations": _examinations,
    "tasks": _tasks, "data": _data, "columns": _columns,
}  # fmt: skip
