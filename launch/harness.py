"""Trained members, as they are or degraded, before EleutherAI's lm-evaluation-harness (extra `lm-eval`).

    import lm_eval
    from wane.launch.harness import language_model

    half = language_model("runs/text", "d96", method="wanda", severity=0.5)
    lm_eval.simple_evaluate(model=half, tasks=["arc_easy"])

Source: Gao et al., "A framework for few-shot language model evaluation", doi 10.5281/zenodo.10256836.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wane.eval.degrade import Degrade
from wane.eval.text_model import TextModel
from wane.launch.members import trained_member
from wane.scaling.edit import Edit
from wane.train.data.source import TextSource

try:
    from lm_eval.api.model import TemplateLM
except ImportError as error:
    raise ImportError("lm-evaluation-harness is missing: pip install 'wane[lm-eval]'") from error

LONGEST = 64  # tokens of a continuation whose task does not say


def language_model(
    directory: str | os.PathLike,
    member: str,
    *,
    method: str | Degrade | None = None,
    severity: float = 0.0,
    settings: Mapping[str, Any] | None = None,
    calibration: str = "same",
    draw: int = 0,
    batch: int = 16,
) -> "DegradedLM":
    """A member of a study directory under one degradation, as the harness's `LM`.

    member: its id, or the beginning of one.  method: of `wane list methods`, or a study's `Degrade`, which may have
    a scope and a second method; None: as it was trained.  severity: in the method's unit, as a study's `severities`
    (a fraction, or bits).  settings, calibration: those of a method that is given by its name.  batch: rows of a
    program call.
    Raises ValueError in one line for a member that is not there or that was not trained on text, and for a
    degradation that trains on.
    """
    found = trained_member(Path(directory), member)
    source = next((s for s in found.stream.sources if isinstance(s, TextSource)), None)
    if source is None:
        raise ValueError(
            f"member = {found.id}: was not trained on text, which is what the harness's tasks are in"
        )
    edit = Edit()
    if method is not None:
        if isinstance(method, Degrade) and method.recovery:
            raise ValueError("method.recovery: trains the member on, here it is degraded only; leave it out")
        if isinstance(method, Degrade):
            degrade = dataclasses.replace(method, severities=(severity,))
        else:
            told = {"settings": dict(settings or {}), "calibration": calibration}
            degrade = Degrade(method=method, severities=(severity,), **told)
        edit = found.edit(degrade, draw)
    return DegradedLM(TextModel(found.params, edit, found.shape, batch), source)


class DegradedLM(TemplateLM):
    """Requests of the harness in the tokens of a text source: greedy generation, log-likelihoods in nats."""

    def __init__(self, model: TextModel, source: TextSource):
        super().__init__()
        self.model, self.source = model, source

    @property
    def eot_token_id(self) -> int:
        return self.source.tokenizer.vocab - 1 + self.source.offset

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        (ids,) = self.source.tokenizer.encode([string.encode()])
        return (ids.astype(int) + self.source.offset).tolist()

    def tok_decode(self, tokens: Sequence[int]) -> str:
        """The text of a continuation, up to the first end of a document."""
        end = tokens.index(self.eot_token_id) if self.eot_token_id in tokens else len(tokens)
        offset = self.source.offset  # tokens below it are of the graded tasks, not text
        return self.source.tokenizer.decode([t - offset for t in tokens[:end] if t >= offset])

    def _loglikelihood_tokens(self, requests: list, **kwargs: Any) -> list[tuple[float, bool]]:
        """requests: ((context, continuation), their tokens)."""
        found = self.model.likelihoods([(begin + end, len(begin)) for _, begin, end in requests])
        return [tuple(likelihood) for likelihood in found]

    def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list[float]:
        texts = [[self.eot_token_id, *self.tok_encode(request.args[0])] for request in requests]
        return [likelihood.log_p for likelihood in self.model.likelihoods([(text, 1) for text in texts])]

    def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
        """Raises ValueError for a task that asks for sampling."""
        out: list[str] = [""] * len(requests)
        for longest in dict.fromkeys(_longest(request.args[1]) for request in requests):
            those = [i for i, request in enumerate(requests) if _longest(request.args[1]) == longest]
            prompts = [self.tok_encode(requests[i].args[0]) or [self.eot_token_id] for i in those]
            for i, said in zip(those, self.model.continuations(prompts, longest), strict=True):
                out[i] = _cut(self.tok_decode(said), requests[i].args[1].get("until") or ())
        return out


def _longest(asked: Mapping[str, Any]) -> int:
    if asked.get("do_sample") and asked.get("temperature", 1.0) > 0:
        raise ValueError("generation_kwargs.do_sample = true: continuations are greedy; set it to false")
    return asked.get("max_gen_toks", LONGEST)


def _cut(text: str, until: str | Sequence[str]) -> str:
    """text before the first of the strings `until`."""
    for stop in [until] if isinstance(until, str) else until:
        text = text.split(stop)[0] if stop else text
    return text
