"""Which heads are ablated: rankings of both kinds without and with exclusion, and the random heads beside them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
import pandas as pd

from icl_lib.heads import (
    HeadMask,
    different_draws,
    head_count,
    head_names,
    layer_matched_random_heads,
    nested_random_heads,
    top_heads,
)
from icl_lib.kinds import ANY_HEADS, DEFINED_BY, LOWEST, OF_EITHER_KIND, RANKED_BY, heads_of_kind, mean_scores

# What ranks induction heads in `two_papers`: Crosbie & Shutova's score, and the paper's.
RANKINGS = {"prefix matching": DEFINED_BY["induction"], "attention mass": RANKED_BY["induction"]}
THEIRS, PAPERS = RANKINGS


@dataclass(frozen=True)
class Condition:
    """One ablated set and how it was chosen; the fields are columns of the table `ablations`."""

    ranking: str
    excluded: str
    matched: str
    fraction: float
    draw: int
    heads: HeadMask


def ablation_conditions(
    scores: pd.DataFrame, *, fractions: list[float], n_draws: int, exclude_fraction: float, seed: int,
    rounding: str = "ceil", random_from: str = "neither", lowest: bool = False,
    induction_score: str = RANKED_BY["induction"], any_heads: bool = False,
) -> list[Condition]:
    """The clean model and, per fraction: both rankings without and with exclusion, and up to `n_draws` random sets.

    Counts are rounded up, at least 1 head. With exclusion the top `exclude_fraction` of the other kind is passed over.
    `rounding` "floor" is the released int() for both, which excludes nobody in a small model (A14 of the protocols
    page). Random heads are of neither kind (`kinds.heads_of_kind`) and in no other set at this fraction: a control
    has nothing of what it controls for. Layer-matched ones are drawn for each of the four sets
    (`layer_matched_random_heads`). Where too few such heads are left, there is no control at this fraction. A draw
    that repeats an earlier one is left out. A draw of random heads is one ranking, so that its sets are nested over
    fractions as far as the sets in question allow (A15). `random_from` "all" draws random heads from all heads and
    none by layer, as the paper and its code do (A16). `lowest`: also the heads with the lowest FV scores. `any_heads`:
    also random heads of all heads, those in question included, beside those of neither kind. `induction_score` ranks
    induction heads.

    Raises ValueError for a fraction outside 0..1 and where exclusion leaves too few heads.
    """
    by_kind = {"induction": mean_scores(scores, induction_score), "fv": mean_scores(scores, RANKED_BY["fv"])}
    of_kind = np.any(list(heads_of_kind(scores).values()), axis=0)
    shape, n_total = by_kind["fv"].shape, by_kind["fv"].size
    n_excluded = head_count(exclude_fraction, n_total, rounding=rounding, minimum=int(rounding == "ceil"))
    conditions = [Condition("none", "", "", 0.0, 0, np.zeros(shape, dtype=bool))]
    for fraction in fractions:
        n_heads = head_count(fraction, n_total, rounding=rounding)
        sets = []
        for kind, other in (("induction", "fv"), ("fv", "induction")):
            excluded = top_heads(by_kind[other], n_heads=n_excluded)
            for words, exclude in (("", None), (exclusion_words(exclude_fraction, other, rounding), excluded)):
                heads = top_heads(by_kind[kind], n_heads=n_heads, exclude=exclude)
                sets.append(Condition(kind, words, "", fraction, 0, heads))
        if lowest:
            sets.append(Condition(LOWEST, "", "", fraction, 0, top_heads(-by_kind["fv"], n_heads=n_heads)))
        anywhere = partial(nested_random_heads, shape, n_heads, seed=seed)
        taken = np.any([of_kind, *(c.heads for c in sets)], axis=0)
        drawn = []  # ranking, excluded, matched, and what draws the heads
        if random_from == "all" or any_heads:
            drawn.append(("random" if random_from == "all" else ANY_HEADS, "", "", anywhere))
        if random_from != "all" and n_heads <= int((~taken).sum()):
            drawn.append(("random", OF_EITHER_KIND, "", partial(anywhere, exclude=taken)))
            drawn += [("random_layer_matched", c.excluded, c.ranking,
                       partial(layer_matched_random_heads, c.heads, seed=seed, exclude=taken)) for c in sets[:4]]
        conditions += sets + [Condition(*names, fraction, draw, heads) for *names, draw_one in drawn
                              for draw, heads in different_draws(draw_one, n_draws)]
    return conditions


def refuse_overlap(conditions: list[Condition]) -> None:
    """Raise ValueError naming a head of a random set that is in a set which it is the control for.

    Random heads of all heads are no such control, and say so by their name.
    """
    controls = [c for c in conditions if c.ranking in ("random", "random_layer_matched")]
    ablated = [c for c in conditions if c.ranking in (*RANKED_BY, LOWEST)]
    for control, c in product(controls, ablated):
        controls_it = control.ranking == "random" or (control.matched, control.excluded) == (c.ranking, c.excluded)
        if controls_it and c.fraction == control.fraction and (shared := c.heads & control.heads).any():
            raise ValueError(
                f"{head_names(shared)[0]} is both in the {c.ranking} heads at {c.fraction:g} and in their "
                f"control {control.ranking}, draw {control.draw}; draw controls with ablation_conditions")


def exclusion_words(fraction: float, kind: str, rounding: str) -> str:
    """What the column `excluded` says."""
    return f"top {fraction:g} {kind}" + (", rounded down" if rounding == "floor" else "")


def nearest_fraction(measured: Iterable[float], fraction: float) -> float:
    """The measured fraction nearest to the one asked for, the smaller of two."""
    return min(sorted(set(measured)), key=lambda at: abs(at - fraction))


def at_fractions(conditions: list[Condition], fractions: Sequence[float]) -> list[Condition]:
    """The clean model and the conditions at the fractions nearest to the given ones; all for none given."""
    at = {c.fraction for c in conditions if c.ranking != "none"}
    wanted = {nearest_fraction(at, fraction) for fraction in (fractions or at)}
    return [c for c in conditions if c.ranking == "none" or c.fraction in wanted]


def zero_shot_conditions(conditions: list[Condition]) -> list[Condition]:
    """Those measured without demonstrations: all but the sixth and further draws of random heads."""
    return [c for c in conditions if c.draw < 5]


def curve_conditions(conditions: list[Condition], fraction: float) -> list[Condition]:
    """The clean model, both kinds without exclusion and up to five layer-matched draws, at the nearest share."""
    shown = (*RANKED_BY, "random_layer_matched")
    return [c for c in at_fractions(conditions, [fraction])
            if c.ranking == "none" or not c.excluded and c.draw < 5 and c.ranking in shown]
