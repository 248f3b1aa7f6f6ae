import itertools
import math
from decimal import Decimal

import numpy as np
import pytest

from icl_lib.heads import (
    head_count,
    head_names,
    layer_distance,
    layer_matched_random_heads,
    overlap,
    random_heads,
    top_heads,
)

FRACTIONS = (0.01, 0.03, 0.05, 0.07, 0.09, 0.15, 0.20)

# heads -> (ablated by the released code at the fractions, excluded by it, top 2 % and top 5 % in plots)
PAPER_COUNTS = {
    48: ((1, 1, 2, 3, 4, 7, 9), 0, 1, 3),
    144: ((1, 4, 7, 10, 12, 21, 28), 2, 3, 8),
    384: ((3, 11, 19, 26, 34, 57, 76), 7, 8, 20),
    128: ((1, 3, 6, 8, 11, 19, 25), 2, 3, 7),
    1024: ((10, 30, 51, 71, 92, 153, 204), 20, 21, 52),
    720: ((7, 21, 36, 50, 64, 108, 144), 14, 15, 36),
    1200: ((12, 36, 60, 84, 108, 180, 240), 24, 24, 60),
}


def mask_of(names, shape):
    names_of_all = head_names(np.ones(shape, dtype=bool))
    return np.array([name in names for name in names_of_all]).reshape(shape)


@pytest.mark.parametrize("n_total", PAPER_COUNTS)
def test_head_counts_are_those_of_the_paper(n_total):
    ablated, excluded, top2, top5 = PAPER_COUNTS[n_total]
    assert tuple(head_count(fraction, n_total, rounding="floor") for fraction in FRACTIONS) == ablated
    assert head_count(0.02, n_total, rounding="floor", minimum=0) == excluded
    assert head_count(0.02, n_total) == top2
    assert head_count(0.05, n_total) == top5
    exact = [Decimal(str(fraction)) * n_total for fraction in FRACTIONS]
    assert [head_count(fraction, n_total) for fraction in FRACTIONS] == [math.ceil(share) for share in exact]


def test_count_is_free_of_binary_noise():
    assert math.ceil(0.07 * 100) == 8 and int(0.29 * 100) == 28  # the trap
    assert head_count(0.07, 100) == 7
    assert head_count(0.29, 100, rounding="floor") == 29
    assert head_count(0.0, 100) == head_count(0.0, 100, rounding="floor") == 0
    assert head_count(1.0, 7) == 7


def brute_force_top(scores, n_heads, exclude):
    ranked = sorted(
        (-scores[layer, head].item(), layer, head)
        for layer in range(scores.shape[0])
        for head in range(scores.shape[1])
        if not exclude[layer, head]
    )
    return {(layer, head) for _, layer, head in ranked[:n_heads]}


@pytest.mark.parametrize("seed", range(20))
def test_top_heads_agree_with_sorting_by_hand(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(-2, 3, (4, 6)) / 3  # many ties
    exclude = rng.random((4, 6)) < 0.3
    n_heads = int(rng.integers(12))
    found = top_heads(scores, n_heads=n_heads, exclude=exclude)
    assert {tuple(pair) for pair in np.argwhere(found).tolist()} == brute_force_top(scores, n_heads, exclude)


def test_ties_go_to_the_earlier_layer_then_head():
    assert head_names(top_heads(np.zeros((3, 4)), n_heads=5)) == ["L0H0", "L0H1", "L0H2", "L0H3", "L1H0"]


def test_fraction_counts_all_heads_before_exclusion():
    scores = np.arange(100.0).reshape(10, 10)
    exclude = top_heads(scores, fraction=0.02)
    assert head_names(exclude) == ["L9H8", "L9H9"]
    assert head_names(top_heads(scores, fraction=0.03, exclude=exclude)) == ["L9H5", "L9H6", "L9H7"]


def test_infinite_and_half_precision_scores_rank():
    scores = np.array([[-np.inf, 1.0], [np.inf, 0.0]], dtype=np.float16)
    assert head_names(top_heads(scores, n_heads=2)) == ["L0H1", "L1H0"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: top_heads(s, fraction=1.2), "fraction 1.2 is outside 0..1"),
        (lambda s: top_heads(s, fraction=-0.1), "fraction -0.1 is outside 0..1"),
        (lambda s: top_heads(s, fraction=float("nan")), "fraction nan is outside 0..1"),
        (lambda s: top_heads(s), "give either fraction or n_heads"),
        (lambda s: top_heads(s, fraction=0.1, n_heads=1), "give either fraction or n_heads"),
        (lambda s: top_heads(s, n_heads=9), "n_heads 9 is outside 0..8"),
        (lambda s: top_heads(s, n_heads=-1), "n_heads -1 is outside 0..8"),
        (lambda s: top_heads(s, fraction=0.1, rounding="up"), "unknown rounding 'up'"),
        (lambda s: top_heads(np.where(s > 6, np.nan, s), n_heads=1), r"NaN \(first L1H3\)"),
        (
            lambda s: top_heads(s, n_heads=3, exclude=s < 6),
            "n_heads 3 is outside 0..2.* after excluding 6 of 8",
        ),
        (lambda s: random_heads((4, 2), 1, seed=0, draw=0, exclude=s < 1), r"exclude has shape \(2, 4\)"),
        (lambda s: random_heads((2, 4), 9, seed=0, draw=0), "n_heads 9 is outside 0..8"),
        (lambda s: random_heads((2, 4), 1, seed=0, draw=-1), "must not be negative"),
        (lambda s: layer_matched_random_heads(s < 3, seed=0, draw=0, exclude=s < 6),
         "n_heads 3 is outside 0..2.* after excluding 6 of 8"),
        (lambda s: layer_matched_random_heads(s < 5, seed=0, draw=0), "n_heads 5 is outside 0..3"),
        (lambda s: layer_distance(s < 2, s < 3), "sets of 2 and 3 heads cannot be matched one to one"),
        (lambda s: overlap(s < 0, s < 3), "empty head set"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, message):
    scores = np.arange(8.0).reshape(2, 4)
    with pytest.raises(ValueError, match=message) as caught:
        call(scores)
    assert "\n" not in str(caught.value)


def test_random_heads_are_uniform_and_repeatable():
    draws = np.stack([random_heads((3, 4), 3, seed=1, draw=draw) for draw in range(2000)])
    assert (draws.sum((1, 2)) == 3).all()
    expected, spread = 3 / 12, math.sqrt(0.25 * 0.75 / 2000)
    assert (np.abs(draws.mean(0) - expected) < 4.5 * spread).all()
    assert np.array_equal(random_heads((3, 4), 3, seed=1, draw=5), draws[5])
    assert not np.array_equal(
        np.stack([random_heads((3, 4), 3, seed=2, draw=i) for i in range(9)]), draws[:9]
    )


def test_random_heads_avoid_excluded_heads():
    exclude = np.zeros((3, 4), dtype=bool)
    exclude[1] = True
    for draw in range(50):
        assert not (random_heads((3, 4), 8, seed=0, draw=draw, exclude=exclude) & exclude).any()


def test_layer_matched_heads_match_counts_and_avoid_the_heads():
    heads = mask_of(["L0H1", "L2H0", "L2H3"], (3, 6))
    draws = np.stack([layer_matched_random_heads(heads, seed=3, draw=draw) for draw in range(600)])
    assert (draws.sum(2) == heads.sum(1)).all()
    assert not (draws & heads).any()
    layer0 = draws[:, 0].mean(0)[~heads[0]]
    assert (np.abs(layer0 - 1 / 5) < 4.5 * math.sqrt(0.16 / 600)).all()


def nearest_match(heads, allowed):
    """The smallest mean distance in layers over all sets of allowed heads, by trying all of them."""
    layers, free = heads.nonzero()[0], allowed.nonzero()[0]
    return min(np.abs(np.subtract(layers, chosen)).mean() for chosen in itertools.combinations(free, len(layers)))


@pytest.mark.parametrize("seed", range(12))
def test_layer_matched_heads_are_the_nearest_there_are(seed):
    rng = np.random.default_rng(seed)
    heads = np.zeros((4, 4), dtype=bool)
    heads[rng.integers(4), : 1 + seed % 3] = True
    exclude = rng.random((4, 4)) < 0.6
    allowed = ~heads & ~exclude
    n = int(heads.sum())
    if int(allowed.sum()) < n:
        with pytest.raises(ValueError, match=f"n_heads {n} is outside"):
            layer_matched_random_heads(heads, seed=0, draw=0, exclude=exclude)
        return
    for draw in range(20):
        matched = layer_matched_random_heads(heads, seed=0, draw=draw, exclude=exclude)
        assert int(matched.sum()) == n and not (matched & ~allowed).any()
        assert layer_distance(heads, matched) == pytest.approx(nearest_match(heads, allowed))
        assert np.array_equal(matched, layer_matched_random_heads(heads, seed=0, draw=draw, exclude=exclude))


def test_a_whole_layer_is_matched_by_both_its_neighbours_alike():
    heads = np.zeros((4, 8), dtype=bool)
    heads[2] = True
    exclude = mask_of(["L1H0", "L2H3"], (4, 8))  # one of them in the set itself
    draws = np.stack([layer_matched_random_heads(heads, seed=0, draw=draw, exclude=exclude) for draw in range(900)])
    assert (draws[:, [0, 2]] == 0).all() and (draws.sum((1, 2)) == 8).all() and not draws[:, 1, 0].any()
    share = draws.mean(0)[(np.arange(4) % 2 == 1)[:, None] & ~exclude]
    expected = 8 / 15
    assert (np.abs(share - expected) < 4.5 * math.sqrt(expected * (1 - expected) / 900)).all()
    assert layer_distance(heads, draws[0]) == 1.0


def test_other_layers_heads_are_left_to_those_layers():
    heads = mask_of(["L0H0", "L0H1", "L0H2", "L1H0", "L1H1"], (3, 4))
    for draw in range(30):
        matched = layer_matched_random_heads(heads, seed=0, draw=draw)
        # layer 0 has one other head; its two neighbours in layer 1 are taken by layer 1 itself
        assert matched.sum(1).tolist() == [1, 2, 2]
        assert layer_distance(heads, matched) == pytest.approx(4 / 5)


def test_the_two_random_kinds_are_different_streams():
    heads = np.zeros((1, 64), dtype=bool)
    heads[0, 60:] = True
    same = [
        np.array_equal(
            random_heads((1, 64), 4, seed=0, draw=i, exclude=heads),
            layer_matched_random_heads(heads, seed=0, draw=i),
        )
        for i in range(20)
    ]
    assert not any(same)


def test_overlap_by_hand():
    a, b = mask_of(["L0H0", "L0H1"], (2, 4)), mask_of(["L0H1", "L1H0", "L1H1"], (2, 4))
    assert overlap(a, b) == 0.5
    assert overlap(a, a) == 1.0
    assert overlap(a, ~a) == 0.0


def test_names_round_trip():
    mask = np.random.default_rng(0).random((5, 13)) < 0.4
    assert np.array_equal(mask_of(head_names(mask), (5, 13)), mask)
