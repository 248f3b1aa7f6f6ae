"""How far long work is: a bar in a terminal, a line that is renewed in a notebook and in papermill's log."""

import sys
import time
from collections.abc import Collection, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
_EVERY = 5  # seconds between two lines in a notebook


def progress(items: Collection[Item], label: str, *, unit: str = "task") -> Iterator[Item]:
    """The items, while it is shown how many are done and how long the rest will take; nothing is left on the page.

    In a terminal it is a bar. In a notebook's kernel it is one line in the cell's output (and in the log of a papermill
    run), cleared at the end, so a cell that shows something does so after the work. Otherwise, as in tests, silent.
    """
    if not _in_kernel():
        yield from tqdm(items, desc=label, unit=unit, disable=not sys.stderr.isatty(), leave=False)
        return
    from IPython.display import clear_output

    began = shown = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if done and now - shown >= _EVERY:
            left = (now - began) / done * (len(items) - done)
            clear_output(wait=True)
            print(f"{label}: {done} of {len(items)} {unit}s, about {_duration(left)} left", file=sys.stderr, flush=True)
            shown = now
        yield item
    if shown != began:
        clear_output()


def _in_kernel() -> bool:
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and hasattr(shell, "kernel")


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
