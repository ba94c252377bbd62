"""The competence gate: whether a task is known so well that what a degradation takes of it means something.

The normalised score is (accuracy - chance) / (ceiling - chance).  Over all answers of a task together it can be
high without the skill that makes the task the task: who never looks for the trigger is right in 9 of 10 items of B,
and who can take one written step knows most products of M3.  So the score of a task is that of its weakest part
(`Task.part`), each with the chance and ceiling of its own levels: the four cells of X have two ceilings.  Levels
where nothing can be shown, because chance is the ceiling (0 hops of M1), or whose ceiling nobody knows (the first
symbols under a hidden topic of G), are of no part.  Where a table has no `accuracy_by_level` of a task with parts,
the score is that of all answers, and the gate says so.
"""

import pandas as pd

from wane.train.data import TASKS

WEAKEST, WEAKEST_SCORE = "weakest", "weakest_score"  # of the parts of a task: its name and its score
POOLED = "all parts together"
MEMBER = ["member_id", "train_step", "evaluation_digest", "task"]


def weakest_parts(levels: pd.DataFrame) -> pd.DataFrame:
    """Name and score of the weakest part, by MEMBER, from rows of accuracy_by_level of undegraded models."""
    levels = levels[(levels["ceiling"] > levels["chance"]) & levels["task"].map(has_parts).astype(bool)]
    part = [TASKS[task].part(int(level)) for task, level in zip(levels["task"], levels["at"], strict=True)]
    told, room = (levels[column] - levels["chance"] for column in ("value", "ceiling"))
    sums = levels.assign(**{WEAKEST: part}, told=told * levels["count"], room=room * levels["count"])
    sums = sums.groupby([*MEMBER, WEAKEST])[["told", "room"]].sum()
    scores = (sums["told"] / sums["room"]).rename(WEAKEST_SCORE).reset_index(WEAKEST)
    return scores.sort_values(WEAKEST_SCORE, kind="stable").groupby(level=MEMBER).head(1)


def has_parts(task: str) -> bool:
    return task in TASKS and TASKS[task].part is not None


def with_parts(table: pd.DataFrame, untouched: pd.Series) -> pd.DataFrame:
    """The curve table with the columns WEAKEST and WEAKEST_SCORE: of rows of accuracy of undegraded models, where
    levels were measured; nan elsewhere.  untouched: which rows are of such models."""
    if WEAKEST in table:
        return table
    measured = untouched & (table["status"] == "ok")
    found = weakest_parts(table[measured & (table["metric"] == "accuracy_by_level")])
    found = table[MEMBER].join(found, on=MEMBER)[[WEAKEST, WEAKEST_SCORE]]
    asked = measured & (table["metric"] == "accuracy") & table["axis"].isna()
    return table.assign(**{name: found[name].where(asked) for name in found})


def gate(rows: pd.DataFrame, by: list[str], *, score: float, share: float) -> pd.DataFrame:
    """The competence gate of rows of accuracy, for each of `by`: a seed passes when its score is at least `score`;
    a task is assessable when a `share` of the seeds passes.  rows: with WEAKEST and WEAKEST_SCORE, if levels were
    measured.

    Columns: by, chance, ceiling and accuracy of all answers, score (means over seeds), weakest (the part that the
    seed of the lowest score is weakest in, "" where a task is one), passing, seeds, assessable.
    """
    rows = rows[(rows["ceiling"] - rows["chance"]) > 0]
    pooled = (rows["value"] - rows["chance"]) / (rows["ceiling"] - rows["chance"])
    known = rows.reindex(columns=[WEAKEST, WEAKEST_SCORE])
    normalised = known[WEAKEST_SCORE].fillna(pooled).astype(float)
    undivided = rows["task"].map(has_parts).map({True: POOLED, False: ""})
    weakest = known[WEAKEST].where(known[WEAKEST_SCORE].notna(), undivided)
    rows = rows.assign(score=normalised, passing=normalised >= score, **{WEAKEST: weakest})
    found = (
        rows.sort_values("score", kind="stable")
        .groupby(by)
        .agg(
            chance=("chance", "mean"),
            ceiling=("ceiling", "mean"),
            accuracy=("value", "mean"),
            score=("score", "mean"),
            weakest=(WEAKEST, "first"),
            passing=("passing", "sum"),
            seeds=("passing", "size"),
        )
    )
    found["assessable"] = found["passing"] >= share * found["seeds"] - 1e-9  # 4 of 5 is 80 %, also in floats
    return found.reset_index()
