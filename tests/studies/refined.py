"""The smallest study whose number of sequences and whose severities are decided on the way."""

import dataclasses
import importlib.util
from pathlib import Path

from wane.eval.study import Degrade, Evaluation

_spec = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("tiny.py"))
_tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_tiny)

STUDY = dataclasses.replace(
    _tiny.STUDY,
    name="refined",
    arms=(),
    sweep_steps=(),
    degradations=(
        Degrade(method="random_weights", severities=(0.5, 1.0), draws=5, refine=2),
        Degrade(method="rtn", severities=(8.0, 2.0), refine=1),
        Degrade(method="magnitude_weights", severities=(0.5,), each="layer"),
    ),
    evaluation=Evaluation(
        sequences=500, precision=0.02, pilot_sequences=4, batch=4, calibration_sequences=4, metrics=("loss",)
    ),
)
