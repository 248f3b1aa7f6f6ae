"""Names that are chosen among a few valid ones."""

import difflib
from collections.abc import Iterable


def refuse_unknown(what: str, name: str, valid: Iterable[str]) -> None:
    """Raise ValueError in one line, with the valid names and the nearest, for a name that is not among them."""
    valid = list(valid)
    if name not in valid:
        near = difflib.get_close_matches(str(name), valid, n=1)
        raise ValueError(f"unknown {what} {name!r}; valid are {', '.join(valid)}"
                         + (f"; nearest: {near[0]}" if near else ""))
