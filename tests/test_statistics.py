import itertools
import math

import numpy as np
import pytest
from scipy import stats

from icl_lib.kinds import FV_MINIMUM, fv_threshold
from icl_lib.stats.emergence import (
    ORDERS,
    Emergence,
    emergence_interval,
    emergence_step,
    first_crossing,
    transition_counts,
)
from icl_lib.stats.intervals import (
    bootstrap_difference,
    bootstrap_mean,
    depth_difference,
    difference_to_draws,
    expected_overlap,
    holm,
    overlap_p_value,
    percentile_rank,
    rank_p_value,
    spearman,
    trend_test,
)


def simulated(rng, n_tasks, n_prompts, between, within):
    tasks = np.repeat([f"task{i}" for i in range(n_tasks)], n_prompts)
    effects = np.repeat(rng.normal(0, between, n_tasks), n_prompts)
    return (
        0.3 + effects + rng.normal(0, within, len(tasks)),
        tasks,
        0.3 + effects.reshape(n_tasks, -1)[:, 0].mean(),
    )


def test_estimate_weighs_tasks_equally():
    values, tasks = np.array([1.0, 1.0, 1.0, 0.0]), np.array(["a", "a", "a", "b"])
    assert bootstrap_mean(values, tasks, seed=0).value == 0.5


@pytest.mark.parametrize("over", ["prompts", "tasks", "both"])
def test_bootstrap_width_agrees_with_the_closed_form(over):
    rng = np.random.default_rng(1)
    n_tasks, n_prompts = 30, 40
    values, tasks, _ = simulated(rng, n_tasks, n_prompts, 0.5, 1.0)
    grouped = values.reshape(n_tasks, n_prompts)
    prompt_variance = grouped.var(axis=1).mean() / n_prompts / n_tasks
    task_variance = grouped.mean(axis=1).var() / n_tasks
    variance = {"prompts": prompt_variance, "tasks": task_variance, "both": prompt_variance + task_variance}
    found = bootstrap_mean(values, tasks, seed=0, over=over, n_resamples=8000)
    quantile = (
        1.96 if over == "prompts" else stats.t.ppf(0.975, n_tasks - 1) * math.sqrt(n_tasks / (n_tasks - 1))
    )
    width = 2 * quantile * math.sqrt(variance[over])
    assert found.high - found.low == pytest.approx(width, rel=0.06)
    assert found.value == pytest.approx(values.mean())


@pytest.mark.parametrize(("over", "target"), [("prompts", "these tasks"), ("tasks", "all"), ("both", "all")])
def test_bootstrap_coverage_on_simulated_data(over, target):
    rng = np.random.default_rng(2)
    covered = []
    for trial in range(300):
        values, tasks, mean_of_these_tasks = simulated(rng, 12, 25, 0.3, 0.6)
        truth = mean_of_these_tasks if target == "these tasks" else 0.3
        found = bootstrap_mean(values, tasks, seed=trial, over=over, n_resamples=300)
        covered.append(found.low <= truth <= found.high)
    assert 0.91 <= np.mean(covered) <= 0.99  # 300 trials at 0.95: standard error 0.013


def test_prompts_alone_miss_the_spread_over_tasks():
    rng = np.random.default_rng(3)
    covered = []
    for trial in range(100):
        values, tasks, _ = simulated(rng, 12, 25, 0.6, 0.3)
        found = bootstrap_mean(values, tasks, seed=trial, over="prompts", n_resamples=200)
        covered.append(found.low <= 0.3 <= found.high)
    assert np.mean(covered) < 0.5


def test_pairing_removes_what_both_conditions_share():
    rng = np.random.default_rng(4)
    values, tasks, _ = simulated(rng, 10, 30, 1.0, 1.0)
    others = values - 0.1 + rng.normal(0, 0.05, len(values))
    paired = bootstrap_difference(values, others, tasks, seed=0)
    alone = bootstrap_mean(values, tasks, seed=0)
    assert paired.excludes(0.0) and paired.low < 0.1 < paired.high
    assert (paired.high - paired.low) < 0.1 * (alone.high - alone.low)


def test_bootstrap_depends_on_the_seed_and_on_nothing_else():
    values, tasks, _ = simulated(np.random.default_rng(5), 4, 10, 1.0, 1.0)
    first = bootstrap_mean(values, tasks, seed=7)
    np.random.default_rng(99).random(10)
    assert bootstrap_mean(values, tasks, seed=7) == first != bootstrap_mean(values, tasks, seed=8)


def test_difference_to_draws_by_hand():
    found = difference_to_draws(0.5, np.linspace(0, 1, 101), level=0.9)
    assert found == pytest.approx((0.0, 0.5 - 0.95, 0.5 - 0.05))
    assert difference_to_draws(2.0, np.linspace(0, 1, 101)).excludes(0.0)


def test_rank_p_values_count_the_value_itself():
    null = np.array([0.0, 1.0, 2.0, 3.0])
    assert rank_p_value(9.0, null, alternative="greater") == 1 / 5
    assert rank_p_value(2.0, null, alternative="greater") == 3 / 5
    assert rank_p_value(-1.0, null, alternative="less") == 1 / 5
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


def test_trend_against_all_permutations():
    sizes, values = np.array([1.0, 2.0, 3.0, 4.0, 5.0]), np.array([0.1, 0.3, 0.2, 0.5, 0.4])
    rhos = [stats.spearmanr(sizes, order).statistic for order in itertools.permutations(values)]
    rho = stats.spearmanr(sizes, values).statistic
    exact = np.mean(np.abs(rhos) >= abs(rho) - 1e-9)
    found = trend_test(sizes, values, seed=0)
    assert found.value == pytest.approx(rho)
    assert found.p_value == pytest.approx(exact)
    assert found.smallest_p == pytest.approx(2 / 120)
    missing = trend_test(np.append(sizes, 6.0), np.append(values, np.nan), seed=0)
    assert missing == found


def mask_of(layers, n_heads=12, start=0):
    mask = np.zeros((10, n_heads), dtype=bool)
    for head, layer in enumerate(layers):
        mask[layer, start + head] = True
    return mask


def test_depth_difference_against_all_relabellings():
    first, second = [5, 6, 7, 7], [2, 3, 5, 4, 6]
    pool = first + second
    differences = []
    for own in itertools.combinations(range(9), 4):
        rest = [pool[i] for i in range(9) if i not in own]
        differences.append(np.mean([pool[i] for i in own]) - np.mean(rest))
    observed = np.mean(first) - np.mean(second)
    exact = np.mean(np.abs(differences) >= observed - 1e-9)
    found = depth_difference(mask_of(first), mask_of(second, start=5), seed=0)
    assert found.value == pytest.approx(observed)
    assert found.p_value == pytest.approx(exact)
    most = np.max(np.abs(np.array(differences) - np.mean(differences)))
    best = np.mean(np.abs(np.array(differences) - np.mean(differences)) >= most - 1e-9)
    assert found.smallest_p == pytest.approx(best)


def test_depth_of_shared_heads_cancels():
    shared = mask_of([1, 9, 9, 9], start=6)
    found = depth_difference(mask_of([4, 5]) | shared, mask_of([4, 5], start=3) | shared, seed=0)
    assert found.value == 0 and found.p_value == 1.0
    assert depth_difference(shared, shared, seed=0) == (0.0, 1.0, 1.0)


def test_depth_p_values_are_uniform_under_the_null():
    rng = np.random.default_rng(9)
    p_values = []
    for trial in range(300):
        chosen = rng.permutation(40 * 25)[:18]
        masks = np.zeros((2, 40 * 25), dtype=bool)
        masks[0, chosen[:10]] = masks[1, chosen[10:]] = True
        first, second = masks.reshape(2, 40, 25)
        p_values.append(depth_difference(first, second, seed=trial, n_permutations=199).p_value)
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
    assert np.mean(np.array(p_values) <= 0.05) < 0.09


def test_the_threshold_of_fv_heads_is_for_the_best_head_and_never_low():
    rng = np.random.default_rng(10)
    threshold = fv_threshold(rng.normal(size=(400, 4, 8)), quantile=0.95)
    assert np.mean(rng.normal(size=(2000, 32)).max(axis=1) > threshold) == pytest.approx(0.05, abs=0.025)
    assert fv_threshold(np.array([[0.0, 2.0], [1.0, 0.0]]), quantile=1.0) == 2.0
    assert fv_threshold(np.full((3, 4), -0.5)) == fv_threshold(np.full((3, 4), 0.001)) == FV_MINIMUM
    # unless told otherwise the 99th percentile over draws of each draw's best head, here the second of two
    assert fv_threshold(np.linspace([0.0, 0.0], [0.05, 0.1], 101)) == pytest.approx(0.099)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0, 0, 2, 2], Emergence(20, 10)),
        ([0, 2, 0, 2], Emergence(30, 20)),  # a passing excess does not count
        ([2, 2, 2, 2], Emergence(0, None)),
        ([0, 2, 2, 0], Emergence(None, 30)),
        ([0, np.nan, 2, 2], Emergence(20, 0)),
        ([0, 2, np.nan, 2], Emergence(10, 0)),
        ([0, 2, 2, np.nan], Emergence(10, 0)),
        ([0, 1, 1, 1], Emergence(None, 30)),  # equal to the null is not above it
    ],
)
def test_emergence_step(scores, expected):
    scores = np.array(scores, dtype=float)
    assert emergence_step([0, 10, 20, 30], scores, 1.0) == expected
    assert emergence_step([0, 10, 20, 30], scores, np.ones(4)) == expected


def test_emergence_interval_holds_its_share():
    rows = np.array([[0.0, 2, 2, 2]] * 5 + [[0.0, 0, 2, 2]] * 90 + [[0.0, 0, 0, 0]] * 5)
    assert emergence_interval([0, 10, 20, 30], rows, 1.0, level=0.95) == (10.0, math.inf)
    assert emergence_interval([0, 10, 20, 30], rows, 1.0, level=0.85) == (20.0, 20.0)


def test_transition_counts_by_hand():
    #                      ind.first  fv first  at once  ind. only  fv only  neither  ind. first, falls later
    induction = np.array([[0, 0, 0, 0, 0, 0, 9], [9, 0, 9, 9, 0, 0, 0], [9, 9, 9, 9, 0, 0, 0]], dtype=float)
    fv = np.array([[0, 0, 0, 0, 0, 0, 0], [0, 9, 9, 0, 9, 0, 0], [9, 9, 9, 0, 9, np.nan, 9]], dtype=float)
    assert first_crossing(induction, 1.0).tolist() == [1, 2, 1, 1, 3, 3, 0]
    found = transition_counts(induction, fv, induction_threshold=1.0, fv_threshold=1.0, seed=0)
    assert found.observed == dict(zip(ORDERS, (2, 1, 1, 1, 1, 1), strict=True))
    assert sum(found.expected.values()) == pytest.approx(7)


def test_transition_null_against_all_pairings():
    rng = np.random.default_rng(11)
    induction, fv = rng.random((3, 6)), rng.random((3, 6))
    found = transition_counts(
        induction, fv, induction_threshold=0.6, fv_threshold=0.6, seed=0, n_permutations=4000
    )
    counts = []
    for order in itertools.permutations(range(6)):
        a, b = first_crossing(induction, 0.6), first_crossing(fv, 0.6)[list(order)]
        counts.append(np.sum((a < b) & (b < 3)))
    assert found.expected["induction_first"] == pytest.approx(np.mean(counts), abs=0.06)
    counts = np.array(counts)

    def both_tails(count):
        return min(1.0, 2 * min(np.mean(counts >= count), np.mean(counts <= count)))

    assert found.p_value["induction_first"] == pytest.approx(both_tails(found.observed["induction_first"]), abs=0.05)
    smallest = min(both_tails(counts.min()), both_tails(counts.max()))
    assert found.smallest_p["induction_first"] == pytest.approx(smallest, abs=0.05)


def test_transition_null_within_layers_keeps_heads_in_their_layer():
    # Layer 0 holds all induction heads, layer 1 all FV heads: within layers no head can have both.
    induction = np.array([[9.0] * 4 + [0.0] * 4] * 2)
    fv = np.array([[0.0] * 8, [0.0] * 4 + [9.0] * 4])
    order = np.array([3, 5, 0, 7, 1, 6, 2, 4])  # layers need not come sorted
    arguments = {"induction_threshold": 1.0, "fv_threshold": 1.0, "seed": 0}
    layers = np.repeat([0, 1], 4)[order]
    within = transition_counts(induction[:, order], fv[:, order], layers=layers, **arguments)
    across = transition_counts(induction[:, order], fv[:, order], **arguments)
    assert within.expected["induction_first"] == 0
    assert within.smallest_p["induction_first"] == 1  # every pairing gives the same count: no power
    assert across.smallest_p["induction_first"] < 0.05
    assert across.expected["induction_first"] == pytest.approx(2, abs=0.15)


def test_transition_p_values_are_valid_under_the_null():
    rng = np.random.default_rng(12)
    p_values = []
    for trial in range(150):
        found = transition_counts(
            rng.random((4, 30)), rng.random((4, 30)), induction_threshold=0.8, fv_threshold=0.8, seed=trial,
            n_permutations=99,
        )  # fmt: skip
        p_values.append(found.p_value["induction_first"])
    assert np.mean(np.array(p_values) <= 0.05) < 0.1
    assert np.mean(np.array(p_values) <= 0.5) < 0.62


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_mean(np.array([]), np.array([]), seed=0), "values are empty"),
        (
            lambda: bootstrap_mean(np.array([1.0, np.nan]), np.array(["a", "a"]), seed=0),
            "1 numbers that are not",
        ),
        (
            lambda: bootstrap_mean(np.ones(2), np.array(["a", "b"]), seed=0, over="heads"),
            "'heads' is unknown",
        ),
        (lambda: bootstrap_mean(np.ones(2), np.array(["a", "a"]), seed=0, over="tasks"), r"one task \(a\)"),
        (
            lambda: bootstrap_mean(np.ones(2), np.array(["a", "b"]), seed=0, level=95.0),
            "level 95.0 is outside",
        ),
        (lambda: rank_p_value(1.0, np.ones(3), alternative="more"), "'more' is unknown"),
        (lambda: expected_overlap(8, 0, 2), "a set of 0 heads is impossible, expected 1..8"),
        (lambda: overlap_p_value(3, 8, 2, 2), "n_shared 3 is impossible"),
        (lambda: spearman(np.ones(9), np.arange(9.0)), "differing scores"),
        (lambda: trend_test(np.ones(2), np.ones(2), seed=0), "at least 3 models, got 2"),
        (lambda: depth_difference(mask_of([]), mask_of([1]), seed=0), "empty head set"),
        (lambda: fv_threshold(np.ones((2, 2)), quantile=95.0), "quantile 95.0 is outside"),
        (lambda: emergence_step([0, 0], np.ones(2), 0.0), "do not increase"),
        (lambda: emergence_step([0, 1], np.full(2, np.nan), 0.0), "all 2 checkpoints are missing"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
