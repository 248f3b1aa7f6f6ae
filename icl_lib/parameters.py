"""What a notebook's parameters may be: of the declared type, and numbers and lists that something can be made of."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from icl_lib.names import WORDS

TYPES = {"str": str, "int": int, "float": int | float, "bool": bool, "list": list, "dict": dict}
# Numbers are from 0, counts (n_...) from 1, shares (...fraction...) above 0 and lists hold something, but for these.
_FROM = {"step": -1, "steps": -1, "n_shots": 0, "n_prompts_all": 0, "n_null_prompts": 0, "n_curve_documents": 0}
_HOLDS = {"replacements": "mean", "positions": "all"}  # what the page of ablations cannot do without
_MAY_BE_NONE = ("exclude_fraction",)
_MAY_BE_EMPTY = ("grid_fractions", "fractions_all", "loss_fractions", "protocols")


def misfit(name: str, value: object, kind: str) -> str:
    """What is wrong with a parameter's value, in words; "" where nothing is. `kind`: its type, such as "list[int]"."""
    outer, _, inner = kind.removesuffix("]").partition("[")
    if not isinstance(value, TYPES[outer]) or isinstance(value, bool) is not (outer == "bool"):
        return f"{value!r} ({type(value).__name__}), expected {kind}"
    if outer == "str" and not value.strip():
        return f"{value!r}, expected a text that is not empty"
    if outer in ("int", "float"):
        least, most = _FROM.get(name, int(name.startswith("n_"))), 1 if "fraction" in name else sys.float_info.max
        if not least <= value <= most:
            return f"{value!r}, expected {kind} {f'from {least} to {most}' if most == 1 else f'of at least {least}'}"
        if not value and "fraction" in name and name not in _MAY_BE_NONE:
            return f"{value!r}, expected {kind} above 0, at most 1"
    if outer == "list":
        if not value and name not in _MAY_BE_EMPTY:
            return "[], expected at least one value"
        if repeated := [item for place, item in enumerate(value) if item in value[:place]]:
            return f"{value!r}, which holds {repeated[0]!r} twice, expected different values"
        if odd := [item for item in value if item not in WORDS.get(name, value)]:
            return f"{value!r}, which holds {odd[0]!r}, expected some of {', '.join(WORDS[name])}"
        if name in _HOLDS and _HOLDS[name] not in value:
            return f"{value!r}, expected {_HOLDS[name]!r} among them"
        wrong = [of_item for item in value if inner and (of_item := misfit(name, item, inner))]
        return f"{value!r}, which holds {wrong[0]}" if wrong else ""
    return ""


def own_data(given: Mapping[str, Any]) -> list[str]:
    """Files of a user's own tasks and documents that parameters name."""
    folder, documents = Path(str(given.get("task_files", "")).partition("[")[0]), Path(str(given.get("documents", "")))
    tasks = [*folder.glob("abstractive/*.json"), *folder.glob("extractive/*.json")]
    cards = [folder.parent / "cards.json"] if tasks else []
    return sorted(path.as_posix() for path in (*cards, *tasks, documents) if path.is_file())
