import itertools
import math

import numpy as np
import pytest
from scipy import stats

from icl_lib.kinds import FV_MINIMUM, fv_threshold
from icl_lib.stats.intervals import (
    bootstrap_mean,
    effect_against_draws,
    expected_overlap,
    holm,
    overlap_p_value,
    percentile_rank,
    rank_p_value,
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


def test_rank_p_values_count_the_value_itself():
    null = np.array([0.0, 1.0, 2.0, 3.0])
    assert rank_p_value(9.0, null) == 2 / 5
    assert rank_p_value(1.5, null) == 1.0


def test_holm_by_hand():
    assert holm(np.array([0.04, 0.01, 0.03])) == pytest.approx([0.06, 0.03, 0.06])
    assert holm(np.array([0.5, 0.9])).tolist() == [1.0, 1.0]


def test_percentile_is_the_mid_rank():
    scores = np.random.default_rng(6).integers(0, 6, size=(4, 8)).astype(float)
    brute = [stats.percentileofscore(scores.ravel(), score, kind="mean") / 100 for score in scores.ravel()]
    assert percentile_rank(scores).ravel() == pytest.approx(brute)
    assert percentile_rank(scores).mean() == pytest.approx(0.5)
    assert percentile_rank(np.zeros(5)).tolist() == [0.5] * 5


@pytest.mark.parametrize(("n_total", "n_first", "n_second"), [(6, 2, 2), (7, 3, 2), (6, 6, 1), (6, 4, 5)])
def test_overlap_against_all_pairs_of_sets(n_total, n_first, n_second):
    first = set(range(n_first))
    shared = np.array([len(first & set(other)) for other in itertools.combinations(range(n_total), n_second)])
    assert expected_overlap(n_total, n_first, n_second) == pytest.approx(
        shared.mean() / min(n_first, n_second)
    )
    for n_shared in np.unique(shared):
        tails = (shared >= n_shared).mean(), (shared <= n_shared).mean()
        found = overlap_p_value(int(n_shared), n_total, n_first, n_second)
        assert found.p_value == pytest.approx(min(1.0, 2 * min(tails)))


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
        (lambda: expected_overlap(8, 0, 2), "a set of 0 heads is impossible, expected 1..8"),
        (lambda: overlap_p_value(3, 8, 2, 2), "n_shared 3 is impossible"),
        (lambda: spearman(np.ones(9), np.arange(9.0)), "differing scores"),
        (lambda: fv_threshold(np.ones((0, 2))), "NaN or no draws"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", [False, True], ids=["all draws", "a draw a row"])
def test_an_effect_against_draws_is_that_of_one_generator_row_by_row(missing):
    """One generator draws tasks, prompts and draws; asked twice it says the same, whatever was kept in between."""
    rng = np.random.default_rng(3)
    tasks, values, draws = np.repeat(["a", "b", "c"], 4), rng.random(12), rng.random((5, 12))
    if missing:  # each row was measured with two of the draws
        draws[(np.arange(12) + np.arange(5)[:, None]) % 5 > 1] = np.nan
    one, n = np.random.default_rng(7), 200
    times = one.multinomial(3, [1 / 3] * 3, size=n)
    weights = np.hstack([one.multinomial(times[:, task] * 4, [1 / 4] * 4) / 12 for task in range(3)])
    of_draws = one.multinomial(5, [1 / 5] * 5, size=n) / 5
    means = []
    for weight, of_draw in zip(weights, of_draws, strict=True):
        cells = [(weight[row] * of_draw[draw], draws[draw, row] - values[row])
                 for draw in range(5) for row in range(12) if not np.isnan(draws[draw, row])]
        total = sum(w for w, _ in cells)
        means += [sum(w * lost for w, lost in cells) / total] if total else []
    tail = stats.norm.cdf(stats.t.ppf(0.025, 2) * np.sqrt(3 / 2))
    for _ in range(2):
        found = effect_against_draws(values, draws, tasks, seed=7, n_resamples=n)
        assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [tail, 1 - tail])))
        assert found.p_value == pytest.approx(2 * stats.t.sf(abs(found.value) / np.std(means), 2))
