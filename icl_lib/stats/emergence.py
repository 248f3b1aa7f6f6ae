"""When scores emerge along training, and which came first: emergence steps and transition counts."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from icl_lib.stats.intervals import Test, percentile_rank
from icl_lib.stats.permutation import extreme, random_orders

ORDERS = ("induction_first", "fv_first", "both_at_once", "induction_only", "fv_only", "neither")


class Emergence(NamedTuple):
    """The first step with the score (None: never) and the last step known without it (None: no such)."""

    step: int | None
    last_below: int | None


class Transitions(NamedTuple):
    """Heads by order of emergence (`ORDERS`), and as many in each random pairing of the two scores."""

    observed: Int[ndarray, "order"]
    null: Int[ndarray, "draw order"]

    def table(self) -> pd.DataFrame:
        """Columns order, heads, expected by chance, p, smallest p.

        `p`: two-sided, twice the smaller tail, at most 1, the count itself taken as one more pairing; `smallest p`: the
        smallest that any of the pairings drawn has, 1 where every one gives the same count.
        """
        counts = np.stack([self.observed, self.null.min(axis=0), self.null.max(axis=0)])
        above, below = (self.null >= counts[:, None]).sum(axis=1), (self.null <= counts[:, None]).sum(axis=1)
        p_values = np.minimum(1.0, 2 * (np.minimum(above, below) + 1) / (len(self.null) + 1))
        return pd.DataFrame({"order": ORDERS, "heads": self.observed, "expected by chance": self.null.mean(axis=0),
                             "p": p_values[0], "smallest p": p_values.min(axis=0)})


def emergence_step(
    steps: Sequence[int], scores: Float[ndarray, "step"], null: float | Float[ndarray, "step"]
) -> Emergence:
    """First step at which the score exceeds its null and stays above it to the end (figure 5).

    NaN is a missing checkpoint: it neither confirms nor refutes; nothing is interpolated. Raises ValueError for steps
    that do not increase or when all checkpoints are missing.
    """
    steps = np.asarray(steps)
    if (np.diff(steps) <= 0).any():
        raise ValueError(f"steps {steps.tolist()} do not increase")
    present = ~np.isnan(scores)
    if not present.any():
        raise ValueError(f"all {len(steps)} checkpoints are missing, expected at least one score")
    known, above = steps[present], (scores > null)[present]
    below = np.flatnonzero(~above)
    first = below[-1] + 1 if len(below) else 0
    return Emergence(int(known[first]) if first < len(known) else None, int(known[below[-1]]) if len(below) else None)


def emergence_interval(
    steps: Sequence[int], resamples: Float[ndarray, "resample step"], null: float | Float[ndarray, "step"]
) -> tuple[float, float]:
    """95 % interval of the emergence step over resampled score curves, in steps of the list; infinity: never."""
    found = [emergence_step(steps, row, null).step for row in resamples]
    ordered = np.sort([np.inf if step is None else step for step in found])
    tail = int(np.floor(len(ordered) * (1 - 0.95) / 2))
    return float(ordered[tail]), float(ordered[len(ordered) - 1 - tail])


class Exchange(NamedTuple):
    """Whose curve of one kind every head gets in each random draw, its own of the other kind kept.

    `among`: the heads that exchange curves have one number; so have those in `ranked` that are ranked together.
    """

    others: Int[ndarray, "draw head"]
    among: Int[ndarray, "head"]
    ranked: Int[ndarray, "head"]


def exchanged_within(groups: Int[ndarray, "head"], n_draws: int, seed: int) -> Exchange:
    """Heads exchange curves within groups: all heads of a model in one, or its layers.

    Heads of a layer emerge together, so that layers are the stricter null, and without power where they all do.
    """
    noise = np.random.default_rng(seed).random((n_draws, len(groups)))
    others = np.empty(noise.shape, dtype=np.int64)
    others[:, np.argsort(groups, kind="stable")] = np.lexsort((noise, np.broadcast_to(groups, noise.shape)))
    return Exchange(others, groups, groups)


def exchanged_between(n_seeds: int, n_heads: int, seed: int) -> Exchange:
    """Seeds side by side exchange the curves of all heads at their places; in no draw two have the same seed's."""
    of_seed, place = np.divmod(np.arange(n_seeds * n_heads), n_heads)
    return Exchange(random_orders(n_seeds, seed)[:, of_seed] * n_heads + place, place, of_seed)


def first_step(of_kind: Bool[ndarray, "*kind step head"]) -> Float[ndarray, "*kind head"]:
    """Index of the first checkpoint at which a head is of a kind, also when it is not later; infinity for never."""
    return np.where(of_kind.any(axis=-2), of_kind.argmax(axis=-2), np.inf)


def count_orders(induction: Float[ndarray, "head"], fv: Float[ndarray, "head"], exchange: Exchange) -> Transitions:
    """How many heads were induction heads before they became FV heads, the reverse, and the rest (section 5).

    `induction`, `fv`: the `first_step` of each head. The null gives heads the first step as FV heads of others.
    """
    def count(fv: Float[ndarray, "*draw head"]) -> Int[ndarray, "*draw order"]:
        has_induction, has_fv = np.broadcast_arrays(np.isfinite(induction), np.isfinite(fv))
        masks = ((induction < fv) & has_fv, (induction > fv) & has_induction, (induction == fv) & has_fv,
                 has_induction & ~has_fv, has_fv & ~has_induction, ~has_induction & ~has_fv)
        return np.stack([mask.sum(axis=-1) for mask in masks], axis=-1)
    return Transitions(count(fv), count(fv[exchange.others]))


class RanksBefore(NamedTuple):
    """Sum over `n` heads of a percentile each, what chance gives for it, and such sums of heads drawn at random."""

    total: float
    n: int
    expected: float
    null: Float[ndarray, "draw"]

    def test(self) -> Test:
        """The mean percentile, 0..1, against `by_chance`; two-sided. Needs a head."""
        mean, null = self.total / self.n, self.null / self.n
        return extreme(mean - self.by_chance, null - self.by_chance, exact=False, shown=mean)

    @property
    def by_chance(self) -> float:
        """The mean percentile that chance gives, 0.5 where heads are drawn from all that are ranked; NaN for none."""
        return self.expected / self.n if self.n else np.nan


Counted = TypeVar("Counted", Transitions, RanksBefore)


def pooled(parts: Iterable[Counted]) -> Counted:
    """Of several models together: the sums of what was found in each, and of their draws. Needs a model."""
    first, *others = parts
    return type(first)(*(np.sum(part, axis=0) for part in zip(first, *others, strict=True)))


def percentiles_before(
    of_kind: Bool[ndarray, "step head"], other: Float[ndarray, "step head"], exchange: Exchange
) -> RanksBefore:
    """How heads that are `of_kind` in the end ranked in the `other` score before they were.

    For each such head that was not of the kind at the first checkpoint, its percentile among the heads it is ranked
    with in their highest score at the checkpoints before; the null puts the heads in its place that it exchanges with.
    """
    heads = np.flatnonzero(of_kind[-1] & ~of_kind[0])
    ranks = np.empty((len(heads), of_kind.shape[1]))
    for row, first in zip(ranks, of_kind[:, heads].argmax(axis=0), strict=True):
        before = other[:first].max(axis=0)
        for group in np.unique(exchange.ranked):
            row[exchange.ranked == group] = percentile_rank(before[exchange.ranked == group])
    rows = np.arange(len(heads))
    expected = ranks.mean(axis=1, where=exchange.among == exchange.among[heads][:, None])
    drawn = ranks[rows, exchange.others[:, heads]].sum(axis=1)
    return RanksBefore(float(ranks[rows, heads].sum()), len(heads), float(expected.sum()), drawn)
