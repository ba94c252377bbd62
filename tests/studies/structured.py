"""The smallest study whose models really shrink: one shape, one seed, one method that does, one that
cannot."""

import dataclasses
import importlib.util
from pathlib import Path

from wane.eval.study import Degrade, Evaluation
from wane.scaling.family import exact_ladder

_spec = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("tiny.py"))
_tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_tiny)

STUDY = dataclasses.replace(
    _tiny.STUDY,
    name="structured",
    family=exact_ladder(16, depths=(4,), head_dim=8),
    train=dataclasses.replace(_tiny.STUDY.train, tokens=1024),
    seeds=(3,),
    arms=(),
    sweep_steps=(),
    degradations=(
        Degrade(method="remove_layers", settings={"order": "last"}, severities=(0.2, 0.5, 0.7, 1.0)),
        Degrade(method="slicegpt", severities=(0.5,)),
        Degrade(method="magnitude_weights", severities=(0.5,)),
        Degrade(method="remove_layers", severities=(0.5,), each="layer"),
    ),
    evaluation=Evaluation(sequences=4, batch=4, calibration_sequences=4, metrics=("loss",)),
)
