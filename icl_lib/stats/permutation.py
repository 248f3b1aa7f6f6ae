"""Tests by other orders of the values: of groups, top heads and signs, each with the smallest p it could have had."""

import functools
import itertools
import math

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from scipy import stats

from icl_lib.stats.intervals import Test, finite, percentile_rank

# So many values are put into all orders, 8! = 40320; more into random ones.
ALL_ORDERS = 8
N_PERMUTATIONS = 9999
MOST_SETS = 20_000  # of things, up to which all are taken


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
    sets, exact = subsets(len(scores), int(first.sum()), 0)
    own = float(scores[first].sum())
    return extreme(own, scores[sets].sum(1), exact=exact, shown=own / (first.sum() * (~first).sum()))


def group_test(groups: list[Float[ndarray, "model"]], *, seed: int) -> Test:
    """Kruskal and Wallis's H of groups with its permutation p-value; the value is the largest difference of means.

    Raises ValueError for fewer than two groups or an empty one.
    """
    if len(groups) < 2 or not all(map(len, groups)):
        raise ValueError(f"groups of {[len(group) for group in groups]} values, expected at least two groups and a "
                         "value in each")
    ranks = stats.rankdata(np.concatenate(groups))
    ends = np.cumsum([len(group) for group in groups])[:-1]

    def spread(ordered):
        return sum(part.sum(-1) ** 2 / part.shape[-1] for part in np.split(ordered, ends, axis=-1))

    null = spread(ranks[orders(len(ranks), seed)])
    means = [group.mean() for group in groups]
    return extreme(float(spread(ranks)), null, exact=len(ranks) <= ALL_ORDERS, shown=float(max(means) - min(means)))


def mean_rank_test(chosen: Bool[ndarray, "layer head"], scores: Float[ndarray, "layer head"], *, seed: int) -> Test:
    """Mean percentile (`percentile_rank`) of chosen heads in a score less that of random heads of their layers.

    The null has as many heads in each layer as there are chosen ones, so that it has what a layer alone gives; all sets
    where these are no more than 20,000, else random ones, two-sided. Raises ValueError for no heads.
    """
    if not chosen.any():
        raise ValueError("the mean percentile of an empty head set is undefined")
    ranks, n = percentile_rank(scores), chosen.sum(1)
    layers = [(row, k) for row, k in zip(ranks, n.tolist(), strict=True) if k]
    if exact := math.prod(math.comb(len(row), k) for row, k in layers) <= MOST_SETS:
        null = functools.reduce(np.add.outer, [row[subsets(len(row), k, 0)[0]].sum(1) for row, k in layers]).ravel()
    else:
        rng = np.random.default_rng(seed)
        null = sum(rng.permuted(np.tile(row, (N_PERMUTATIONS, 1)), axis=1)[:, :k].sum(1) for row, k in layers)
    centre = (ranks.mean(1) * n).sum()
    return extreme(float(ranks[chosen].sum() - centre) / n.sum(), (null - centre) / n.sum(), exact=exact)


def sign_test(differences: Float[ndarray, "row"]) -> Test:
    """Share of differences above zero, ties counted half, with the exact sign test of those that are not zero."""
    differences = finite(differences, "differences")
    more, fewer = int((differences > 0).sum()), int((differences < 0).sum())
    p_value = float(stats.binomtest(more, more + fewer).pvalue) if more + fewer else 1.0
    return Test(float((np.sign(differences) + 1).mean() / 2), p_value, min(1.0, 2 * 0.5 ** (more + fewer)))


def trend_test(sizes: Float[ndarray, "model"], values: Float[ndarray, "model"], *, seed: int) -> Test:
    """Rank correlation of a value with model size and its permutation p-value, two-sided.

    For few models, where Fisher's interval is no use: up to 8 in all orders, more in random ones; two say nothing
    (smallest p 1). Ties have mean ranks. NaN stands for a missing model and is left out, infinity for one that never
    came.
    """
    present = ~(np.isnan(sizes) | np.isnan(values))
    # rounded, so that what is equal but for the order of its sums is a tie
    x, y = stats.rankdata(sizes[present]), stats.rankdata(np.round(values[present], 12))
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt((x**2).sum() * (y**2).sum())
    if scale == 0:
        return Test(0.0, 1.0, 1.0)
    null = y[orders(len(y), seed)] @ x / scale
    return extreme(float(x @ y / scale), null, exact=len(y) <= ALL_ORDERS)


def depth_difference(heads: Bool[ndarray, "layer head"], others: Bool[ndarray, "layer head"], *, seed: int) -> Test:
    """Mean layer of `heads` minus mean layer of `others` (figure 2), in layers, with a permutation p-value.

    Heads in both sets stay where they are; the labels of all others are shuffled, sizes kept: in every way where there
    are no more than 20,000 ways, else at random. Give the FV heads first to read positive as "FV heads sit deeper".
    Raises ValueError for an empty set.
    """
    if not heads.any() or not others.any():
        raise ValueError("the depth of an empty head set is undefined")
    layer = np.broadcast_to(np.arange(heads.shape[0])[:, None], heads.shape)
    pool = np.concatenate([layer[heads & ~others], layer[others & ~heads]])
    shared, n_own = layer[heads & others].sum(), int((heads & ~others).sum())

    def difference(own_sum):
        return (own_sum + shared) / heads.sum() - (pool.sum() - own_sum + shared) / others.sum()

    observed = float(difference(pool[:n_own].sum()))
    if not 0 < n_own < len(pool):
        return Test(observed, 1.0, 1.0)
    labelled, exact = subsets(len(pool), n_own, seed)
    # With unequal sizes and shared heads the null is not centred on 0.
    centre = float(difference(pool.mean() * n_own))
    return extreme(observed - centre, difference(pool[labelled].sum(1)) - centre, exact=exact, shown=observed)


def orders(n: int, seed: int) -> Int[ndarray, "draw n"]:
    """All orders of n things, or random ones where there are more than 8 things."""
    if n <= ALL_ORDERS:
        return np.array(list(itertools.permutations(range(n))))
    return random_orders(n, seed)


def random_orders(n: int, seed: int) -> Int[ndarray, "draw n"]:
    return np.random.default_rng(seed).permuted(np.tile(np.arange(n), (N_PERMUTATIONS, 1)), axis=1)


def subsets(n: int, size: int, seed: int) -> tuple[Int[ndarray, "draw size"], bool]:
    """All sets of `size` of n things and True, or random sets and False where there are more than 20,000."""
    if math.comb(n, size) <= MOST_SETS:
        return np.array(list(itertools.combinations(range(n), size))), True
    return np.random.default_rng(seed).random((N_PERMUTATIONS, n)).argsort(1)[:, :size], False


def extreme(value: float, null: Float[ndarray, "draw"], *, exact: bool, shown: float | None = None) -> Test:
    """A statistic around 0 with the share of the null as far out as it, and as far out as the null goes.

    `exact`: the null holds every arrangement, else the value counts as one more. `shown` stands as the test's value.
    """
    size = np.abs(null) + 1e-9  # for sums in another order
    more = 0 if exact else 1
    limits = abs(value), size.max() - 2e-9
    p_value, smallest = ((np.sum(size >= limit) + more) / (len(null) + more) for limit in limits)
    return Test(value if shown is None else shown, float(p_value), float(min(p_value, smallest)))
