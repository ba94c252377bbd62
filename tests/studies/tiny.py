"""The smallest study with every kind of cell: two shapes, two seeds, a mask before, during and after training."""

from wane.eval.study import Arm, Degrade, Evaluation, FixedMask, Recovery, Study, Then
from wane.scaling.family import exact_ladder
from wane.train.config import Train
from wane.train.data import Data

STUDY = Study(
    name="tiny",
    family=exact_ladder(16, depths=(1, 4), head_dim=8),
    data=Data(sources="graded", context=32, facts=16, task_shares={"L1": 1.0, "S": 1.0}),
    train=Train(tokens=4096, tokens_per_param=None, batch_size=8, log_every=2),
    seeds=(0, 1),
    arms=(
        Arm(name="early", mask=FixedMask(method="random_weights", severities=(0.5,))),
        Arm(
            name="rewound",
            mask=FixedMask(
                method="magnitude_weights", severities=(0.5,), at=0.5, scores="finished", weights="rewound"
            ),
        ),
    ),
    degradations=(
        Degrade(method="random_weights", severities=(0.25, 0.5, 1.0), draws=2),
        Degrade(method="magnitude_weights", severities=(0.5,)),
        Degrade(method="random_heads", severities=(0.5,), each="head"),
        Degrade(method="magnitude_weights", severities=(0.5,), then=Then(method="rtn", severities=(4.0,))),
        Degrade(method="random_neurons", severities=(0.5,), recovery=Recovery(steps=(16,), batch_size=8)),
        Degrade(
            method="activations", settings={"granularity": "tensor"}, severities=(4.0,), calibration="random"
        ),
    ),
    evaluation=Evaluation(sequences=4, batch=4, calibration_sequences=4),
    sweep_steps=(8,),
)
