"""The graded task language as one literal table, and an example of each task in words."""

from wane.train.data import (
    graded_context,
    graded_facts,
    graded_instruct,
    graded_language,
    graded_path,
    graded_range,
    graded_retrieval,
    graded_state,
    graded_steps,
    graded_symbols,
    graded_topic,
    graded_trigger,
    graded_truth,
    key,
    vocabulary,
)
from wane.train.data.task import GradedTask, World

TASKS: dict[str, GradedTask] = {
    task.name: task
    for task in (
        *graded_language.TASKS,
        *graded_context.TASKS,
        *graded_range.TASKS,
        *graded_facts.TASKS,
        *graded_steps.TASKS,
        *graded_state.TASKS,
        *graded_truth.TASKS,
        *graded_topic.TASKS,
        *graded_instruct.TASKS,
        *graded_path.TASKS,
        *graded_trigger.TASKS,
        *graded_retrieval.TASKS,
        *graded_symbols.TASKS,
    )
}
# What published evaluations would call them
CATEGORIES = {
    "language": ("L0", "L1", "L2", "L3", "L1o2", "G"),
    "comprehension": ("S", "X", "R1", "R2", "R23", "E"),
    "knowledge": ("K", "K3", "L4"),
    "reasoning": ("M1", "M1d", "P"),
    "mathematics": ("M2", "M2l", "M23", "M3"),
    "instruction following": ("I",),
    "truthfulness": ("T1", "T13", "T2"),
    "safety": ("B",),
}
SHORTEST_CONTEXT = 32  # the shortest in which every task has a scored item


def sample(task: str, seed: int, length: int) -> str:
    """One sequence of `length` tokens of a graded task in words; scored tokens are marked with a star."""
    if task not in TASKS:
        raise ValueError(f"task {task!r}: the graded tasks are {', '.join(TASKS)}")
    definition = TASKS[task]
    world = World(seed=0, facts=256)
    tokens, level, _ = definition.generate(key.generator("sample", seed, task), 1, length, world, "train")
    words = [vocabulary.word(int(token), definition.names) for token in tokens[0]]
    return " ".join(word + "*" * int(mark >= 0) for word, mark in zip(words, level[0], strict=True))
