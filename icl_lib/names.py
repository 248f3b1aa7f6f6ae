"""Names that are chosen among valid ones, and what names of models have in common."""

import difflib
import re
from collections.abc import Iterable

WORDS = {  # what parameters that are lists of words may hold; what a word means stands where it is used
    "replacements": ("mean", "task_mean", "zero", "resample", "bos_value"),
    "positions": ("last", "all"),
    "protocols": ("paper", "released"),
    "presets": ("task", "released"),
    "splits": ("scoring", "evaluation", "training", "unseen"),
}


def unknown(what: str, name: str, valid: Iterable[str]) -> ValueError:
    """The error for a name that is not valid, in one line: with those that are, of many the nearest."""
    valid = list(valid)
    near = difflib.get_close_matches(str(name), valid, n=3, cutoff=0.3)
    if len(valid) > 10:
        return ValueError(f"unknown {what} {name!r}; nearest valid names: {', '.join(near or valid[:3])}")
    nearest = f"; nearest: {near[0]}" if near else ""
    return ValueError(f"unknown {what} {name!r}; valid are {', '.join(valid)}{nearest}")


def size_of(model: str) -> str:
    """What a model and its further seeds have in common: its name without the seed, "lab-40k" for "lab-40k-seed2"."""
    return re.sub(r"(-data|-weight)?-seed\d+$", "", model)


def refuse_unknown(what: str, name: str, valid: Iterable[str]) -> None:
    """Raise `unknown` for a name that is not valid."""
    if name not in (valid := list(valid)):
        raise unknown(what, name, valid)
