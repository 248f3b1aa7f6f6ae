"""When scores emerge and in which order, by hand, against all pairings, and valid under the null."""

import itertools
import math

import numpy as np
import pytest

from icl_lib.stats.emergence import (
    ORDERS,
    Emergence,
    Transitions,
    count_orders,
    emergence_interval,
    emergence_step,
    exchanged_between,
    exchanged_within,
    first_step,
    percentiles_before,
)


def orders_of(induction, fv, threshold, layers=None, seed=0, n_draws=2000):
    """Heads by which score came first; curves are exchanged among all heads or within layers."""
    exchange = exchanged_within(np.zeros(induction.shape[1], int) if layers is None else layers, n_draws, seed)
    return count_orders(first_step(induction > threshold), first_step(fv > threshold), exchange)


def ranks_of(of_kind, other, layers=None):
    return percentiles_before(of_kind, other, exchanged_within(
        np.zeros(of_kind.shape[1], int) if layers is None else layers, 9999, 0))


def induction_first(found):
    return found.table().set_index("order").loc["induction_first"]


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
    assert emergence_interval([0, 10, 20, 30], rows, 1.0) == (10.0, math.inf)


def test_transition_counts_by_hand():
    #                      ind.first  fv first  at once  ind. only  fv only  neither  ind. first, falls later
    induction = np.array([[0, 0, 0, 0, 0, 0, 9], [9, 0, 9, 9, 0, 0, 0], [9, 9, 9, 9, 0, 0, 0]], dtype=float)
    fv = np.array([[0, 0, 0, 0, 0, 0, 0], [0, 9, 9, 0, 9, 0, 0], [9, 9, 9, 0, 9, np.nan, 9]], dtype=float)
    assert first_step(induction > 1.0).tolist() == [1, 2, 1, 1, np.inf, np.inf, 0]
    found = orders_of(induction, fv, 1.0)
    assert found.observed.tolist() == [2, 1, 1, 1, 1, 1] and found.table()["order"].tolist() == list(ORDERS)
    assert found.table()["expected by chance"].sum() == pytest.approx(7)


def test_p_values_of_counts_count_the_value_itself():
    null = np.array([[0, 0, 5, 0, 0, 0], [1, 1, 5, 0, 0, 0], [2, 2, 5, 0, 0, 0], [3, 3, 5, 0, 0, 0]])
    found = Transitions(np.array([9, 2, 5, 0, 0, 0]), null).table()
    assert found["p"].tolist() == [2 / 5, 1, 1, 1, 1, 1] and found["smallest p"].tolist() == [2 / 5, 4 / 5, 1, 1, 1, 1]


def test_transition_null_against_all_pairings():
    rng = np.random.default_rng(11)
    induction, fv = rng.random((3, 6)), rng.random((3, 6))
    found = orders_of(induction, fv, 0.6, n_draws=4000)
    counts = []
    for order in itertools.permutations(range(6)):
        a, b = first_step(induction > 0.6), first_step(fv > 0.6)[list(order)]
        counts.append(np.sum((a < b) & (b < 3)))
    row = induction_first(found)
    assert row["expected by chance"] == pytest.approx(np.mean(counts), abs=0.06)
    counts = np.array(counts)

    def both_tails(count):
        return min(1.0, 2 * min(np.mean(counts >= count), np.mean(counts <= count)))

    assert row["p"] == pytest.approx(both_tails(row["heads"]), abs=0.05)
    smallest = min(both_tails(counts.min()), both_tails(counts.max()))
    assert row["smallest p"] == pytest.approx(smallest, abs=0.05)


def test_transition_null_within_layers_keeps_heads_in_their_layer():
    # Layer 0 holds all induction heads, layer 1 all FV heads: within layers no head can have both.
    induction = np.array([[9.0] * 4 + [0.0] * 4] * 2)
    fv = np.array([[0.0] * 8, [0.0] * 4 + [9.0] * 4])
    order = np.array([3, 5, 0, 7, 1, 6, 2, 4])  # layers need not come sorted
    layers = np.repeat([0, 1], 4)[order]
    within = induction_first(orders_of(induction[:, order], fv[:, order], 1.0, layers))
    across = induction_first(orders_of(induction[:, order], fv[:, order], 1.0))
    assert within["expected by chance"] == 0
    assert within["smallest p"] == 1  # every pairing gives the same count: no power
    assert across["smallest p"] < 0.05
    assert across["expected by chance"] == pytest.approx(2, abs=0.15)


def test_transition_p_values_are_valid_under_the_null():
    rng = np.random.default_rng(12)
    p_values = []
    for trial in range(150):
        found = orders_of(rng.random((4, 30)), rng.random((4, 30)), 0.8, seed=trial, n_draws=99)
        p_values.append(induction_first(found)["p"])
    assert np.mean(np.array(p_values) <= 0.05) < 0.1
    assert np.mean(np.array(p_values) <= 0.5) < 0.62


@pytest.mark.parametrize(("call", "message"), [
    (lambda: emergence_step([0, 0], np.ones(2), 0.0), "do not increase"),
    (lambda: emergence_step([0, 1], np.full(2, np.nan), 0.0), "all 2 checkpoints are missing"),
])
def test_bad_input_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_percentiles_before_are_of_the_checkpoints_before_and_of_heads_that_came():
    of_kind, other = np.zeros((4, 10), dtype=bool), np.tile(np.arange(10.0), (4, 1))
    of_kind[2:, 7] = of_kind[:, 1] = of_kind[1:3, 2] = True  # head 1 from the start, head 2 not in the end
    other[2:, 0] = 100  # too late to count
    found = ranks_of(of_kind, other)
    assert (found.total, found.n) == (pytest.approx(0.75), 1)
    assert sorted(set(found.null.round(9))) == pytest.approx(np.arange(10) / 10 + 0.05)  # any head in its place
    assert found.test().p_value == pytest.approx(0.6, abs=0.03)  # six of ten heads are as far from the middle
    of_layer = ranks_of(of_kind, other, np.repeat([0, 1], 5))
    assert of_layer.total == pytest.approx(0.5)
    assert sorted(set(of_layer.null.round(9))) == pytest.approx(np.arange(5) / 5 + 0.1)
    alike = ranks_of(of_kind, np.ones((4, 10)))
    assert alike.test().smallest_p == 1.0 and alike.total == pytest.approx(0.5)


def test_what_a_place_does_in_every_seed_is_no_link():
    linked, alike = np.full((3, 4), np.inf), np.full((3, 4), np.inf)  # first checkpoints of three seeds' heads
    linked[[0, 1, 2], [0, 1, 2]] = alike[:, 0] = 1
    for first, expected, p_value in ((linked, 1, 2 / 6), (alike, 3, 1)):  # one pairing of six keeps all three
        found = count_orders(first.ravel(), first.ravel() + 1, exchanged_between(3, 4, 0))
        row = found.table().set_index("order").iloc[0]
        assert row["heads"] == 3 and row["expected by chance"] == pytest.approx(expected, abs=0.05)
        assert row["p"] == pytest.approx(p_value, abs=0.03)


def test_ranks_are_compared_with_those_of_the_same_heads_up_to_the_same_checkpoint():
    of_kind, other = np.zeros((2, 3, 4), dtype=bool), np.tile(np.arange(4.0), (2, 3, 1))
    of_kind[0, 1:, 3] = of_kind[1, 2:, 0] = True  # head 3 of one seed from checkpoint 1, head 0 of the other from 2
    other[1, 0] = [3.0, 2.0, 1.0, 0.0]  # in the other seed head 3 is last at checkpoint 0, and first after it
    found = percentiles_before(np.hstack(of_kind), np.hstack(other), exchanged_between(2, 4, 0))
    assert (found.total, found.n) == (pytest.approx(7 / 8 + 6 / 8), 2)  # head 0 is as high as head 3 until then
    assert sorted(set(found.null.round(9))) == pytest.approx([1 / 8 + 1 / 8, 7 / 8 + 6 / 8])
    assert found.by_chance == pytest.approx((7 + 1 + 6 + 1) / 8 / 4)


def test_two_heads_never_have_one_place():
    of_kind = np.zeros((2, 3), dtype=bool)
    of_kind[1, :2] = True
    found = ranks_of(of_kind, np.array([[3.0, 2.0, 1.0]] * 2))
    assert found.total == pytest.approx(5 / 6 + 3 / 6)
    assert sorted(set(found.null.round(9))) == pytest.approx([4 / 6, 1.0, 8 / 6])
