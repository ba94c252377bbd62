"""A language model under a degradation, as evaluations of text ask it: log-likelihoods and greedy continuations."""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from wane.eval.metrics.largest import choice
from wane.scaling.edit import Edit, Params, merge
from wane.scaling.generate import empty_caches, extend
from wane.scaling.model import apply, nll_of_logits, unembed
from wane.scaling.shape import Shape


class Likelihood(NamedTuple):
    """log_p: of the scored tokens, nats, summed in float64.  greedy: each of them is the most likely one."""

    log_p: float
    greedy: bool


class TextModel:
    """A trained model under one edit.  Tokens are those of the model, at least one before the first that is scored.

    batch: rows of a program call; one executable scores all requests and one continues all prompts.
    """

    def __init__(self, params: Params, edit: Edit, shape: Shape, batch: int = 16):
        self.params, self.edit, self.shape, self.batch = params, edit, shape, batch

    def likelihoods(self, requests: Sequence[tuple[Sequence[int], int]]) -> list[Likelihood]:
        """requests: (tokens, first): tokens[first:] are scored, first >= 1.

        Each reads as many of the tokens before it as the context holds; what is longer than the context is scored
        in blocks of a context, the first tokens of a block behind one token.
        """
        cuts = [
            (i, cut)
            for i, (tokens, first) in enumerate(requests)
            for cut in windows(len(tokens), first, self.S)
        ]
        log_p, greedy = np.zeros(len(requests)), np.ones(len(requests), bool)
        for start in range(0, len(cuts), self.batch):
            part = cuts[start : start + self.batch]
            tokens_BT = np.zeros((self.batch, self.S + 1), np.int32)
            scored_BS = np.zeros((self.batch, self.S), bool)
            for row, (i, (begin, end, first)) in enumerate(part):
                tokens_BT[row, : end - begin] = requests[i][0][begin:end]
                scored_BS[row, first - begin - 1 : end - begin - 1] = True
            found = _score(self.params, self.edit, tokens_BT, scored_BS, shape=self.shape)
            for (i, _), nll, hit in zip(part, *map(np.asarray, found), strict=False):
                log_p[i] -= nll
                greedy[i] &= hit
        return [Likelihood(float(p), bool(g)) for p, g in zip(log_p, greedy, strict=True)]

    def continuations(self, prompts: Sequence[Sequence[int]], longest: int) -> list[list[int]]:
        """What the model says, greedily, behind each prompt: `longest` tokens, at most what the
        context holds beside one token of the prompt.  Prompts keep their last tokens that fit."""
        longest = min(longest, self.S)
        said: list[list[int]] = []
        for start in range(0, len(prompts), self.batch):
            part = [prompt[-(self.S + 1 - longest) :] for prompt in prompts[start : start + self.batch]]
            tokens_BS, length_B = np.zeros((self.batch, self.S), np.int32), np.ones(self.batch, np.int32)
            for row, prompt in enumerate(part):
                tokens_BS[row, : len(prompt)], length_B[row] = prompt, len(prompt)
            found_BS = np.asarray(_say(self.params, self.edit, tokens_BS, length_B, shape=self.shape))
            said += [
                found_BS[row, len(prompt) - 1 : len(prompt) - 1 + longest].tolist()
                for row, prompt in enumerate(part)
            ]
        return said

    @property
    def S(self) -> int:
        return self.shape.context


def windows(length: int, first: int, S: int) -> Iterator[tuple[int, int, int]]:
    """(begin, end, first scored) of the windows of at most S + 1 tokens that score tokens first..length once each:
    every window but the last scores S tokens, and each begins as early as it can."""
    for scored in range(first, length, S):
        end = min(scored + S, length)
        yield max(0, end - S - 1), end, scored


@functools.partial(jax.jit, static_argnames="shape")
def _score(
    params: Params, edit: Edit, tokens_BT: Array, scored_BS: Array, *, shape: Shape
) -> tuple[Array, Array]:
    """(nll of the scored tokens, whether all are the most likely ones), [B]."""
    x_BSD = apply(params, tokens_BT[:, :-1], shape, edit).x_BSD
    logits_BSV = unembed(merge(params, edit), x_BSD, shape)
    nll_BS = nll_of_logits(logits_BSV, tokens_BT[:, 1:])
    hit_BS = choice(logits_BSV) == tokens_BT[:, 1:]
    return jnp.where(scored_BS, nll_BS, 0.0).sum(axis=1), (hit_BS | ~scored_BS).all(axis=1)


@functools.partial(jax.jit, static_argnames="shape")
def _say(params: Params, edit: Edit, tokens_BS: Array, length_B: Array, *, shape: Shape) -> Array:
    """What the model says behind every position [B, S]: it reads the first `length_B` tokens, then its own."""
    params = merge(params, edit)

    def step(state: tuple, read: tuple) -> tuple[tuple, Array]:
        caches, last_B = state
        token_B, place = read
        token_B = jnp.where(place < length_B, token_B, last_B)
        logits_B1V, caches = extend(params, token_B[:, None], caches, shape, edit)
        last_B = choice(logits_B1V[:, 0])
        return (caches, last_B), last_B

    B, S = tokens_BS.shape
    state = empty_caches(B, S, shape), jnp.zeros(B, jnp.int32)
    _, said_SB = lax.scan(step, state, (tokens_BS.T, jnp.arange(S)))
    return said_SB.T
