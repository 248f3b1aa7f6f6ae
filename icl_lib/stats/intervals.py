"""Estimates with intervals, tests and nulls: plain arrays in, named tuples out, every seed an argument."""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped
from numpy import ndarray
from scipy import stats


class Interval(NamedTuple):
    """An estimate and the ends of its interval, in the unit of the data."""

    value: float
    low: float
    high: float

    def excludes(self, null: float = 0.0) -> bool:
        """Whether the interval lies wholly to one side of `null`."""
        return self.low > null or self.high < null


class Test(NamedTuple):
    """A test statistic, its two-sided p-value, never 0 for a permutation test, and its power.

    `smallest_p`: the smallest p-value that any arrangement of these data could have had; from 0.05 on nothing could
    have come out of the test.
    """

    __test__ = False  # pytest would collect the name

    value: float
    p_value: float
    smallest_p: float = np.nan


def bootstrap_mean(
    values: Float[ndarray, "row"],
    tasks: Shaped[ndarray, "row"],
    *,
    seed: int,
    over: str = "both",
    n_resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Mean over tasks of the mean over prompts ("averaged over prompts, then over tasks"), with its interval.

    Long form: one row per prompt, `tasks` names its task. Every task weighs the same whatever its number of
    prompts, as in the paper. `over` says what would differ in a repetition: "prompts" (same tasks, new
    prompts: stratified), "tasks" (new tasks with the prompt means at hand) or "both" (new tasks and new
    prompts in them; counts the prompt noise within a task twice, so it errs on the wide side). Percentile
    interval; over tasks its ends are moved out to make up for few tasks (Hesterberg 2015, expanded percentile
    interval: the width of Student's t). With one task "both" is "prompts".

    Raises ValueError for empty or non-finite values, an unknown `over`, or `over="tasks"` with one task.
    """
    if over not in ("prompts", "tasks", "both"):
        raise ValueError(f"over {over!r} is unknown, expected one of prompts, tasks, both")
    _check_level(level)
    values = finite(values, "values")
    names, task_of_row = np.unique(tasks, return_inverse=True)
    groups = [values[task_of_row == task] for task in range(len(names))]
    if len(groups) == 1 and over == "tasks":
        raise ValueError(f"one task ({names[0]}) has no spread over tasks, expected at least 2")
    estimate = float(np.mean([group.mean() for group in groups]))
    rng = np.random.default_rng(seed)
    if over == "prompts" or len(groups) == 1:
        drawn = np.ones((n_resamples, len(groups)), dtype=np.int64)
        tail = (1 - level) / 2
    else:
        drawn = rng.multinomial(len(groups), np.full(len(groups), 1 / len(groups)), size=n_resamples)
        degrees = len(groups) - 1
        tail = stats.norm.cdf(stats.t.ppf((1 - level) / 2, degrees) * np.sqrt(len(groups) / degrees))
    total = np.zeros(n_resamples)
    for task, group in enumerate(groups):
        # A task drawn twice gets two independent sets of prompts.
        resample = np.repeat(np.arange(n_resamples), drawn[:, task])
        if over == "tasks":
            means = np.full(len(resample), group.mean())
        else:
            means = group[rng.integers(len(group), size=(len(resample), len(group)))].mean(axis=1)
        np.add.at(total, resample, means)
    return _percentile_interval(estimate, total / len(groups), tail)


def bootstrap_difference(
    values: Float[ndarray, "row"],
    others: Float[ndarray, "row"],
    tasks: Shaped[ndarray, "row"],
    *,
    seed: int,
    over: str = "both",
    n_resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Mean of `values - others` where both rows are the same prompt: the paired form of `bootstrap_mean`.

    Use it for one set of heads ablated against another on the same prompts; average random draws per prompt
    first. Positive means that `values` are the larger ones.
    """
    difference = finite(values, "values") - finite(others, "others")
    return bootstrap_mean(difference, tasks, seed=seed, over=over, n_resamples=n_resamples, level=level)


class Effect(NamedTuple):
    """An estimate, the ends of its interval and a two-sided p-value."""

    value: float
    low: float
    high: float
    p_value: float


def effect_against_draws(
    values: Float[ndarray, "row"],
    draws: Float[ndarray, "draw row"],
    tasks: Shaped[ndarray, "row"],
    *,
    seed: int,
    n_resamples: int = 2000,
    level: float = 0.95,
) -> Effect:
    """Mean of `draws - values` over draws, prompts and then tasks, paired by prompt: what `values` lose beyond draws.

    Bootstrap over tasks, prompts within tasks and draws together, so that the interval also holds what few random
    draws leave open. Percentile interval, its ends moved out for few tasks as in `bootstrap_mean`; with one task
    (documents) over its rows and the draws. The p-value is Student's t of the value over its bootstrap standard
    error, with tasks (or rows) minus one degrees of freedom: it can be small enough for `holm`. NaN among the draws
    stands for a row that was not measured with that draw; every row needs one. Raises ValueError for empty or
    infinite values and for a row without draws.
    """
    _check_level(level)
    lost = np.asarray(draws, dtype=np.float64) - finite(values, "values")
    present = ~np.isnan(lost)
    lost = finite(np.where(present, lost, 0), "draws")
    if not present.any(0).all():
        raise ValueError("draws are missing for some rows, expected at least one draw for every row")
    names, task_of_row = np.unique(tasks, return_inverse=True)
    n_tasks = len(names)
    weights, rng = _resampled(tuple(task_of_row.tolist()), seed, n_resamples)
    of_draws = rng.multinomial(len(lost), np.full(len(lost), 1 / len(lost)), size=n_resamples) / len(lost)
    # where every row has every draw the divisor is 1
    resamples, divisor = (((weights @ rows.T) * of_draws).sum(1) for rows in (lost, present.astype(float)))
    resamples = resamples / divisor
    resamples = resamples[np.isfinite(resamples)]
    of_row = lost.sum(0) / present.sum(0)
    estimate = float(np.mean([of_row[task_of_row == task].mean() for task in range(n_tasks)]))
    degrees = (n_tasks if n_tasks > 1 else len(task_of_row)) - 1
    tail = (1 - level) / 2
    if n_tasks > 1:
        tail = stats.norm.cdf(stats.t.ppf(tail, degrees) * np.sqrt(n_tasks / degrees))
    error = resamples.std()
    p_value = float(2 * stats.t.sf(abs(estimate) / error, degrees)) if error > 0 and degrees else 1.0
    return Effect(*_percentile_interval(estimate, resamples, tail), p_value)


@lru_cache(maxsize=4)  # the effects of one measurement are resampled alike
def _resampled_once(
    task_of_row: tuple[int, ...], seed: int, n_resamples: int
) -> tuple[Float[ndarray, "resample row"], dict[str, Any]]:
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


def _resampled(
    task_of_row: tuple[int, ...], seed: int, n_resamples: int
) -> tuple[Float[ndarray, "resample row"], np.random.Generator]:
    """What each row weighs in the mean over tasks of each bootstrap sample, and the generator that drew them."""
    weights, state = _resampled_once(task_of_row, seed, n_resamples)
    rng = np.random.default_rng(seed)
    rng.bit_generator.state = state
    return weights, rng


def rank_p_value(value: float, null: Float[ndarray, "draw"], *, alternative: str = "two-sided") -> float:
    """Share of null draws at least as extreme as `value`, counting the value itself: (k + 1) / (n + 1).

    `alternative` is "greater", "less" or "two-sided" (twice the smaller, at most 1).
    """
    null = finite(null, "null")
    greater = (np.sum(null >= value) + 1) / (len(null) + 1)
    less = (np.sum(null <= value) + 1) / (len(null) + 1)
    sides = {"greater": greater, "less": less, "two-sided": min(1.0, 2 * min(greater, less))}
    if alternative not in sides:
        raise ValueError(f"alternative {alternative!r} is unknown, expected one of {', '.join(sides)}")
    return float(sides[alternative])


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
    if not max(0, n_first + n_second - n_total) <= n_shared <= min(n_first, n_second):
        raise ValueError(
            f"n_shared {n_shared} is impossible for sets of {n_first} and {n_second} of {n_total}"
        )
    return Test(float(n_shared), float(min(1.0, 2 * min(chance.sf(n_shared - 1), chance.cdf(n_shared)))))


def spearman(
    first: Float[ndarray, "*shape"],
    second: Float[ndarray, "*shape"],
    *,
    level: float = 0.95,
    seed: int | None = None,
    n_resamples: int = 2000,
) -> Interval:
    """Rank correlation of two scores over all heads, -1..1, with its interval.

    Without a seed the interval is Fisher's z with the variance (1 + r^2/2) / (n - 3) of Bonett and Wright
    (2000); with a seed it is a bootstrap over heads, which assumes less. Heads of one model are not
    independent, so both are read as descriptions of this model. The paper's code ranks only the top
    induction heads. Raises ValueError below 4 heads or for constant scores.
    """
    _check_level(level)
    x, y = finite(first, "first").ravel(), finite(second, "second").ravel()
    if len(x) < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
        raise ValueError(f"a rank correlation needs at least 4 heads with differing scores, got {len(x)}")
    rho = float(_rank_correlations(x[None], y[None])[0])
    if seed is None:
        half = stats.norm.ppf((1 + level) / 2) * np.sqrt((1 + rho**2 / 2) / (len(x) - 3))
        with np.errstate(divide="ignore"):  # a perfect correlation has an infinite z and no width
            z = np.arctanh(rho)
        return Interval(rho, float(np.tanh(z - half)), float(np.tanh(z + half)))
    rows = np.random.default_rng(seed).integers(len(x), size=(n_resamples, len(x)))
    rows = rows[(np.ptp(x[rows], axis=1) > 0) & (np.ptp(y[rows], axis=1) > 0)]
    return _percentile_interval(rho, _rank_correlations(x[rows], y[rows]), (1 - level) / 2)


def _rank_correlations(x: Float[ndarray, "draw n"], y: Float[ndarray, "draw n"]) -> Float[ndarray, "draw"]:
    x, y = (stats.rankdata(values, axis=-1) - (values.shape[-1] + 1) / 2 for values in (x, y))
    return np.clip((x * y).sum(-1) / np.sqrt((x**2).sum(-1) * (y**2).sum(-1)), -1, 1)


def _percentile_interval(value: float, resamples: Float[ndarray, "resample"], tail: float) -> Interval:
    low, high = np.quantile(resamples, [tail, 1 - tail])
    return Interval(value, float(low), float(high))


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level {level!r} is outside 0..1")


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
