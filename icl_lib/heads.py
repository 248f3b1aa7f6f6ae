"""Head sets: boolean masks `layer head`, the one type that every other part takes and returns."""

import math

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

HeadMask = Bool[Tensor, "layer head"]

ROUNDINGS = ("floor", "ceil")
# Keeps the two kinds of random draw independent of each other under one seed.
_STREAMS = {"random": 0, "random_layer_matched": 1, "random_ranking": 2}


def head_count(fraction: float, n_total: int, *, rounding: str = "ceil", minimum: int = 1) -> int:
    """Number of heads in a share of all heads: rounded up everywhere in this project, as the paper's plots do.

    Only the preset of the released code rounds "floor": its ablation takes int(share x heads) and at least one
    (src/ablate.py), its exclusion int(share x heads) with no minimum (pass `minimum=0`).
    A share of 0 is no heads under every rule. Products are rounded at nine digits first, so that 0.07 of
    100 heads is 7 and not 8 when rounding up; no model and share of the paper is affected by that.

    Raises ValueError for a fraction outside 0..1 or an unknown rounding.
    """
    if not 0 <= fraction <= 1:  # also refuses NaN
        raise ValueError(f"fraction {fraction!r} is outside 0..1")
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding {rounding!r} is unknown, expected one of {', '.join(ROUNDINGS)}")
    if fraction == 0:
        return 0
    exact = round(fraction * n_total, 9)
    return max(minimum, math.floor(exact) if rounding == "floor" else math.ceil(exact))


def top_heads(
    scores: Float[Tensor, "layer head"],
    *,
    fraction: float | None = None,
    n_heads: int | None = None,
    exclude: HeadMask | None = None,
    rounding: str = "ceil",
    minimum: int = 1,
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
    n_nan = int(scores.isnan().sum())
    if n_nan:
        first = head_names(scores.isnan())[0]
        raise ValueError(f"scores of {n_nan} heads are NaN (first {first}), expected a number for every head")
    if n_heads is None:
        n_heads = head_count(fraction, scores.numel(), rounding=rounding, minimum=minimum)
    allowed = _allowed(scores.shape, exclude)
    _check_count(n_heads, allowed, scores.numel())
    # Lowest possible rank for excluded heads: a stable sort on (excluded, -score) keeps layer, head order.
    flat = scores.detach().to("cpu", torch.float64).flatten().numpy()
    order = np.lexsort((-flat, ~allowed.flatten().numpy()))
    return _mask_from_indices(order[:n_heads], scores.shape)


def random_heads(
    shape: tuple[int, int], n_heads: int, *, seed: int, draw: int, exclude: HeadMask | None = None
) -> HeadMask:
    """Heads drawn uniformly without replacement: the paper's "random heads" control (section 4).

    `shape` is (layers, heads per layer). Each `draw` of a `seed` is an independent stream; the released code
    makes a single draw (src/ablate.py). Raises ValueError when exclusion leaves too few heads.
    """
    allowed = _allowed(shape, exclude)
    _check_count(n_heads, allowed, shape[0] * shape[1])
    candidates = np.flatnonzero(allowed.numpy())
    chosen = _generator("random", seed, draw).choice(candidates, size=n_heads, replace=False)
    return _mask_from_indices(chosen, shape)


def random_ranking(shape: tuple[int, int], *, seed: int, draw: int) -> Float[Tensor, "layer head"]:
    """A random score for every head, for `top_heads`: sets of one draw are nested over sizes.

    What the released code does with its one draw (src/ablate.py). Draws of a seed are independent.
    """
    return torch.from_numpy(_generator("random_ranking", seed, draw).random(shape))


def layer_matched_random_heads(
    heads: HeadMask, *, seed: int, draw: int, exclude: HeadMask | None = None
) -> HeadMask:
    """Other heads than `heads`, as many, from the same layers where these have others, else from the nearest.

    A control that is not in the paper: it separates "these heads" from "heads of these layers". `exclude` names
    further heads that may not be drawn, such as all heads of a kind. Where a layer has too few, the rest comes from
    the nearest layers that have heads left (of two equally near ones, from both alike); `layer_distance` says how far
    the match is. Raises ValueError where all layers together have too few: then there is no such control.
    """
    heads = heads.cpu()
    allowed = _allowed(tuple(heads.shape), exclude) & ~heads
    _check_count(int(heads.sum()), allowed, heads.numel())
    generator = _generator("random_layer_matched", seed, draw)
    # equally likely heads: the first ones of a random order
    order = torch.from_numpy(generator.permutation(heads.numel()).reshape(heads.shape))
    free = torch.where(allowed, order, heads.numel())
    matched = torch.zeros(heads.shape, dtype=torch.bool)
    layers = torch.arange(heads.shape[0])
    wanted = heads.sum(1)
    for distance in range(heads.shape[0]):  # every layer's own heads are taken before any neighbour asks for them
        for layer in layers[wanted > 0].tolist():
            near = ((layers - layer).abs() == distance)[:, None]
            candidates = torch.where(near, free, heads.numel()).flatten()
            best = candidates.argsort(stable=True)[: int(wanted[layer])]
            best = best[candidates[best] < heads.numel()]
            matched.view(-1)[best] = True
            free.view(-1)[best] = heads.numel()
            wanted[layer] -= len(best)
    return matched


def layer_distance(heads: HeadMask, control: HeadMask) -> float:
    """How far a control's layers are from those of the heads: the mean over heads, in layers, of the best matching.

    0 for the same number in every layer. The two sets are of one size; ValueError where they are not.
    """
    if int(heads.sum()) != int(control.sum()):
        raise ValueError(f"sets of {int(heads.sum())} and {int(control.sum())} heads cannot be matched one to one")
    first, second = heads.nonzero()[:, 0].double(), control.nonzero()[:, 0].double()  # in order of layers: the best
    return float((first - second).abs().mean()) if len(first) else 0.0


def different_heads(sets: list[HeadMask]) -> tuple[list[HeadMask], list[int]]:
    """The different head sets in order, and which of them each of the given sets is."""
    place: dict[bytes, int] = {}
    heads, which = [], []
    for mask in sets:
        key = mask.numpy().tobytes()
        if key not in place:
            place[key] = len(heads)
            heads.append(mask)
        which.append(place[key])
    return heads, which


def overlap(heads: HeadMask, others: HeadMask) -> float:
    """Share of heads in both top sets (section 3, figure 3 left), 0..1, relative to the smaller set.

    The paper's sets are of equal size, where the choice of denominator does not matter. Raises ValueError
    when a set is empty or the shapes differ.
    """
    if heads.shape != others.shape:
        raise ValueError(f"head sets of shapes {tuple(heads.shape)} and {tuple(others.shape)} cannot overlap")
    smaller = min(int(heads.sum()), int(others.sum()))
    if smaller == 0:
        raise ValueError("the overlap with an empty head set is undefined")
    return int((heads.cpu() & others.cpu()).sum()) / smaller


def head_names(heads: HeadMask) -> list[str]:
    """Names such as "L2H3" (both counted from 0), in order of layer, then head."""
    return [f"L{layer}H{head}" for layer, head in heads.nonzero().tolist()]


def _generator(stream: str, seed: int, draw: int) -> np.random.Generator:
    if seed < 0 or draw < 0:
        raise ValueError(f"seed {seed} and draw {draw} must not be negative")
    return np.random.default_rng([seed, draw, _STREAMS[stream]])


def _allowed(shape: tuple[int, ...], exclude: HeadMask | None) -> HeadMask:
    if exclude is None:
        return torch.ones(tuple(shape), dtype=torch.bool)
    if tuple(exclude.shape) != tuple(shape):
        raise ValueError(f"exclude has shape {tuple(exclude.shape)}, expected {tuple(shape)}")
    return ~exclude.cpu()


def _check_count(n_heads: int, allowed: HeadMask, n_total: int) -> None:
    n_allowed = int(allowed.sum())
    if not 0 <= n_heads <= n_allowed:
        excluded = f" after excluding {n_total - n_allowed} of {n_total}" if n_allowed < n_total else ""
        raise ValueError(f"n_heads {n_heads} is outside 0..{n_allowed}, the heads there are{excluded}")


def _mask_from_indices(indices: np.ndarray, shape: tuple[int, ...]) -> HeadMask:
    mask = torch.zeros(shape[0] * shape[1], dtype=torch.bool)
    mask[torch.as_tensor(np.sort(indices).astype(np.int64))] = True
    return mask.reshape(shape[0], shape[1])
