"""Estimates with intervals, tests and nulls: plain arrays in, named tuples out, every seed an argument."""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped
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
    """A test statistic, its two-sided p-value, never 0 for a permutation test, and its power.

    `smallest_p`: the smallest p-value that any arrangement of these data could have had; from 0.05 on nothing could
    have come out of the test.
    """

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
    return _percentile_interval(float(np.mean(values)), means, _expanded_tail(n))


@lru_cache(maxsize=16)
def _times_drawn(n: int, seed: int) -> Int[ndarray, "resample task"]:
    """How often each of `n` tasks is drawn in each resample."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=N_RESAMPLES)


class Effect(NamedTuple):
    """An estimate, the ends of its interval and a two-sided p-value."""

    value: float
    low: float
    high: float
    p_value: float


def effect_against_draws(
    values: Float[ndarray, "row"], draws: Float[ndarray, "draw row"], tasks: Shaped[ndarray, "row"], *, seed: int,
    n_resamples: int = N_RESAMPLES,
) -> Effect:
    """Mean of `draws - values` over draws, prompts and then tasks, paired by prompt: what `values` lose beyond draws.

    Bootstrap over tasks, prompts within tasks and draws together, so that the interval also holds what few random
    draws leave open. Percentile interval, its ends moved out for few tasks as in `bootstrap_mean`; with one task
    (documents) over its rows and the draws. The p-value is Student's t of the value over its bootstrap standard
    error, with tasks (or rows) minus one degrees of freedom: it can be small enough for `holm`. NaN among the draws
    stands for a row that was not measured with that draw; every row needs one. Raises ValueError for empty or
    infinite values and for a row without draws.
    """
    lost = np.asarray(draws, dtype=np.float64) - finite(values, "values")
    present = ~np.isnan(lost)
    lost = finite(np.where(present, lost, 0), "draws")
    if not present.any(0).all():
        raise ValueError("draws are missing for some rows, expected at least one draw for every row")
    names, task_of_row = np.unique(tasks, return_inverse=True)
    n_tasks = len(names)
    weights, state = _resampled(tuple(task_of_row.tolist()), seed, n_resamples)
    rng = np.random.default_rng(seed)
    rng.bit_generator.state = state
    of_draws = rng.multinomial(len(lost), np.full(len(lost), 1 / len(lost)), size=n_resamples) / len(lost)
    # where every row has every draw the divisor is 1
    resamples, divisor = (((weights @ rows.T) * of_draws).sum(1) for rows in (lost, present.astype(float)))
    resamples = resamples / divisor
    resamples = resamples[np.isfinite(resamples)]
    of_row = lost.sum(0) / present.sum(0)
    estimate = float(np.mean([of_row[task_of_row == task].mean() for task in range(n_tasks)]))
    degrees = (n_tasks if n_tasks > 1 else len(task_of_row)) - 1
    error = resamples.std()
    p_value = float(2 * stats.t.sf(abs(estimate) / error, degrees)) if error > 0 and degrees else 1.0
    return Effect(*_percentile_interval(estimate, resamples, _expanded_tail(n_tasks)), p_value)


@lru_cache(maxsize=4)  # the effects of one measurement are resampled alike
def _resampled(
    task_of_row: tuple[int, ...], seed: int, n_resamples: int
) -> tuple[Float[ndarray, "resample row"], dict[str, Any]]:
    """What each row weighs in the mean over tasks of each bootstrap sample, and the state that the draws end in."""
    rng = np.random.default_rng(seed)
    sizes = np.bincount(task_of_row)
    n_tasks = len(sizes)
    times = rng.multinomial(n_tasks, np.full(n_tasks, 1 / n_tasks), size=n_resamples)
    weights = np.empty((n_resamples, len(task_of_row)))
    for task, size in enumerate(sizes):
        # a task drawn twice gets two independent sets of prompts
        drawn = rng.multinomial(times[:, task] * size, np.full(size, 1 / size))
        weights[:, np.equal(task_of_row, task)] = drawn / (size * n_tasks)
    return weights, rng.bit_generator.state


def rank_p_value(value: float, null: Float[ndarray, "draw"]) -> float:
    """Share of null draws at least as extreme as `value`, counting the value itself: (k + 1) / (n + 1), two-sided.

    Twice the smaller tail, at most 1.
    """
    null = finite(null, "null")
    greater, less = np.sum(null >= value), np.sum(null <= value)
    return float(min(1.0, 2 * (min(greater, less) + 1) / (len(null) + 1)))


def holm(p_values: Float[ndarray, "test"]) -> Float[ndarray, "test"]:
    """Holm's p-values: valid for all tests of a family together, whatever their dependence."""
    order = np.argsort(p_values, kind="stable")
    stepped = np.asarray(p_values, dtype=float)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(stepped))
    return adjusted


def percentile_rank(scores: Float[ndarray, "*shape"]) -> Float[ndarray, "*shape"]:
    """Percentile of every head among all heads of the model, 0..1 ("percentile", section 3, figure 3).

    Mid-rank: the share of heads below plus half the share of equal heads, itself included, so the mean over
    all heads is exactly 0.5. The released code ranks the mean score of a set instead, which reads high for
    skewed scores; average these ranks over a set to avoid that.
    """
    ranks = stats.rankdata(finite(scores, "scores"), axis=None)
    return ((ranks - 0.5) / scores.size).reshape(scores.shape)


def expected_overlap(n_total: int, n_first: int, n_second: int) -> float:
    """Expected share of the smaller of two random sets that is in both, 0..1 (the random line of figure 3).

    Closed form max(n_first, n_second) / n_total, the mean of a hypergeometric count over the smaller size;
    the released code estimates it by 100 draws. Raises ValueError for sizes outside 1..n_total.
    """
    _check_sizes(n_total, n_first, n_second)
    return max(n_first, n_second) / n_total


def overlap_p_value(n_shared: int, n_total: int, n_first: int, n_second: int) -> Test:
    """Shared heads of two sets against random sets of the same sizes: hypergeometric, two-sided.

    Twice the smaller tail, at most 1: both more and less overlap than chance count as evidence.
    """
    _check_sizes(n_total, n_first, n_second)
    chance = stats.hypergeom(n_total, n_first, n_second)
    fewest, most = max(0, n_first + n_second - n_total), min(n_first, n_second)
    if not fewest <= n_shared <= most:
        raise ValueError(f"n_shared {n_shared} is impossible for sets of {n_first} and {n_second} of {n_total}")
    p_value, *ends = (float(min(1.0, 2 * min(chance.sf(n - 1), chance.cdf(n)))) for n in (n_shared, fewest, most))
    return Test(float(n_shared), p_value, min(ends))


def spearman(first: Float[ndarray, "*shape"], second: Float[ndarray, "*shape"], *, seed: int | None = None) -> Interval:
    """Rank correlation of two scores over all heads, -1..1, with its 95 % interval.

    Without a seed the interval is Fisher's z with the variance (1 + r^2/2) / (n - 3) of Bonett and Wright
    (2000); with a seed it is a bootstrap over heads, which assumes less. Heads of one model are not
    independent, so both are read as descriptions of this model. The paper's code ranks only the top
    induction heads. Raises ValueError below 4 heads or for constant scores.
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


def _expanded_tail(n_tasks: int) -> float:
    """What is left out at each end of a percentile interval over tasks."""
    if n_tasks == 1:
        return _TAIL
    return stats.norm.cdf(stats.t.ppf(_TAIL, n_tasks - 1) * np.sqrt(n_tasks / (n_tasks - 1)))


def finite(values: Shaped[ndarray, "*shape"], name: str) -> Float[ndarray, "*shape"]:
    values = np.asarray(values, dtype=np.float64)
    if values.size == 0:
        raise ValueError(f"{name} are empty, expected at least one number")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} hold {int((~np.isfinite(values)).sum())} numbers that are not finite")
    return values


def _check_sizes(n_total: int, n_first: int, n_second: int) -> None:
    for size in (n_first, n_second):
        if not 1 <= size <= n_total:
            raise ValueError(f"a set of {size} heads is impossible, expected 1..{n_total}")
