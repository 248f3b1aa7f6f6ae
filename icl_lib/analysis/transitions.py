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

from icl_lib.analysis.dynamics import defining_scores, fv_thresholds, score_array
from icl_lib.kinds import INDUCTION_THRESHOLD, KINDS
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
    scores: pd.DataFrame, accuracy: pd.DataFrame, *, seed: int, induction_threshold: float = INDUCTION_THRESHOLD,
    within_layers: bool = False, each_steps_threshold: bool = False,
) -> Transitions:
    """Heads of one model by which score came first; the null pairs its heads at random, all or `within_layers`."""
    (model,) = _models(scores, accuracy)
    return transition_counts(
        model.scores["induction"], model.scores["fv"], induction_threshold=induction_threshold,
        fv_threshold=fv_thresholds(scores)[:, None] if each_steps_threshold else model.bars["fv"],
        layers=model.layers if within_layers else None, seed=seed)


def transition_table(scores: pd.DataFrame, accuracy: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """`transitions` with columns as in `Transitions.table`."""
    return transitions(scores, accuracy, seed=seed).table()


def transition_sweep(
    scores: pd.DataFrame, accuracy: pd.DataFrame, *, induction_thresholds: list[float], seed: int
) -> pd.DataFrame:
    """`transition_table` at other induction thresholds than the definition's, with the column `threshold`.

    A sensitivity analysis: what would be counted if induction heads were defined otherwise.
    """
    return pd.concat([
        transitions(scores, accuracy, seed=seed, induction_threshold=at).table().assign(threshold=at)
        for at in induction_thresholds], ignore_index=True)


def transitions_at_places(scores: pd.DataFrame, accuracy: pd.DataFrame, *, seed: int) -> Transitions:
    """`transitions` of seeds of one size together; the null gives each the FV curves of another, head by head."""
    models = list(_models(_common_steps(scores), accuracy))
    induction, fv = (np.stack([_firsts(of)[kind] for of in models]) for kind in KINDS)
    return places_exchanged(induction, fv, n_steps=len(models[0].fv), seed=seed)


def transitions_by_seed(scores: pd.DataFrame, accuracy: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """One row per model and, for two or more, of all together, against each kind of chance that the module names.

    These compare the sum of heads with sums over the models' random pairings; the last takes each step's own FV
    threshold. Columns model and, for induction and FV first: heads, heads by chance, p, smallest p; `both at once`.
    """
    def of_models(**options: bool) -> dict[str, Transitions]:
        return {str(model): transitions(group, accuracy, seed=seed + i, **options)
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


def kinds_at_the_end(scores: pd.DataFrame, accuracy: pd.DataFrame) -> dict[str, int]:
    """Of all models' heads with both scores, induction first, how many are of each kind at the last step."""
    found = dict.fromkeys(KINDS, 0)
    for of in _models(scores, accuracy):
        first = _firsts(of)
        heads = (first["induction"] < first["fv"]) & (first["fv"] < len(of.fv))
        for kind in KINDS:
            found[kind] += int((of.scores[kind][-1, heads] > of.bars[kind]).sum())
    return found


def ranks_at_places(scores: pd.DataFrame, accuracy: pd.DataFrame, kind: str, *, seed: int) -> RanksBefore:
    """`percentiles_before` of a kind, of seeds of one size together; the null are the same heads of others."""
    of_kind, curves = zip(*(_came(model, kind) for model in _models(_common_steps(scores), accuracy)), strict=True)
    return ranks_exchanged(np.stack(of_kind), np.stack(curves), seed=seed)


def ranks_before_by_seed(scores: pd.DataFrame, accuracy: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """How final heads of either kind, of all models together, ranked before in the other's score, against each chance.

    Columns heads, against, n, percentile (mean, 0..1, among all heads or those of the layer), by chance, p, smallest p;
    NaN and 1 where no head came after the first step.
    """
    models, rows = list(_models(scores, accuracy)), []
    for kind in reversed(KINDS):
        came = [(*_came(model, kind), model.layers) for model in models]
        against = {
            "all heads": pooled(percentiles_before(*own, seed=seed + i) for i, (*own, _) in enumerate(came)),
            "heads of the same layer": pooled(percentiles_before(*own, layers=layers, seed=seed + i)
                                              for i, (*own, layers) in enumerate(came))}
        if len(models) > 1:
            against["the same heads of other seeds"] = ranks_at_places(scores, accuracy, kind, seed=seed)
        for words, found in against.items():
            test = found.test() if found.n else Test(np.nan, 1.0, 1.0)
            rows.append((kind, words, found.n, test.value, found.by_chance, test.p_value, test.smallest_p))
    return pd.DataFrame(rows, columns=["heads", "against", "n", "percentile", "by chance", "p", "smallest p"])


class _Model(NamedTuple):
    """Of one model's heads both scores (`defining_scores`), their thresholds, the layers, and FV without labels too."""

    scores: dict[str, Float[ndarray, "step head"]]
    bars: dict[str, float]
    layers: Int[ndarray, "head"]
    fv: Float[ndarray, "step head"]


def _models(scores: pd.DataFrame, accuracy: pd.DataFrame) -> Iterator[_Model]:
    for model, table in scores.groupby("model"):
        steps, by_kind = defining_scores(table, accuracy[accuracy["model"] == model])
        fv = score_array(table, "fv")[1]
        yield _Model({kind: of.reshape(len(steps), -1) for kind, of in by_kind.items()},
                     {"induction": INDUCTION_THRESHOLD, "fv": float(fv_thresholds(table).max())},
                     np.indices(fv.shape[1:])[0].ravel(), fv.reshape(len(steps), -1))


def _firsts(model: _Model) -> dict[str, Int[ndarray, "head"]]:
    return {kind: first_crossing(model.scores[kind], model.bars[kind]) for kind in KINDS}


def _came(model: _Model, kind: str) -> tuple[Bool[ndarray, "step head"], Float[ndarray, "step head"]]:
    """At which steps each head is of a kind, and its score of the other, where labels are not read too."""
    return model.scores[kind] > model.bars[kind], model.fv if kind == "induction" else model.scores["induction"]


def _common_steps(scores: pd.DataFrame) -> pd.DataFrame:
    return scores[scores.groupby("step")["model"].transform("nunique") == scores["model"].nunique()]
