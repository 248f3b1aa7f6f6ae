"""What a statistic of the ledger says: an estimate with its interval or test, and its power."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from icl_lib.stats.intervals import Test

LEVEL = 0.05
NO_CONTROL = "no heads of neither kind left for a control"


class Estimate(NamedTuple):
    """What a statistic says of one model ("" for all of a suite): with an interval or a p-value, and its power.

    `smallest_p`: the smallest p-value that the test could have had with as many heads, models, checkpoints and tasks;
    NaN where an interval decides that could have lain on either side of the rule, 1 where none could; `why` says in
    words what is missing then.
    """

    model: str
    value: float
    low: float = np.nan
    high: float = np.nan
    p_value: float = np.nan
    n: int = 1
    smallest_p: float = np.nan
    why: str = ""

    @property
    def decidable(self) -> bool:
        """Whether the rule could have come out either way."""
        return not self.smallest_p >= LEVEL


def undecidable(model: str, why: str, value: float = np.nan, n: int = 0) -> Estimate:
    """An estimate that no outcome of the measurement could have decided."""
    return Estimate(model, value, n=n, smallest_p=1.0, why=why)


def tested(model: str, test: Test, *, n: int, of: str) -> Estimate:
    """A test with its power; `of` names what there are too few of."""
    estimate = Estimate(model, test.value, p_value=test.p_value, n=n, smallest_p=test.smallest_p)
    return estimate if estimate.decidable else estimate._replace(
        why=f"{n} {of}: p of at least {test.smallest_p:.2g} whatever comes out")


def spanned(model: str, interval: Iterable[float], *, n: int, of: str) -> Estimate:
    """An estimate with a bootstrap interval; one without width says that nothing varied, which decides nothing."""
    value, low, high = map(float, interval)
    if low < high:
        return Estimate(model, value, low, high, n=n)
    return undecidable(model, f"{n} {of} do not differ", value, n)
