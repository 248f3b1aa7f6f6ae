"""How far long work is: a bar in a terminal and in a notebook's cell, and so in papermill's log."""

import sys
from collections.abc import Collection, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
_EVERY = 5  # seconds between two renewals in a notebook


def progress(items: Collection[Item], label: str, *, unit: str = "task") -> Iterator[Item]:
    """The items, while it is shown how many are done and how long the rest will take; nothing is left on the page.

    In a notebook's kernel what was shown is cleared at the end, with the rest of the cell's output, so a cell that
    shows something does so after the work. Without a terminal or a kernel, as in tests, it is silent.
    """
    kernel = _in_kernel()
    pace = {"delay": _EVERY, "mininterval": _EVERY} if kernel else {}
    bar = tqdm(items, label, leave=False, unit=unit, disable=not (kernel or sys.stderr.isatty()), **pace)
    yield from bar
    if kernel and bar.last_print_t - bar.start_t >= _EVERY:
        from IPython.display import clear_output

        clear_output()


def _in_kernel() -> bool:
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and hasattr(shell, "kernel")
