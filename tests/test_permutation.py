"""Tests by other orders of the values, against all orders counted one by one and against SciPy."""

import itertools

import numpy as np
import pytest
from scipy import stats

from icl_lib.stats.intervals import percentile_rank
from icl_lib.stats.permutation import (
    depth_difference,
    gehan_scores,
    group_test,
    later_test,
    mean_rank_test,
    sign_test,
    trend_test,
)


@pytest.mark.parametrize(("n", "smallest"), [(3, 2 / 6), (4, 2 / 24), (5, 2 / 120)])
def test_a_trend_over_few_models_cannot_have_a_small_p(n, smallest):
    perfect = trend_test(np.arange(n, dtype=float), np.arange(n, dtype=float), seed=0)
    assert perfect.p_value == perfect.smallest_p == pytest.approx(smallest)


def test_ties_take_power_from_a_trend():
    tied = trend_test(np.arange(5.0), np.array([1.0, 1, 1, 1, 2]), seed=0)
    assert tied.p_value == tied.smallest_p == pytest.approx(2 / 5)  # the one that differs is at either end
    assert trend_test(np.arange(5.0), np.ones(5), seed=0).smallest_p == 1
    assert trend_test(np.arange(2.0), np.arange(2.0), seed=0).smallest_p == 1, "two models say nothing"


def test_many_models_are_put_in_random_orders():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 12))
    found, scipys = trend_test(x, y, seed=0), stats.spearmanr(x, y)
    assert found.value == pytest.approx(scipys.statistic)
    assert found.p_value == pytest.approx(scipys.pvalue, abs=0.05) and 0 < found.smallest_p < 0.001


def test_gehan_scores_by_hand():
    #                       came, came, never by 20, came later than that, never by 40
    times, came = np.array([10.0, 20, 20, 30, 40]), np.array([True, True, False, True, False])
    # of the third and the fourth, and of the third and the fifth, nothing is known
    assert gehan_scores(times, came).tolist() == [-4, 1 - 3, 2, 2 - 1, 3]
    ranks = gehan_scores(np.array([3.0, 1, 2]), np.ones(3, dtype=bool))
    assert ranks.tolist() == [2, -2, 0]


def test_later_counts_pairs_and_all_ways_to_label_them():
    times = np.array([30.0, 40, 40, 10, 20, 40])
    came = np.array([True, True, False, True, True, True])
    first = np.array([True, True, True, False, False, False])
    found = later_test(times, came, first)

    def known(i, j):  # is i known to be later than j
        return came[j] and (times[j] < times[i] or (times[j] == times[i] and not came[i]))

    def share(chosen):
        others = [j for j in range(6) if j not in chosen]
        return np.mean([int(known(i, j)) - int(known(j, i)) for i in chosen for j in others])

    every = np.abs([share(chosen) for chosen in itertools.combinations(range(6), 3)])
    assert found.value == pytest.approx(share((0, 1, 2)))
    assert found.p_value == pytest.approx(np.mean(every >= abs(share((0, 1, 2))) - 1e-9))
    assert found.smallest_p == pytest.approx(np.mean(every >= every.max() - 1e-9))


@pytest.mark.parametrize(("sizes", "smallest"), [((3, 3), 2 / 20), ((4, 4), 2 / 70), ((2, 2, 2), 6 / 90)])
def test_groups_against_all_ways_to_form_them(sizes, smallest):
    parted = [np.arange(size) + 10.0 * i for i, size in enumerate(sizes)]
    found = group_test(parted, seed=0)
    assert found.p_value == found.smallest_p == pytest.approx(smallest)
    assert found.value == pytest.approx(max(g.mean() for g in parted) - min(g.mean() for g in parted))


def test_groups_agree_with_scipy_where_there_are_many_values():
    rng = np.random.default_rng(1)
    groups = [rng.normal(loc=0.5 * i, size=12) for i in range(3)]
    assert group_test(groups, seed=0).p_value == pytest.approx(stats.kruskal(*groups).pvalue, abs=0.02)


def test_the_mean_percentile_against_all_sets_with_as_many_heads_in_each_layer():
    scores, chosen = np.random.default_rng(2).normal(size=(3, 6)), np.zeros((3, 6), dtype=bool)
    chosen[0, scores[0].argsort()[[5, 4]]] = chosen[1, scores[1].argmax()] = True
    found = mean_rank_test(chosen, scores, seed=0)
    ranks = percentile_rank(scores)
    every = np.array([(ranks[0, list(pair)].sum() + one) / 3
                      for pair in itertools.combinations(range(6), 2) for one in ranks[1]])
    assert found.value == pytest.approx(ranks[chosen].mean() - every.mean())
    assert found.p_value == pytest.approx(np.mean(np.abs(every - every.mean()) >= found.value - 1e-9))
    assert found.smallest_p <= found.p_value < 0.05


def test_a_high_score_of_the_whole_layer_is_none_of_its_heads():
    rng = np.random.default_rng(3)
    chosen = np.zeros((10, 12), dtype=bool)
    chosen[4, :5] = chosen[5, 2:6] = True
    of_layer = rng.random((10, 12)) + 5 * chosen.any(1)[:, None]
    found = mean_rank_test(chosen, of_layer, seed=0)
    assert abs(found.value) < 0.08 and found.p_value > 0.05 > found.smallest_p  # of random ones, of 629,640 sets
    own = mean_rank_test(chosen, of_layer + chosen, seed=0)
    assert own.value > 0.03 and own.p_value < 0.002


def test_signs_are_counted_without_ties():
    found = sign_test(np.array([0.2, 0.1, 0.3, -0.1, 0.0, 0.2]))
    assert found.value == pytest.approx(4.5 / 6)
    assert found.p_value == pytest.approx(stats.binomtest(4, 5).pvalue)
    assert found.smallest_p == pytest.approx(2 / 32)
    assert sign_test(np.zeros(4)) == (0.5, 1.0, 1.0), "where all are tied nothing could have come out"


@pytest.mark.parametrize(("call", "message"), [
    (lambda: group_test([np.ones(2)], seed=0), "expected at least two groups"),
    (lambda: mean_rank_test(np.zeros((2, 2), dtype=bool), np.ones((2, 2)), seed=0), "empty head set"),
    (lambda: later_test(np.ones(2), np.ones(2, dtype=bool), np.ones(2, dtype=bool)), "2 of 2 runs are the first"),
    (lambda: depth_difference(mask_of([]), mask_of([1]), seed=0), "empty head set"),
])
def test_bad_input_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


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


def test_depth_p_values_are_uniform_under_the_null(monkeypatch):
    monkeypatch.setattr("icl_lib.stats.permutation.N_PERMUTATIONS", 199)
    rng = np.random.default_rng(9)
    p_values = []
    for trial in range(300):
        chosen = rng.permutation(40 * 25)[:18]
        masks = np.zeros((2, 40 * 25), dtype=bool)
        masks[0, chosen[:10]] = masks[1, chosen[10:]] = True
        first, second = masks.reshape(2, 40, 25)
        p_values.append(depth_difference(first, second, seed=trial).p_value)
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
    assert np.mean(np.array(p_values) <= 0.05) < 0.09
