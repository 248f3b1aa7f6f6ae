"""Section 5: heads that had both scores along training, which of the two came first, and what chance would give.

A head has a score from the first checkpoint above the threshold on, also when the score falls later. The FV threshold
is the highest of all checkpoints', so that a head counts at any by the same bar, unless each step's own is asked for.

Three kinds of chance: the FV curves of a model given to its heads at random; the same within layers; and, of several
seeds, each seed's FV curves given to another's heads at the same places. Where layers or heads do not start alike, only
the last tells a link between a head's two scores from what its place does to both.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from icl_lib.analysis.dynamics import defining_scores, fv_thresholds, of_model, score_array
from icl_lib.kinds import DEFINED_BY, INDUCTION_THRESHOLD, KINDS
from icl_lib.stats.emergence import (
    RanksBefore,
    Transitions,
    first_crossing,
    percentiles_before,
    places_exchanged,
    pooled,
    ranks_exchanged,
    transition_counts,
)
from icl_lib.stats.intervals import Test


def transitions(
    scores: pd.DataFrame, accuracy: pd.DataFrame | None = None, *, seed: int,
    induction_threshold: float = INDUCTION_THRESHOLD, within_layers: bool = False, each_steps_threshold: bool = False,
) -> Transitions:
    """Heads of one model by which score came first; the null pairs its heads at random, all or `within_layers`.

    Where the table `accuracy` is given, a model has no FV heads at a step at which it does not read labels.
    """
    steps, by_kind = defining_scores(scores, accuracy)
    induction, fv = (by_kind[kind].reshape(len(steps), -1) for kind in KINDS)
    bar = fv_thresholds(scores)[:, None]
    return transition_counts(
        induction, fv, induction_threshold=induction_threshold, fv_threshold=bar if each_steps_threshold else bar.max(),
        layers=_layers(by_kind["fv"]) if within_layers else None, seed=seed)


def transition_table(scores: pd.DataFrame, accuracy: pd.DataFrame | None = None, *, seed: int) -> pd.DataFrame:
    """`transitions` with columns as in `Transitions.table`."""
    return transitions(scores, accuracy, seed=seed).table()


def transition_sweep(
    scores: pd.DataFrame, accuracy: pd.DataFrame | None = None, *, induction_thresholds: list[float], seed: int
) -> pd.DataFrame:
    """`transition_table` at other induction thresholds than the definition's, with the column `threshold`.

    A sensitivity analysis: what would be counted if induction heads were defined otherwise.
    """
    return pd.concat([
        transitions(scores, accuracy, seed=seed, induction_threshold=at).table().assign(threshold=at)
        for at in induction_thresholds], ignore_index=True)


def transitions_at_places(scores: pd.DataFrame, accuracy: pd.DataFrame | None = None, *, seed: int) -> Transitions:
    """`transitions` of seeds of one size together; the null gives each the FV curves of another, head by head."""
    models = list(_models(_common_steps(scores), accuracy))
    induction, fv = (np.stack([_firsts(of)[kind] for of in models]) for kind in KINDS)
    return places_exchanged(induction, fv, n_steps=len(models[0].steps), seed=seed)


def transitions_by_seed(scores: pd.DataFrame, accuracy: pd.DataFrame | None = None, *, seed: int) -> pd.DataFrame:
    """One row per model and, for two or more, of all together, against each kind of chance that the module names.

    These compare the sum of heads with sums over the models' random pairings; the last takes each step's own FV
    threshold. Columns model and, for induction and FV first: heads, heads by chance, p, smallest p; `both at once`.
    """
    def of_models(**options: bool) -> dict[str, Transitions]:
        return {str(model): transitions(group, of_model(accuracy, model), seed=seed + i, **options)
                for i, (model, group) in enumerate(scores.groupby("model"))}

    found, rows = of_models(), []
    if len(found) > 1:
        found |= {"all": pooled(found.values()), "all, in layers": pooled(of_models(within_layers=True).values()),
                  "all, same places": transitions_at_places(scores, accuracy, seed=seed),
                  "all, each step's threshold": pooled(of_models(each_steps_threshold=True).values())}
    for model, counts in found.items():
        row, table = {"model": model}, counts.table().set_index("order")
        for order, words in (("induction_first", "induction first"), ("fv_first", "FV first")):
            heads, by_chance, p_value, smallest = table.loc[order]
            row |= {words: int(heads), f"{words}, by chance": by_chance, f"p ({words})": p_value,
                    f"smallest p ({words})": smallest}
        rows.append(row | {"both at once": table.at["both_at_once", "heads"]})
    return pd.DataFrame(rows)


def still_induction_heads(scores: pd.DataFrame, accuracy: pd.DataFrame | None = None) -> int:
    """Of all models' heads with both scores, induction first, how many are induction heads at the last step too."""
    still = 0
    for of in _models(scores, accuracy):
        first, last = _firsts(of), of.by_kind["induction"][-1].ravel()
        heads = (first["induction"] < first["fv"]) & (first["fv"] < len(of.steps))
        still += int((last[heads] > of.bars["induction"]).sum())
    return still


def ranks_before(
    scores: pd.DataFrame, accuracy: pd.DataFrame | None = None, *, seed: int
) -> dict[tuple[str, str], RanksBefore]:
    """How one model's final heads of each kind ranked in the other kind's score before; see `percentiles_before`.

    Keys: the kind, and whether among "all" heads or those of the same "layer".
    """
    (model,), found = _models(scores, accuracy), {}
    for kind, other in (KINDS, KINDS[::-1]):
        for among, layers in (("all", None), ("layer", _layers(model.by_kind[kind]))):
            found[kind, among] = percentiles_before(*_came(model, kind, other), layers=layers, seed=seed)
    return found


def ranks_at_places(
    scores: pd.DataFrame, accuracy: pd.DataFrame | None = None, *, seed: int
) -> dict[str, RanksBefore]:
    """`ranks_before` among all heads, by kind, of seeds of one size together; the null are the same heads of others."""
    models, found = list(_models(_common_steps(scores), accuracy)), {}
    for kind, other in (KINDS, KINDS[::-1]):
        of_kind, curves = map(np.stack, zip(*(_came(model, kind, other) for model in models), strict=True))
        found[kind] = ranks_exchanged(of_kind, curves, seed=seed)
    return found


def ranks_before_by_seed(scores: pd.DataFrame, accuracy: pd.DataFrame | None = None, *, seed: int) -> pd.DataFrame:
    """Ranks of all models in the tables together: for both kinds, against each kind of chance that the module names.

    Columns heads, against, n, percentile (mean, 0..1, among all heads or those of the layer), by chance, p, smallest p;
    NaN and 1 where no head came after the first step.
    """
    of_models = [ranks_before(group, of_model(accuracy, model), seed=seed + i)
                 for i, (model, group) in enumerate(scores.groupby("model"))]
    rows = []
    at_places = ranks_at_places(scores, accuracy, seed=seed) if len(of_models) > 1 else {}
    for kind in reversed(KINDS):
        against = {"all heads": pooled(ranks[kind, "all"] for ranks in of_models),
                   "heads of the same layer": pooled(ranks[kind, "layer"] for ranks in of_models)}
        against |= {"the same heads of other seeds": at_places[kind]} if at_places else {}
        for words, found in against.items():
            test = found.test() if found.n else Test(np.nan, 1.0, 1.0)
            rows.append((kind, words, found.n, test.value, found.by_chance, test.p_value, test.smallest_p))
    return pd.DataFrame(rows, columns=["heads", "against", "n", "percentile", "by chance", "p", "smallest p"])


class _Model(NamedTuple):
    """Of one model its table, steps, scores of both kinds (`defining_scores`), and the threshold of each."""

    table: pd.DataFrame
    steps: list[int]
    by_kind: dict[str, Float[ndarray, "step layer head"]]
    bars: dict[str, float]


def _models(scores: pd.DataFrame, accuracy: pd.DataFrame | None) -> Iterator[_Model]:
    for model, table in scores.groupby("model"):
        bars = {"induction": INDUCTION_THRESHOLD, "fv": float(fv_thresholds(table).max())}
        yield _Model(table, *defining_scores(table, of_model(accuracy, model)), bars)


def _firsts(model: _Model) -> dict[str, Int[ndarray, "head"]]:
    return {kind: first_crossing(model.by_kind[kind].reshape(len(model.steps), -1), model.bars[kind]) for kind in KINDS}


def _came(model: _Model, kind: str, other: str) -> tuple[Bool[ndarray, "step head"], Float[ndarray, "step head"]]:
    """At which steps each head is of a kind, and its score of the other, where labels are not read too."""
    of_kind, curves = model.by_kind[kind] > model.bars[kind], score_array(model.table, DEFINED_BY[other])[1]
    return of_kind.reshape(len(model.steps), -1), curves.reshape(len(model.steps), -1)


def _common_steps(scores: pd.DataFrame) -> pd.DataFrame:
    common = set.intersection(*(set(steps) for _, steps in scores.groupby("model")["step"]))
    return scores[scores["step"].isin(common)]


def _layers(curves: Float[ndarray, "step layer head"]) -> Int[ndarray, "layer*head"]:
    return np.indices(curves.shape[1:])[0].ravel()
