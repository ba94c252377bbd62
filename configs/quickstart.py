"""Quickstart: three shapes of one size, two seeds, eight ways of taking things away.

    wane run quickstart

Measures how loss grows when weights, neurons, heads and layers are removed or rounded, in three transformers
of 92 thousand non-embedding parameters that differ in width and depth only.  Everything is generated on the
fly: no network, no data file.

Six members of this size cannot show what width does to robustness: two seeds give no interval worth the name,
all tasks are below the competence gate, and the shapes differ in loss before anything is taken.  What the
pictures show is the apparatus: curves, bands, x-axes, gate.

Cost: 1:42 minutes on 2 CPU cores; not measured on an accelerator.  Expect a final training loss of 3.2
(one layer) to 3.4 nats/token (nine layers).
"""

from wane.eval.study import Degrade, Evaluation, Study
from wane.scaling.family import exact_ladder
from wane.train.config import Train
from wane.train.data import Data

FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9, 1.0)

STUDY = Study(
    name="quickstart",
    note="Three shapes matched in non-embedding parameters, wide to deep, two seeds each.",
    family=exact_ladder(96, depths=(1, 4, 9), head_dim=16),
    data=Data(sources="graded", context=64, facts=64),
    train=Train(tokens=400_000, tokens_per_param=None, batch_size=32),
    seeds=(0, 1),
    degradations=(
        Degrade(method="random_weights", severities=FRACTIONS, draws=2),
        Degrade(method="magnitude_weights", severities=FRACTIONS),
        Degrade(method="random_neurons", severities=FRACTIONS, draws=2),
        Degrade(method="random_heads", severities=FRACTIONS, draws=2),
        Degrade(method="remove_layers", settings={"order": "random"}, severities=FRACTIONS, draws=2),
        Degrade(method="rtn"),
        Degrade(method="activations"),
        Degrade(method="gaussian_noise", settings={"match": "rtn"}),
        Degrade(method="random_weights", severities=(0.3, 0.6), each="layer"),
    ),
    evaluation=Evaluation(sequences=8, batch=36),
)
