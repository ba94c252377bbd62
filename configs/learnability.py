"""Learnability: which graded tasks the shapes of the CPU tier learn, and in how many tokens.

    wane run learnability
    wane learned runs/learnability --csv accuracies.csv

Four shapes of .37 million block parameters, wide to deep, two seeds each, 9 million tokens of the default
mixture.  A task whose gate a shape does not pass cannot be assessed there: what a degradation takes from it says
nothing.

The recipe, found with the two seeds of single shapes.  Tokens that are not scored count a hundredth: most of a
graded sequence is random, and the gradients of what nobody can predict drown those of rare answers; the far answers
of X, which wait for a head that looks exactly 31 tokens back, suffer most.  Small batches, because what is learnt
abruptly asks for updates more than for tokens.  Norms on queries and keys, and RoPE with theta = 100: eight
frequencies per head should tell positions within 128 tokens, not 10,000.  docs/learnability.md has the table, and
what was tried.

Cost: about 90 minutes on 2 CPU cores.
"""

from wane.eval.study import Degrade, Evaluation, Study
from wane.scaling.family import exact_ladder
from wane.train.config import Train
from wane.train.data import Data

STEPS = 8790  # of 8 x 128 tokens

STUDY = Study(
    name="learnability",
    note="What each shape of the CPU tier learns of the default mixture, along training.",
    family=exact_ladder(192, head_dim=16, rope_theta=100.0, qk_norm=True),
    data=Data(sources="graded"),
    train=Train(
        tokens=9_000_000,
        tokens_per_param=None,
        batch_size=8,
        lr=2**-8,
        final_lr_fraction=0.01,
        unscored_weight=0.01,
    ),
    seeds=(0, 1),
    degradations=(Degrade(method="random_weights", severities=(0.5,)),),
    evaluation=Evaluation(batch=40),
    sweep_steps=tuple(STEPS * eighth // 8 for eighth in range(1, 8)),
)
