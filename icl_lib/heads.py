"""Head sets: boolean masks `layer head` of numpy, the one type that every other part takes and returns."""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from icl_lib.names import refuse_unknown

HeadMask = Bool[ndarray, "layer head"]

# Keeps the kinds of random draw independent of each other under one seed.
_STREAMS = {"random": 0, "random_layer_matched": 1, "random_ranking": 2}


def head_count(fraction: float, n_total: int, *, rounding: str = "ceil", minimum: int = 1) -> int:
    """Number of heads in a share of all heads: rounded up everywhere in this project, as the paper's plots do.

    Only the preset of the released code rounds "floor": its ablation takes int(share x heads) and at least one
    (src/ablate.py), its exclusion may take none (`minimum=0`). A share of 0 is no heads under every rule. Products
    are rounded at nine digits first, so that 0.07 of 100 heads is 7 and not 8 when rounding up.

    Raises ValueError for a fraction outside 0..1 or an unknown rounding.
    """
    if not 0 <= fraction <= 1:  # also refuses NaN
        raise ValueError(f"fraction {fraction!r} is outside 0..1")
    refuse_unknown("rounding", rounding, ("floor", "ceil"))
    if fraction == 0:
        return 0
    exact = round(fraction * n_total, 9)
    return max(minimum, math.floor(exact) if rounding == "floor" else math.ceil(exact))


def top_heads(
    scores: Float[ndarray, "layer head"], *, fraction: float | None = None, n_heads: int | None = None,
    exclude: HeadMask | None = None, rounding: str = "ceil",
) -> HeadMask:
    """The heads with the highest scores ("top 2 % heads", sections 3 to 5).

    Give either `fraction` (share of all heads of the model, 0..1, counted before exclusion as the released
    code does) or `n_heads`. Heads in `exclude` are passed over and the next best take their place
    (src/ablate.py). Equal scores are taken in order of layer, then head, so that the set is always the same.

    Raises ValueError for NaN among the scores (infinities rank as usual), when both or neither size is given,
    and when exclusion leaves fewer heads than asked for.
    """
    if (fraction is None) == (n_heads is None):
        raise ValueError(f"give either fraction or n_heads, got fraction={fraction!r}, n_heads={n_heads!r}")
    if (nan := np.isnan(scores)).any():
        raise ValueError(f"scores of {nan.sum()} heads are NaN (first {head_names(nan)[0]}), expected a number for "
                         "every head")
    if n_heads is None:
        n_heads = head_count(fraction, scores.size, rounding=rounding)
    allowed = _allowed(scores.shape, exclude, n_heads)
    # Excluded heads stand last; the sort is stable, so equal scores keep the order of layer, head.
    return _mask(np.lexsort((-scores.ravel(), ~allowed.ravel()))[:n_heads], scores.shape)


def random_heads(
    shape: tuple[int, int], n_heads: int, *, seed: int, draw: int, exclude: HeadMask | None = None
) -> HeadMask:
    """Heads drawn uniformly without replacement: the paper's "random heads" control (section 4).

    `shape` is (layers, heads per layer). Each `draw` of a `seed` is an independent stream; the released code
    makes a single draw (src/ablate.py). Raises ValueError when exclusion leaves too few heads.
    """
    candidates = np.flatnonzero(_allowed(shape, exclude, n_heads))
    return _mask(_generator("random", seed, draw).choice(candidates, size=n_heads, replace=False), shape)


def nested_random_heads(
    shape: tuple[int, int], n_heads: int, *, seed: int, draw: int, exclude: HeadMask | None = None
) -> HeadMask:
    """`random_heads` whose sets of one draw are nested over sizes, as are those of the released code's one draw."""
    return top_heads(_generator("random_ranking", seed, draw).random(shape), n_heads=n_heads, exclude=exclude)


def layer_matched_random_heads(heads: HeadMask, *, seed: int, draw: int, exclude: HeadMask | None = None) -> HeadMask:
    """Other heads than `heads`, as many, from the same layers where these have others, else from the nearest.

    A control that is not in the paper: it separates "these heads" from "heads of these layers". `exclude` names
    further heads that may not be drawn, such as all heads of a kind. Where a layer has too few, the rest comes from
    the nearest layers that have heads left (of two equally near ones, from both alike); `layer_distance` says how far
    the match is. Raises ValueError where all layers together have too few: then there is no such control.
    """
    allowed = _allowed(heads.shape, heads if exclude is None else heads | exclude, int(heads.sum()))
    # equally likely heads: the first ones of a random order
    order = _generator("random_layer_matched", seed, draw).permutation(heads.size)
    free, layers, wanted = allowed.copy(), np.arange(len(heads)), heads.sum(1)
    for distance in range(len(heads)):  # every layer's own heads are taken before any neighbour asks for them
        for layer in np.flatnonzero(wanted):
            candidates = np.flatnonzero(free & (np.abs(layers - layer) == distance)[:, None])
            best = candidates[order[candidates].argsort()][: wanted[layer]]
            free.flat[best] = False
            wanted[layer] -= len(best)
    return allowed & ~free


def layer_distance(heads: HeadMask, control: HeadMask) -> float:
    """How far a control's layers are from those of the heads: the mean over heads, in layers, of the best matching.

    0 for the same number in every layer. The two sets are of one size; ValueError where they are not.
    """
    if heads.sum() != control.sum():
        raise ValueError(f"sets of {heads.sum()} and {control.sum()} heads cannot be matched one to one")
    # in order of layers: the best
    return float(np.abs(heads.nonzero()[0] - control.nonzero()[0]).mean()) if heads.any() else 0.0


def different_heads(sets: list[HeadMask]) -> tuple[list[HeadMask], list[int]]:
    """The different head sets in order, and which of them each of the given sets is."""
    different = {mask.tobytes(): mask for mask in sets}
    places = {key: place for place, key in enumerate(different)}
    return list(different.values()), [places[mask.tobytes()] for mask in sets]


def different_draws(draw_one: Callable[..., HeadMask], n_draws: int) -> list[tuple[int, HeadMask]]:
    """The different ones of the sets `draw_one(draw=...)`, numbered from 0."""
    return list(enumerate(different_heads([draw_one(draw=draw) for draw in range(n_draws)])[0]))


def overlap(heads: HeadMask, others: HeadMask) -> float:
    """Share of heads in both top sets (section 3, figure 3 left), 0..1, relative to the smaller set.

    The paper's sets are of equal size, where the choice of denominator does not matter. Raises ValueError
    when a set is empty or the shapes differ.
    """
    if heads.shape != others.shape:
        raise ValueError(f"head sets of shapes {heads.shape} and {others.shape} cannot overlap")
    if not (smaller := min(heads.sum(), others.sum())):
        raise ValueError("the overlap with an empty head set is undefined")
    return float((heads & others).sum() / smaller)


def head_names(heads: HeadMask) -> list[str]:
    """Names such as "L2H3" (both counted from 0), in order of layer, then head."""
    return [f"L{layer}H{head}" for layer, head in np.argwhere(heads)]


def _generator(stream: str, seed: int, draw: int) -> np.random.Generator:
    if seed < 0 or draw < 0:
        raise ValueError(f"seed {seed} and draw {draw} must not be negative")
    return np.random.default_rng([seed, draw, _STREAMS[stream]])


def _allowed(shape: tuple[int, ...], exclude: HeadMask | None, n_heads: int) -> HeadMask:
    """The heads that are not excluded; ValueError where they are fewer than `n_heads`."""
    allowed = np.ones(shape, dtype=bool) if exclude is None else ~exclude
    if allowed.shape != tuple(shape):
        raise ValueError(f"exclude has shape {allowed.shape}, expected {tuple(shape)}")
    n_allowed = int(allowed.sum())
    if not 0 <= n_heads <= n_allowed:
        excluded = f" after excluding {allowed.size - n_allowed} of {allowed.size}" if n_allowed < allowed.size else ""
        raise ValueError(f"n_heads {n_heads} is outside 0..{n_allowed}, the heads there are{excluded}")
    return allowed


def _mask(chosen: Int[ndarray, "n"], shape: tuple[int, ...]) -> HeadMask:
    return np.isin(np.arange(math.prod(shape)), chosen).reshape(shape)
