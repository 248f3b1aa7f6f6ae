"""Estimates with intervals, tests and nulls: plain arrays in, named tuples out, every seed an argument."""

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from numpy import ndarray
from scipy import stats

N_RESAMPLES, _LEVEL = 2000, 0.95
_TAIL = (1 - _LEVEL) / 2


class Interval(NamedTuple):
    """An estimate and the ends of its 95 % interval, in the unit of the data."""

    value: float
    low: float
    high: float


class Test(NamedTuple):
    """A test statistic, its two-sided p-value, and its power: the smallest p that any arrangement could have had."""

    __test__ = False  # pytest would collect the name

    value: float
    p_value: float
    smallest_p: float = np.nan


def bootstrap_mean(values: Float[ndarray, "task"], *, seed: int) -> Interval:
    """Mean over tasks, one value each, with its 95 % bootstrap interval over tasks: what other tasks could have given.

    Every task weighs the same whatever its number of prompts, as in the paper. For two conditions on the same tasks
    give the differences. Percentile interval, its ends moved out to make up for few tasks (Hesterberg 2015, expanded
    percentile interval: the width of Student's t); none around a single task. Raises ValueError for empty or
    non-finite values.
    """
    values = finite(values, "values")
    n = len(values)
    if n == 1:
        return Interval(*[float(values[0])] * 3)
    means = (_times_drawn(n, seed) * values).mean(1)
    tail = stats.norm.cdf(stats.t.ppf(_TAIL, n - 1) * np.sqrt(n / (n - 1)))
    return _percentile_interval(float(np.mean(values)), means, tail)


@functools.lru_cache(maxsize=16)
def _times_drawn(n: int, seed: int) -> Int[ndarray, "resample task"]:
    """How often each of `n` tasks is drawn in each resample."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=N_RESAMPLES)


class Effect(NamedTuple):
    """An estimate, the ends of its interval and a two-sided p-value."""

    value: float
    low: float
    high: float
    p_value: float


class Lost(NamedTuple):
    """What is lost beyond a control, by task, and how sure the control's draws are of it."""

    by_task: Float[ndarray, "task"]
    draws_variance: float = 0.0  # of the mean over tasks, by the choice of these draws
    n_draws: int = 1


def lost_beyond(
    values: Float[ndarray, "row"], draws: Float[ndarray, "draw row"], tasks: Shaped[ndarray, "row"]
) -> Lost:
    """`draws - values`, mean over draws, then over a task's rows (prompts): what `values` lose beyond draws.

    With one task (documents) each row counts as a task. NaN among the draws stands for a row that was not measured
    with that draw; every row needs one. `draws_variance`: the sum of products of what two tasks lose under the same
    draw, above the mean, which is zero on average where draws do not differ; never below zero. Raises ValueError for
    empty or infinite values and for a row without draws.
    """
    values, draws = finite(values, "values"), np.asarray(draws, dtype=np.float64)
    present = ~np.isnan(draws)
    draws = finite(np.where(present, draws, 0), "draws")
    if not present.any(0).all():
        raise ValueError("draws are missing for some rows, expected at least one draw for every row")
    task = np.unique(tasks, return_inverse=True)[1]
    task = task if task.any() else np.arange(len(task))
    member = np.eye(task.max() + 1)[:, task] / np.bincount(task)[task]  # [task row], sums to 1 over rows
    weight = (present / present.sum(0)) @ member.T  # [draw task], sums to 1 over draws
    excess = (present * draws / present.sum(0)) @ member.T - weight * (member @ values)
    by_task = excess.sum(0)
    apart, n = excess - weight * by_task.mean(), len(draws)
    together = (apart.sum(1) ** 2).sum() - (apart**2).sum()
    variance = max(0.0, float(together)) / by_task.size**2 * n / (n - 1) if n > 1 else 0.0
    return Lost(by_task, variance, n)


def effect(*lost: Lost) -> Effect:
    """The mean over tasks of what is lost, or of two losses with independent draws the first less the second.

    95 % interval and two-sided p-value by Student's t: the variance over tasks, as other tasks could have been, plus
    that over draws (two-way clustering, Cameron, Gelbach and Miller 2011), with degrees of freedom by Satterthwaite.
    A task's prompts need no part of their own, for tasks differ by theirs too. One task has no interval.
    """
    by_task = lost[0].by_task - sum(other.by_task for other in lost[1:])
    n, value = len(by_task), float(by_task.mean())
    if n < 2:
        return Effect(value, value, value, 1.0)
    parts = [(by_task.var(ddof=1) / n, n - 1), *((of.draws_variance, max(1, of.n_draws - 1)) for of in lost)]
    variance = sum(part for part, _ in parts)
    if variance < 1e-24:  # nothing but rounding
        return Effect(value, value, value, 1.0)
    degrees = variance**2 / sum(part**2 / free for part, free in parts)
    half = stats.t.ppf((1 + _LEVEL) / 2, degrees) * np.sqrt(variance)
    return Effect(value, value - half, value + half, float(2 * stats.t.sf(abs(value) / np.sqrt(variance), degrees)))


def holm(p_values: Float[ndarray, "test"]) -> Float[ndarray, "test"]:
    """Holm's p-values: valid for all tests of a family together, whatever their dependence."""
    order = np.argsort(p_values, kind="stable")
    stepped = np.asarray(p_values, dtype=float)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(stepped))
    return adjusted


def percentile_rank(scores: Float[ndarray, "*shape"]) -> Float[ndarray, "*shape"]:
    """Percentile of every head among all heads of the model, 0..1 ("percentile", section 3, figure 3).

    Mid-rank: the share of heads below plus half the share of equal heads, itself included. The released code ranks the
    mean score of a set instead, which reads high for skewed scores.
    """
    ranks = stats.rankdata(finite(scores, "scores"), axis=None)
    return ((ranks - 0.5) / scores.size).reshape(scores.shape)


def overlap_test(first: Bool[ndarray, "layer head"], second: Bool[ndarray, "layer head"]) -> tuple[Test, float]:
    """Share of heads of two sets of one size that are in both, 0..1, with its p-value; and the share by chance.

    Chance is two random sets with as many heads in each layer as these have, so that kinds which only share their
    layers share no more: hypergeometric in each layer, two-sided, twice the smaller tail, at most 1. The random line of
    figure 3 takes heads from all layers and lies lower. Raises ValueError for an empty set.
    """
    if not first.any() or not second.any():
        raise ValueError("the overlap of an empty head set is undefined")
    ours, theirs, n = first.sum(1), second.sum(1), first.shape[1]
    chances = functools.reduce(np.convolve, [stats.hypergeom(n, one, other).pmf(np.arange(min(one, other) + 1))
                                             for one, other in zip(ours, theirs, strict=True)])
    size, shared = min(ours.sum(), theirs.sum()), int((first & second).sum())
    possible = np.flatnonzero(chances > 0)
    p_value, *ends = (float(min(1.0, 2 * min(chances[: k + 1].sum(), chances[k:].sum())))
                      for k in (shared, possible[0], possible[-1]))
    return Test(shared / size, p_value, min(ends)), float((ours * theirs).sum() / n / size)


def spearman(first: Float[ndarray, "*shape"], second: Float[ndarray, "*shape"], *, seed: int | None = None) -> Interval:
    """Rank correlation of two scores over all heads, -1..1, with its 95 % interval.

    Without a seed the interval is Fisher's z with the variance (1 + r^2/2) / (n - 3) of Bonett and Wright (2000); with
    a seed it is a bootstrap over heads, which assumes less. The paper's code ranks only the top induction heads. Raises
    ValueError below 4 heads or for constant scores.
    """
    x, y = finite(first, "first").ravel(), finite(second, "second").ravel()
    if len(x) < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
        raise ValueError(f"a rank correlation needs at least 4 heads with differing scores, got {len(x)}")
    rho = float(_rank_correlations(x[None], y[None])[0])
    if seed is None:
        half = stats.norm.ppf((1 + _LEVEL) / 2) * np.sqrt((1 + rho**2 / 2) / (len(x) - 3))
        with np.errstate(divide="ignore"):  # a perfect correlation has an infinite z and no width
            z = np.arctanh(rho)
        return Interval(rho, float(np.tanh(z - half)), float(np.tanh(z + half)))
    rows = np.random.default_rng(seed).integers(len(x), size=(N_RESAMPLES, len(x)))
    rows = rows[(np.ptp(x[rows], axis=1) > 0) & (np.ptp(y[rows], axis=1) > 0)]
    return _percentile_interval(rho, _rank_correlations(x[rows], y[rows]), _TAIL)


def _rank_correlations(x: Float[ndarray, "draw n"], y: Float[ndarray, "draw n"]) -> Float[ndarray, "draw"]:
    x, y = (stats.rankdata(values, axis=-1) - (values.shape[-1] + 1) / 2 for values in (x, y))
    return np.clip((x * y).sum(-1) / np.sqrt((x**2).sum(-1) * (y**2).sum(-1)), -1, 1)


def _percentile_interval(value: float, resamples: Float[ndarray, "resample"], tail: float) -> Interval:
    low, high = np.quantile(resamples, [tail, 1 - tail])
    return Interval(value, float(low), float(high))


def finite(values: Shaped[ndarray, "*shape"], name: str) -> Float[ndarray, "*shape"]:
    values = np.asarray(values, dtype=np.float64)
    if values.size == 0:
        raise ValueError(f"{name} are empty, expected at least one number")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} hold {int((~np.isfinite(values)).sum())} numbers that are not finite")
    return values
