"""What is learnt, and in how many tokens: the competence gate along training."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from wane.eval import competence, summary
from wane.eval.curves import load_curves

BOUNDS = ["value", "chance", "ceiling"]
KEYS = ["group", "member_id", "task", "train_tokens"]


def learned_in(source: Path, score: float, share: float, csv: Path | None = None) -> str:
    """The table in Markdown of a study directory, or of a file of `accuracies`, which `csv` writes.
    Raises ValueError or OSError in one line when there is nothing to read, or no task with known bounds."""
    rows = pd.read_csv(source) if source.suffix == ".csv" else accuracies(load_curves(source))
    if missing := {*KEYS, *BOUNDS} - set(rows):
        raise ValueError(
            f"{source}: has no columns {', '.join(sorted(missing))}; `wane learned DIR --csv` writes them"
        )
    if rows.empty:
        raise ValueError(
            f"{source}: no accuracy of a task with known chance and ceiling; run a study of graded tasks"
        )
    if csv:
        rows.to_csv(csv, index=False, float_format="%.6g")
    return learned_text(learned(rows, score=score, share=share))


def accuracies(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of every undegraded member at every measured step, of tasks with known bounds.

    Columns: group (shape and arm), member_id, task, train_tokens, value, chance, ceiling; weakest and
    weakest_score, its weakest part (`wane.eval.competence`), where levels were measured.
    """
    table = competence.with_parts(table, summary.untouched(table))
    rows = table[table["metric"] == "accuracy"]
    rows = rows[rows["axis"].isna() & summary.untouched(rows) & (rows["pruned"] == "never")]
    rows = rows[(rows["status"] == "ok") & rows["chance"].notna() & rows["ceiling"].notna()]
    return (
        rows.assign(group=summary.groups(rows))
        .groupby(KEYS, sort=False)
        .agg(dict.fromkeys(BOUNDS, "mean") | {competence.WEAKEST: "first", competence.WEAKEST_SCORE: "mean"})
        .reset_index()
    )


def learned(rows: pd.DataFrame, *, score: float, share: float) -> pd.DataFrame:
    """When each task passes the gate (`competence.gate`) for good: the tokens at the first measured step from which
    on every later one passes too; nan where the last does not, and the task cannot be assessed.

    rows: of `accuracies`.  Columns: task, group, tokens, and of the last step chance, ceiling, accuracy, score,
    weakest, passing, seeds, assessable; in the order of the rows.  A step that some seed of the group lacks is left
    out.
    """
    along = competence.gate(rows, ["task", "group", "train_tokens"], score=score, share=share)
    places = [rows[name].unique() for name in ("task", "group")]
    seeds = rows.groupby("group")["member_id"].nunique()
    along = along[along["seeds"] == along["group"].map(seeds)].sort_values("train_tokens")
    found = along.groupby(["task", "group"], sort=False).tail(1).set_index(["task", "group"])
    for place, steps in along.groupby(["task", "group"]):
        failed = steps.loc[~steps["assessable"], "train_tokens"].max()  # nan where every step passes
        after = steps[~(steps["train_tokens"] <= failed)]
        found.loc[place, "tokens"] = after["train_tokens"].min()
    in_order = [pair for pair in pd.MultiIndex.from_product(places) if pair in found.index]
    return found.drop(columns="train_tokens").loc[in_order].reset_index()


def learned_text(found: pd.DataFrame) -> str:
    """The table in Markdown: tasks down, groups across; tokens until the gate is passed, and the normalised
    score at the end, in brackets, and the weakest part of a task that cannot be assessed."""
    headers, *lines = learned_cells(found, list(dict.fromkeys(found["group"])))
    rule = ["---", *["---:"] * (len(headers) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (headers, rule, *lines))


def learned_cells(found: pd.DataFrame, groups: Sequence[str]) -> list[list[str]]:
    """The header, then a row per task: chance, ceiling and a cell for each of the groups."""
    lines = [["task", "chance", "ceiling", *groups]]
    for task, part in found.groupby("task", sort=False):
        cells = part.set_index("group")
        line = [str(task), f"{part['chance'].mean():.3g}", f"{part['ceiling'].mean():.3g}"]
        lines.append(line + [_cell(cells.loc[group]) if group in cells.index else "" for group in groups])
    return lines


def _cell(cell: pd.Series) -> str:
    score = f"{cell['score']:.2f}"
    if cell["assessable"]:
        return f"{cell['tokens'] / 1e6:.3g}M ({score})"
    part = cell["weakest"] if cell["weakest"] != competence.POOLED else ""
    return f"not assessable ({', '.join(filter(None, (score, part)))})"
