"""Training, evaluation and calibration sequences: the graded task language, text files, TFDS, mixtures."""

from wane.train.data.assemble import open_data
from wane.train.data.graded import TASKS, sample
from wane.train.data.spec import Data
from wane.train.data.stream import EvalSet, Stream
from wane.train.data.task import Task

__all__ = ["TASKS", "Data", "EvalSet", "Stream", "Task", "open_data", "sample"]
