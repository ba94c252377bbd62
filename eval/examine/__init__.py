"""All examinations as one literal table; adding one is a file and a line of EXAMINATIONS."""

from collections.abc import Mapping
from typing import Any

from wane.eval.examine import ablation, restricted, synergy, zero_sensitivity
from wane.eval.examine.contract import Examination
from wane.scaling.config import close_matches, from_json

EXAMINATIONS: dict[str, Examination] = {
    examination.name: examination
    for examination in (
        ablation.EXAMINATION,
        synergy.EXAMINATION,
        zero_sensitivity.EXAMINATION,
        restricted.EXAMINATION,
    )
}


def settings_of(name: str, given: Mapping[str, Any]) -> Any:
    """The settings of an examination, defaults where none is given.  Raises ValueError with the close matches for
    an unknown examination or setting, and for a value that is not allowed."""
    if name not in EXAMINATIONS:
        raise ValueError(
            f"examinations.name = {name!r}: not an examination{close_matches(name, EXAMINATIONS)};"
            " `wane list examinations` shows them all"
        )
    return from_json(EXAMINATIONS[name].settings, given, "examinations.settings")
