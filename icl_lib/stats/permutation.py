"""Tests by other orders of the values: of groups, top heads and signs, each with the smallest p it could have had."""

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy import stats

from icl_lib.stats.intervals import ALL_ORDERS, Test, extreme, finite, orders, percentile_rank, subsets


def gehan_scores(times: Float[ndarray, "model"], came: Bool[ndarray, "model"]) -> Float[ndarray, "model"]:
    """How many others are known to be earlier, less how many are known to be later (Gehan 1965): ranks with censoring.

    `times`: when it came, or, where it never `came`, up to when one looked. One that never came is later than those
    that came by then; of those that came after one had stopped looking, and of two that never came, nothing is known.
    """
    times = finite(times, "times")
    earlier = came[None, :] & (times[None, :] < times[:, None])
    earlier |= came[None, :] & ~came[:, None] & (times[None, :] == times[:, None])
    return (earlier.sum(1) - earlier.sum(0)).astype(float)


def later_test(times: Float[ndarray, "run"], came: Bool[ndarray, "run"], first: Bool[ndarray, "run"]) -> Test:
    """Did something come later in the `first` runs than in the others, some of which it never `came` in?

    The value, -1..1, is the share of pairs of a first and another run in which it is known to have come later in the
    first, less that in which earlier; `times` as in `gehan_scores`. p-value: all ways to call as many runs first
    (random ones above 20,000), two-sided. Raises ValueError where either side is empty.
    """
    if not 0 < first.sum() < len(first):
        raise ValueError(f"{int(first.sum())} of {len(first)} runs are the first ones, expected some and not all")
    scores = gehan_scores(times, came)
    sets, exact = subsets(len(scores), int(first.sum()), 0, 9999)
    test = extreme(float(scores[first].sum()), scores[sets].sum(1), exact=exact)
    return test._replace(value=test.value / (first.sum() * (~first).sum()))


def group_test(groups: list[Float[ndarray, "model"]], *, seed: int, n_permutations: int = 9999) -> Test:
    """Kruskal and Wallis's H of groups with its permutation p-value; the value is the largest difference of means.

    Up to 8 values in all orders, more in random ones. Raises ValueError for fewer than two groups or an empty one.
    """
    if len(groups) < 2 or not all(map(len, groups)):
        raise ValueError(f"{len(groups)} groups of {', '.join(str(len(g)) for g in groups)} values, expected at least "
                         "two groups and a value in each")
    ranks = stats.rankdata(np.concatenate(groups))
    ends = np.cumsum([len(group) for group in groups])[:-1]

    def spread(ordered):
        return sum(part.sum(-1) ** 2 / part.shape[-1] for part in np.split(ordered, ends, axis=-1))

    null = spread(ranks[orders(len(ranks), seed, n_permutations)])
    means = [group.mean() for group in groups]
    test = extreme(float(spread(ranks)), null, exact=len(ranks) <= ALL_ORDERS)
    return test._replace(value=float(max(means) - min(means)))


def mean_rank_test(
    chosen: Bool[ndarray, "*shape"], scores: Float[ndarray, "*shape"], *, seed: int, n_permutations: int = 9999
) -> Test:
    """Mean percentile (`percentile_rank`) of chosen heads in a score against random sets of as many heads, two-sided.

    The value is 0..1, 0.5 on the mean over random sets. All sets where these are no more than 20,000, else random ones.
    Raises ValueError for no heads.
    """
    if not chosen.any():
        raise ValueError("the mean percentile of an empty head set is undefined")
    ranks = percentile_rank(scores)
    value, ranks, n = float(ranks[chosen].mean()), ranks.ravel(), int(chosen.sum())
    sets, exact = subsets(len(ranks), n, seed, n_permutations)
    test = extreme(value - 0.5, ranks[sets].mean(1) - 0.5, exact=exact)
    return test._replace(value=value)


def sign_test(differences: Float[ndarray, "row"]) -> Test:
    """Share of differences above zero, ties counted half, with the exact sign test of those that are not zero.

    `smallest_p` is that of as many rows without a tie.
    """
    differences = finite(differences, "differences")
    more, fewer = int((differences > 0).sum()), int((differences < 0).sum())
    p_value = float(stats.binomtest(more, more + fewer).pvalue) if more + fewer else 1.0
    return Test(float((np.sign(differences) + 1).mean() / 2), p_value, min(1.0, 2 * 0.5 ** len(differences)))
