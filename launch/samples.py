"""`wane samples`: what a trained member says, undegraded and at every severity, in words."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from wane.eval.degrade import Degrade
from wane.eval.members import read_json
from wane.eval.rows import degrade_columns
from wane.eval.samples import continuations, samples_text, told
from wane.launch.directory import write_json
from wane.launch.members import trained_member
from wane.train.data import Stream, vocabulary
from wane.train.data.source import TextSource

RECORD = "samples.json"


def samples_in(
    directory: Path,
    member: str,
    degradations: Sequence[Degrade],
    draw: int,
    tasks: Sequence[str],
    prompts: int,
    temperature: float = 0.0,
) -> str:
    """Markdown tables of continuations behind the first halves of evaluation sequences; `wane report` shows them
    too, from samples.json of the directory, where they take the place of those of the same member, degradation,
    draw and temperature.

    degradations: one severity each, else alike.  tasks: whose sequences, () for all; prompts: of each.
    temperature: 0, greedy, or more.  Raises ValueError in one line for a member or a task that is not there, for a
    temperature that is none, and where no severity is given.
    """
    found = trained_member(directory, member)
    evaluation = found.plan.splits.evaluation
    known = [task.name for task in evaluation.tasks]
    if prompts < 1 or not degradations:
        raise ValueError("--prompts, --severities: must be at least one")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"--temperature = {temperature}: must be 0 (greedy) or more")
    if unknown := [name for name in tasks if name not in known]:
        raise ValueError(f"--task = {unknown[0]}: not of this study; choose from {', '.join(known)}")
    edits = {degrade.severities[0]: found.edit(degrade, draw) for degrade in degradations}
    by_task = {}
    for task, name in enumerate(known):
        if name in (tasks or known):
            tokens_BT = evaluation.tokens_NT[evaluation.task_N == task][:prompts]
            begun = tokens_BT[:, : tokens_BT.shape[1] // 2]
            said = continuations(found.shape, found.params, edits, begun, temperature=temperature)
            by_task[name] = told(said, partial(words, found.stream, task))
    columns = degrade_columns(degradations[0], found.shape)
    degradation = " ".join(str(columns[name]) for name in ("method", "scope", "settings"))
    about = f"{degradation}, draw {draw}" + (f", temperature {temperature:g}" if temperature else "")
    entry = {"member": found.id, "degradation": about, "tasks": by_task}
    recorded = read_json(directory / RECORD) | {f"{entry['member']} {entry['degradation']}": entry}
    write_json(directory / RECORD, recorded)
    return "\n".join(f"{name}\n\n{samples_text(rows)}" for name, rows in by_task.items())


def words(stream: Stream, task: int, tokens: Sequence[int]) -> str:
    """Tokens of the stream's source of this number as text, or as words of the graded language."""
    source = stream.sources[task]
    if not isinstance(source, TextSource):
        return " ".join(vocabulary.word(token, source.task.names) for token in tokens)
    text = [token - source.offset for token in tokens if token >= source.offset]
    return source.tokenizer.decode(text)
