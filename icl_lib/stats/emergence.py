"""When scores emerge along training, and which came first: emergence steps and transition counts."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from icl_lib.stats.intervals import Test, percentile_rank
from icl_lib.stats.permutation import N_PERMUTATIONS, extreme, random_orders

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


def first_crossing(
    scores: Float[ndarray, "step head"], threshold: float | Float[ndarray, "step 1"]
) -> Int[ndarray, "head"]:
    """Index of the first checkpoint with a score above the threshold, or the number of steps, per head."""
    above = scores > threshold
    return np.where(above.any(axis=0), above.argmax(axis=0), len(scores))


def transition_counts(
    induction: Float[ndarray, "step head"], fv: Float[ndarray, "step head"], *, induction_threshold: float,
    fv_threshold: float | Float[ndarray, "step 1"], seed: int, layers: Int[ndarray, "head"] | None = None,
    n_permutations: int = 2000,
) -> Transitions:
    """How many heads were induction heads before they became FV heads, the reverse, and the rest (section 5).

    A head has a score from the first checkpoint above the threshold on, also when the score falls later. The null pairs
    the induction curve of each head with the FV curve of a random one, within `layers` if given (heads of a layer
    emerge together, so this is the stricter null, and without power where they all do).
    """
    first_induction, first_fv = first_crossing(induction, induction_threshold), first_crossing(fv, fv_threshold)
    n_steps, n_heads = induction.shape
    layers = np.zeros(n_heads, dtype=np.int64) if layers is None else layers
    null = _count_orders(first_induction, first_fv[_others(layers, n_permutations, seed)], n_steps)
    return Transitions(_count_orders(first_induction, first_fv, n_steps), null)


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
    of_kind: Bool[ndarray, "step head"], other: Float[ndarray, "step head"], *, seed: int,
    layers: Int[ndarray, "head"] | None = None,
) -> RanksBefore:
    """How heads that are `of_kind` in the end ranked in the `other` score before they were.

    For each such head that was not of the kind at the first checkpoint, its percentile among all heads in their highest
    score at the checkpoints before; random heads take its place, none twice. Within `layers` if given: percentiles
    among heads of a layer, which says nothing where these do not differ.
    """
    layers = np.zeros(of_kind.shape[1], dtype=np.int64) if layers is None else layers
    heads = np.flatnonzero(of_kind[-1] & ~of_kind[0])
    ranks = np.empty((len(heads), len(layers)))
    for row, first in zip(ranks, of_kind[:, heads].argmax(axis=0), strict=True):
        before = other[:first].max(axis=0)
        for layer in np.unique(layers):
            row[layers == layer] = percentile_rank(before[layers == layer])
    rows, others = np.arange(len(heads)), _others(layers, N_PERMUTATIONS, seed)
    drawn = ranks[rows, others[:, heads]].sum(axis=1)
    return RanksBefore(float(ranks[rows, heads].sum()), len(heads), len(heads) / 2, drawn)


def places_exchanged(
    first_induction: Int[ndarray, "seed head"], first_fv: Int[ndarray, "seed head"], *, n_steps: int, seed: int
) -> Transitions:
    """`transition_counts` of seeds together from the first checkpoint with each score (`first_crossing`).

    The null gives each seed's heads the FV checkpoints of a random seed's heads at the same places, no seed's twice.
    """
    null = _count_orders(first_induction, first_fv[random_orders(len(first_fv), seed)], n_steps).sum(axis=1)
    return Transitions(_count_orders(first_induction, first_fv, n_steps).sum(axis=0), null)


def ranks_exchanged(
    of_kind: Bool[ndarray, "seed step head"], other: Float[ndarray, "seed step head"], *, seed: int
) -> RanksBefore:
    """`percentiles_before` of seeds together; the same heads of a random seed take their place, no seed's twice."""
    sums, n = np.zeros((len(other), len(other))), 0  # of the percentiles of one seed's heads in another
    for own, kind in zip(sums, of_kind, strict=True):
        heads = np.flatnonzero(kind[-1] & ~kind[0])
        n += len(heads)
        for head, first in zip(heads, kind[:, heads].argmax(axis=0), strict=True):
            own += [percentile_rank(curves[:first].max(axis=0))[head] for curves in other]
    drawn = sums[np.arange(len(other)), random_orders(len(other), seed)].sum(axis=1)
    return RanksBefore(float(sums.trace()), n, float(sums.mean(axis=1).sum()), drawn)


def _others(layers: Int[ndarray, "head"], n: int, seed: int) -> Int[ndarray, "draw head"]:
    """Random permutations of heads that keep each in its layer."""
    noise = np.random.default_rng(seed).random((n, len(layers)))
    found = np.empty(noise.shape, dtype=np.int64)
    found[:, np.argsort(layers, kind="stable")] = np.lexsort((noise, np.broadcast_to(layers, noise.shape)))
    return found


def _count_orders(
    first_induction: Int[ndarray, "*seed head"], first_fv: Int[ndarray, "*draw head"], n_steps: int
) -> Int[ndarray, "*draw order"]:
    has_induction, has_fv = first_induction < n_steps, first_fv < n_steps
    both = has_induction & has_fv
    masks = (both & (first_induction < first_fv), both & (first_induction > first_fv),
             both & (first_induction == first_fv), has_induction & ~has_fv, has_fv & ~has_induction,
             ~has_induction & ~has_fv)
    return np.stack([mask.sum(axis=-1) for mask in np.broadcast_arrays(*masks)], axis=-1)
