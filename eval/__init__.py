"""Measure degraded models, record the curves, infer and report.  Importing this does not import jax."""

from wane.eval.curves import load_curves

__all__ = ["load_curves"]
