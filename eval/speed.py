"""How fast a really smaller model is beside the model that it was made from: both run in turns in one
process.

Timings are no rows of the curve table: nothing gives them back bit for bit.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from wane.eval.energy import Meter
from wane.eval.metrics.largest import choice
from wane.eval.smaller import Model, in_blocks, stacked
from wane.scaling.edit import Edit, Params
from wane.scaling.shape import Shape

TOLERANCE = 1e-3  # of the largest logit: f32 sums in another order

Run = Callable[[], Any]  # once, on the device


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """batches: sequences that are scored together, and requests that are answered together; a request is half
    a context of prompt and half a context of answer.  rounds, seconds: as in `wane.eval.speed.alternate`."""

    batches: tuple[int, ...] = (1, 8, 32)
    rounds: int = 7
    seconds: float = 0.3

    def __post_init__(self):
        if not self.batches or min(self.batches) < 1:
            raise ValueError(f"--batches = {self.batches}: must be numbers of sequences, each 1 or more")
        if self.rounds < 1:
            raise ValueError(f"--rounds = {self.rounds}: must be 1 or more")
        if not 0 < self.seconds < float("inf"):
            raise ValueError(f"--seconds = {self.seconds}: must be a positive number")


def forward_run(model: Model, tokens_BS: Array) -> Run:
    """Logits of whole sequences, as scoring computes them."""
    run = jax.jit(model.forward)
    return lambda: run(model.weights, tokens_BS)


def request_run(model: Model, prompt_BS: Array, new_tokens: int) -> Run:
    """Requests that arrive together: the prompts fill the caches, then every one gets `new_tokens` tokens,
    each the most likely one behind what was said; [n, B]."""
    B, S = prompt_BS.shape

    def request(weights: Any, prompt_BS: Array) -> Array:
        # Logits behind the prompt are read of its last token only, so that XLA computes no others.
        _, caches = model.extend(weights, prompt_BS[:, :-1], model.caches(B, S - 1 + new_tokens))

        def step(state: tuple[Any, Array], _: None) -> tuple[tuple[Any, Array], Array]:
            logits_B1V, caches = model.extend(weights, state[1][:, None], state[0])
            said_B = choice(logits_B1V[:, 0]).astype(prompt_BS.dtype)
            return (caches, said_B), said_B

        return lax.scan(step, (caches, prompt_BS[:, -1]), length=new_tokens)[1]

    run = jax.jit(request)
    return lambda: run(model.weights, prompt_BS)


class Turn(NamedTuple):
    """Of one call, a mean over a turn; joules None: the machine does not tell them of this turn."""

    seconds: float
    joules: float | None


def alternate(
    runs: Mapping[str, Run],
    *,
    rounds: int,
    seconds: float,
    meter: Meter | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[Turn]]:
    """Name -> one Turn per round.  Every call is waited for, so that its time is that of one batch or
    request.

    Each run is called once to compile and once to learn how many calls fill a turn of `seconds`.  Then they
    take turns, in an order that rotates, so that a machine that slows down or speeds up favours none.
    """

    def turn(run: Run, calls: int) -> Turn:
        spent, started = meter and meter.read(), clock()
        for _ in range(calls):
            jax.block_until_ready(run())
        took = clock() - started
        joules = meter.spent(spent, meter.read()) if meter else None
        return Turn(took / calls, None if joules is None else joules / calls)

    for run in runs.values():
        turn(run, 1)
    calls = {name: max(1, round(seconds / max(turn(run, 1).seconds, 1e-9))) for name, run in runs.items()}
    names, found = list(runs), {name: [] for name in runs}
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            found[name].append(turn(runs[name], calls[name]))
    return found


def quartiles(values: Sequence[float]) -> dict[str, float]:
    low, median, high = (float(q) for q in np.quantile(values, (0.25, 0.5, 0.75)))
    return {"median": median, "low": low, "high": high}


def compare(dense: Run, small: Run, tokens: int, **turns: Any) -> dict:
    """Both in turns: seconds of a call and their quartiles, tokens per second, joules per token (None: not
    told), and how many times as fast the smaller one was in each round.  tokens: what a call works off;
    turns: arguments of `alternate`."""
    found = alternate({"dense": dense, "small": small}, **turns)
    record: dict[str, Any] = {"tokens": tokens}
    for name, measured in found.items():
        # A turn that a counter missed went to another turn's account: then none of them is right.
        joules = [turn.joules for turn in measured]
        record[name] = {
            "seconds": quartiles([turn.seconds for turn in measured]),
            "tokens_per_second": quartiles([tokens / turn.seconds for turn in measured]),
            "joules_per_token": None if None in joules else quartiles([j / tokens for j in joules]),
        }
    pairs = zip(found["dense"], found["small"], strict=True)
    return record | {"speed_up": quartiles([a.seconds / b.seconds for a, b in pairs])}


class Clock:
    """A trained model, compiled once, against which smaller ones are timed, each against the form that it has
    itself: blocks one by one alone answer a request twice as fast as a scan (4 layers of width 256 on a CPU).
    """

    def __init__(self, params: Params, shape: Shape, timing: Timing, meter: Meter | None):
        self.shape, self.timing, self.meter, self.dense = shape, timing, meter, stacked(params, shape)
        self._trained: dict[str, dict[tuple[str, int], tuple[Run, int]]] = {}
        self._known: dict[Any, dict] = {}

    def _tokens(self, batch: int, length: int) -> Array:
        return jnp.asarray(
            np.random.default_rng(0).integers(self.shape.vocab, size=(batch, length)), jnp.int32
        )

    def _runs_of(self, model: Model) -> dict[tuple[str, int], tuple[Run, int]]:
        """(kind, batch) -> what is timed, and the tokens that it works off."""
        context, runs = self.shape.context, {}
        prompt = max(2, context // 2)
        answer = max(1, context - prompt)
        for batch in self.timing.batches:
            scored, prompts = self._tokens(batch, context), self._tokens(batch, prompt)
            runs["forward", batch] = forward_run(model, scored), batch * context
            runs["request", batch] = request_run(model, prompts, answer), batch * answer
        return runs

    def _trained_in(self, form: str) -> dict[tuple[str, int], tuple[Run, int]]:
        if form not in self._trained:
            params = self.dense.weights[0]
            model = self.dense if form == "scan" else in_blocks(params, self.shape)
            self._trained[form] = self._runs_of(model)
        return self._trained[form]

    def difference(self, model: Model, edit: Edit) -> float:
        """Largest difference of a logit from the masked model, over the largest logit.  Raises ValueError
        when the models are not the same."""
        masked = stacked(self.dense.weights[0], self.shape, edit)
        tokens_BS = self._tokens(2, self.shape.context)
        with jax.default_matmul_precision("highest"):
            wanted, got = (np.asarray(forward_run(m, tokens_BS)()) for m in (masked, model))
        found = float(np.abs(wanted - got).max() / np.abs(wanted).max())
        if self.shape.dtype == "float32" and not found < TOLERANCE:
            raise ValueError(f"the smaller model's logits differ by {found:.2g} of the largest; not timed")
        return found

    def time(self, model: Model) -> dict[str, list[dict]]:
        """Timings by kind, one per batch."""
        leaves, structure = jax.tree.flatten(model.weights)
        size = structure, tuple(leaf.shape for leaf in leaves)
        if size not in self._known:
            found: dict[str, list[dict]] = {"forward": [], "request": []}
            turns = {"rounds": self.timing.rounds, "seconds": self.timing.seconds, "meter": self.meter}
            trained = self._trained_in(model.form)
            for (kind, batch), (run, tokens) in self._runs_of(model).items():
                dense, _ = trained[kind, batch]
                found[kind].append({"batch": batch} | compare(dense, run, tokens, **turns))
            self._known[size] = found
        return self._known[size]
