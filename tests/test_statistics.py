import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from icl_lib.kinds import FV_MINIMUM, fv_threshold
from icl_lib.stats.intervals import (
    Lost,
    bootstrap_mean,
    effect,
    holm,
    lost_beyond,
    overlap_test,
    percentile_rank,
    spearman,
)


def simulated(rng, n_tasks, n_prompts, between, within):
    effects = np.repeat(rng.normal(0, between, n_tasks), n_prompts)
    return 0.3 + effects + rng.normal(0, within, len(effects))


def by_task(values, n_tasks):
    return values.reshape(n_tasks, -1).mean(axis=1)


def test_bootstrap_width_agrees_with_the_closed_form():
    rng = np.random.default_rng(1)
    values = by_task(simulated(rng, 30, 40, 0.5, 1.0), 30)
    found = bootstrap_mean(values, seed=0)
    width = 2 * stats.t.ppf(0.975, 29) * math.sqrt(30 / 29) * math.sqrt(values.var() / 30)
    assert found.high - found.low == pytest.approx(width, rel=0.06)
    assert found.value == pytest.approx(values.mean())
    assert bootstrap_mean(values[:1], seed=0) == (values[0],) * 3


def test_bootstrap_coverage_on_simulated_data():
    rng = np.random.default_rng(2)
    covered = []
    for trial in range(300):
        found = bootstrap_mean(by_task(simulated(rng, 12, 25, 0.3, 0.6), 12), seed=trial)
        covered.append(found.low <= 0.3 <= found.high)
    assert 0.91 <= np.mean(covered) <= 0.99  # 300 trials at 0.95: standard error 0.013


def test_pairing_removes_what_both_conditions_share():
    rng = np.random.default_rng(4)
    values = simulated(rng, 10, 30, 1.0, 1.0)
    others = values - 0.1 + rng.normal(0, 0.05, len(values))
    paired = bootstrap_mean(by_task(values - others, 10), seed=0)
    alone = bootstrap_mean(by_task(values, 10), seed=0)
    assert 0 < paired.low < 0.1 < paired.high
    assert (paired.high - paired.low) < 0.1 * (alone.high - alone.low)


def test_bootstrap_depends_on_the_seed_and_on_nothing_else():
    values = by_task(simulated(np.random.default_rng(5), 9, 10, 1.0, 1.0), 9)
    first = bootstrap_mean(values, seed=7)
    np.random.default_rng(99).random(10)
    assert bootstrap_mean(values, seed=7) == first != bootstrap_mean(values, seed=8)


def test_holm_by_hand():
    assert holm(np.array([0.04, 0.01, 0.03])) == pytest.approx([0.06, 0.03, 0.06])
    assert holm(np.array([0.5, 0.9])).tolist() == [1.0, 1.0]


def test_percentile_is_the_mid_rank():
    scores = np.random.default_rng(6).integers(0, 6, size=(4, 8)).astype(float)
    brute = [stats.percentileofscore(scores.ravel(), score, kind="mean") / 100 for score in scores.ravel()]
    assert percentile_rank(scores).ravel() == pytest.approx(brute)
    assert percentile_rank(scores).mean() == pytest.approx(0.5)
    assert percentile_rank(np.zeros(5)).tolist() == [0.5] * 5


@pytest.mark.parametrize(("ours", "theirs"), [([2], [2]), ([3], [5]), ([2, 1], [2, 2]), ([1, 0, 3], [2, 2, 2])])
def test_overlap_against_all_sets_with_as_many_heads_in_each_layer(ours, theirs):
    first = np.arange(5) < np.array(ours)[:, None]
    ways = [list(itertools.combinations(range(5), n)) for n in theirs]
    others = [np.array([np.isin(np.arange(5), row) for row in rows]) for rows in itertools.product(*ways)]
    shared = np.array([(first & other).sum() for other in others])
    size = min(sum(ours), sum(theirs))
    smallest = min(min(1.0, 2 * min((shared >= n).mean(), (shared <= n).mean())) for n in shared)
    for other, n_shared in zip(others, shared, strict=True):
        found, by_chance = overlap_test(first, other)
        tails = (shared >= n_shared).mean(), (shared <= n_shared).mean()
        assert found.p_value == pytest.approx(min(1.0, 2 * min(tails))) and found.value == n_shared / size
        assert by_chance == pytest.approx(shared.mean() / size) and found.smallest_p == pytest.approx(smallest)


def test_spearman_value_and_intervals():
    rng = np.random.default_rng(7)
    x = rng.normal(size=(8, 16))
    y = x + rng.normal(size=(8, 16))
    rho = stats.spearmanr(x.ravel(), y.ravel()).statistic
    fisher, bootstrap = spearman(x, y), spearman(x, y, seed=0)
    assert fisher.value == bootstrap.value == pytest.approx(rho)
    assert fisher.low < rho < fisher.high
    assert fisher.low == pytest.approx(bootstrap.low, abs=0.06)
    assert fisher.high == pytest.approx(bootstrap.high, abs=0.06)
    assert spearman(x, -x).value == pytest.approx(-1)


def test_spearman_interval_covers():
    rng = np.random.default_rng(8)
    truth = 6 / np.pi * np.arcsin(0.6 / 2)  # Spearman's rho of a bivariate normal with correlation 0.6
    covered = []
    for _ in range(300):
        x = rng.normal(size=40)
        found = spearman(x, 0.6 * x + 0.8 * rng.normal(size=40))
        covered.append(found.low <= truth <= found.high)
    assert 0.91 <= np.mean(covered) <= 0.985


def test_the_threshold_of_fv_heads_is_for_the_best_head_and_never_low():
    rng = np.random.default_rng(10)
    threshold = fv_threshold(rng.normal(size=(2000, 4, 8)))
    assert np.mean(rng.normal(size=(2000, 32)).max(axis=1) > threshold) == pytest.approx(0.01, abs=0.007)
    assert fv_threshold(np.full((3, 4), -0.5)) == fv_threshold(np.full((3, 4), 0.001)) == FV_MINIMUM
    # the 99th percentile over draws of each draw's best head, here the second of two
    assert fv_threshold(np.linspace([0.0, 0.0], [0.05, 0.1], 101)) == pytest.approx(0.099)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_mean(np.array([]), seed=0), "values are empty"),
        (lambda: bootstrap_mean(np.array([1.0, np.nan]), seed=0), "1 numbers that are not"),
        (lambda: overlap_test(np.zeros((1, 8), dtype=bool), np.ones((1, 8), dtype=bool)), "empty head set"),
        (lambda: spearman(np.ones(9), np.arange(9.0)), "differing scores"),
        (lambda: fv_threshold(np.ones((0, 2))), "NaN or no draws"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def measured(rng, n_tasks, n_prompts, n_draws, sds, *, spread):
    """Values of draws by prompt, 0 on average: tasks, prompts, draws, and each prompt under each draw, differ.

    `spread`: every prompt meets one of the draws, in turn. Prompts of one task alone are documents.
    """
    of_task, of_prompt, of_draw, of_cell = sds
    tasks = np.repeat(np.arange(n_tasks), n_prompts)
    draws = (rng.normal(0, of_task * (n_tasks > 1), n_tasks)[tasks] + rng.normal(0, of_prompt, len(tasks))
             + rng.normal(0, of_draw, (n_draws, 1)) + rng.normal(0, of_cell, (n_draws, len(tasks))))
    if spread:
        draws[np.arange(len(tasks)) % n_draws != np.arange(n_draws)[:, None]] = np.nan
    return np.zeros(len(tasks)), draws, tasks


SHAPES = [(19, 2, 20, True), (19, 8, 20, True), (19, 6, 20, False), (14, 6, 5, False), (1, 100, 20, True),
          (1, 60, 5, False)]


@pytest.mark.parametrize("sds", [(0.3, 0.4, 0.05, 0.4), (0.1, 0.1, 0.05, 0.5), (0.3, 0.2, 0.2, 0.3)])
@pytest.mark.parametrize(("n_tasks", "n_prompts", "n_draws", "spread"), SHAPES)
def test_an_effects_interval_covers_the_truth_as_often_as_it_says_and_is_no_wider(
    n_tasks, n_prompts, n_draws, spread, sds
):
    """Width is held against the spread over trials: twice as wide an interval fails, though it would cover more."""
    rng = np.random.default_rng(11)
    trials = [measured(rng, n_tasks, n_prompts, n_draws, sds, spread=spread) for _ in range(400)]
    found = pd.DataFrame([effect(lost_beyond(*trial)) for trial in trials])
    covered = (found["low"] <= 0) & (0 <= found["high"])
    assert 0.91 <= covered.mean() <= 0.98  # 400 trials at 0.95: standard error 0.011
    half = (found["high"] - found["low"]).mean() / 2
    assert half / found["value"].std() == pytest.approx(stats.t.ppf(0.975, max(n_tasks, 19) - 1), rel=0.15)
    assert ((found["p_value"] < 0.05) == ~covered).all()


def test_a_difference_of_two_effects_covers_the_truth_with_draws_of_its_own_for_each():
    rng, found = np.random.default_rng(12), []
    for _ in range(400):
        _, first, tasks = measured(rng, 19, 4, 20, (0.3, 0.2, 0.2, 0.3), spread=True)
        values = np.nanmean(first, axis=0) + rng.normal(0, 0.2, len(tasks))  # of the same prompts
        second = measured(rng, 19, 4, 20, (0.3, 0.2, 0.2, 0.3), spread=True)[1]
        zero = np.zeros_like(values)
        found.append(effect(lost_beyond(zero, first, tasks), lost_beyond(zero, second, tasks)))
    found = pd.DataFrame(found)
    covered = ((found["low"] <= 0) & (0 <= found["high"])).mean()
    assert 0.91 <= covered <= 0.98
    assert (found["high"] - found["low"]).mean() / 2 / found["value"].std() == pytest.approx(2.1, rel=0.15)


@pytest.mark.parametrize("n_tasks", [3, 1])
@pytest.mark.parametrize("missing", [False, True], ids=["all draws", "two draws a row"])
def test_what_is_lost_beyond_draws_is_what_loops_say(n_tasks, missing):
    rng, n_draws = np.random.default_rng(3), 5
    tasks, values, draws = np.repeat(["a", "b", "c"][:n_tasks], 12 // n_tasks), rng.random(12), rng.random((5, 12))
    draws += rng.random((5, 1))
    if missing:
        draws[(np.arange(12) + np.arange(5)[:, None]) % 5 > 1] = np.nan
    groups = [np.flatnonzero(tasks == name) for name in "abc"] if n_tasks > 1 else [[row] for row in range(12)]
    by_task = [np.mean([np.nanmean(draws[:, row]) - values[row] for row in rows]) for rows in groups]
    mean, products = np.mean(by_task), 0.0
    for draw, one, other in itertools.product(range(n_draws), range(len(groups)), range(len(groups))):
        parts = []
        for rows in (groups[one], groups[other]):
            level = np.mean([values[row] for row in rows]) + mean
            parts.append(sum((draws[draw, row] - level) / np.isfinite(draws[:, row]).sum() / len(rows)
                             for row in rows if np.isfinite(draws[draw, row])))
        products += parts[0] * parts[1] * (one != other)
    found = lost_beyond(values, draws, tasks)
    assert found.by_task == pytest.approx(by_task) and found.n_draws == n_draws
    assert found.draws_variance == pytest.approx(products / len(groups) ** 2 * n_draws / (n_draws - 1))
    assert found.draws_variance > 0


def test_an_effect_has_degrees_of_freedom_between_those_of_its_parts():
    by_task = np.array([0.1, 0.3, 0.2, 0.6])
    plain = effect(Lost(by_task))
    assert (plain.low, plain.high) == pytest.approx(
        stats.t.interval(0.95, 3, by_task.mean(), stats.sem(by_task)))
    assert plain.p_value == pytest.approx(stats.ttest_1samp(by_task, 0).pvalue)
    sure, unsure = Lost(np.full(4, 0.5)), Lost(np.full(4, 0.5), 0.01, n_draws=3)
    assert effect(sure) == (0.5, 0.5, 0.5, 1.0)
    assert effect(unsure).high == pytest.approx(0.5 + 0.1 * stats.t.ppf(0.975, 2))
    assert effect(Lost(by_task), sure).high - effect(Lost(by_task), sure).low == pytest.approx(plain.high - plain.low)
