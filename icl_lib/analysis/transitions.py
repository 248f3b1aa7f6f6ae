"""Section 5: heads that had both scores along training, which of the two came first, and what chance would give.

A head has a score from the first checkpoint above the threshold on, also when the score falls later.

Three kinds of chance: the FV curves of a model given to its heads at random (among "all"); the same within layers
("layer"); and, of several seeds, each seed's FV curves given to another's heads at the same places ("place"). Where
layers or heads do not start alike, only the last tells a link between a head's two scores from what its place does.
"""

from collections.abc import Iterator
from functools import reduce
from typing import Any

import numpy as np
import pandas as pd

from icl_lib.analysis.dynamics import Heads, Training
from icl_lib.kinds import KINDS
from icl_lib.stats.emergence import (
    Exchange,
    RanksBefore,
    Transitions,
    count_orders,
    exchanged_between,
    exchanged_within,
    first_step,
    percentiles_before,
    pooled,
)
from icl_lib.stats.intervals import Test
from icl_lib.stats.permutation import N_PERMUTATIONS


def transitions(trainings: list[Training], *, seed: int, among: str = "all", **definition: Any) -> Transitions:
    """Heads of models together by which score came first, against a kind of chance; `definition`: of `heads`."""
    return pooled(count_orders(*first_step(heads.of_kind), exchange)
                  for heads, exchange in _exchanged(trainings, among, 2000, seed, **definition))


def ranks_before(trainings: list[Training], kind: str, *, seed: int, among: str = "all") -> RanksBefore:
    """`percentiles_before` of a kind's final heads in the other's score, of models together."""
    own = KINDS.index(kind)
    return pooled(percentiles_before(heads.of_kind[own], heads.scores[1 - own], exchange)
                  for heads, exchange in _exchanged(trainings, among, N_PERMUTATIONS, seed))


def transition_sweep(training: Training, *, induction_thresholds: list[float], seed: int) -> pd.DataFrame:
    """`Transitions.table` at other induction thresholds than the definition's, with the column `threshold`.

    A sensitivity analysis: what would be counted if induction heads were defined otherwise.
    """
    return pd.concat([transitions([training], seed=seed, induction_threshold=at).table().assign(threshold=at)
                      for at in induction_thresholds], ignore_index=True)


def transitions_by_seed(trainings: list[Training], *, seed: int) -> pd.DataFrame:
    """One row per model and, for two or more, of all together, against each kind of chance that the module names.

    These compare the sum of heads with sums over the models' random pairings; the last takes each step's own FV
    threshold. Columns model and, for induction and FV first: heads, heads by chance, p, smallest p; `both at once`.
    """
    found = {training.model: transitions([training], seed=seed + i) for i, training in enumerate(trainings)}
    if len(found) > 1:
        for words, how in {"all": {}, "all, in layers": {"among": "layer"}, "all, same places": {"among": "place"},
                           "all, each step's threshold": {"each_steps_threshold": True}}.items():
            found[words] = transitions(trainings, seed=seed, **how)
    rows = []
    for model, counts in found.items():
        row, table = {"model": model}, counts.table().set_index("order")
        for order, words in (("induction_first", "induction first"), ("fv_first", "FV first")):
            heads, by_chance, p_value, smallest = table.loc[order]
            row |= {words: int(heads), f"{words}, by chance": by_chance, f"p ({words})": p_value,
                    f"smallest p ({words})": smallest}
        rows.append(row | {"both at once": table.at["both_at_once", "heads"]})
    return pd.DataFrame(rows)


def kinds_at_the_end(trainings: list[Training]) -> dict[str, int]:
    """Of all models' heads with both scores, induction first, how many are of each kind at the last step."""
    found = np.zeros(len(KINDS), dtype=int)
    for of_kind, *_ in (training.heads() for training in trainings):
        induction, fv = first_step(of_kind)
        found += of_kind[:, -1, (induction < fv) & np.isfinite(fv)].sum(axis=1)
    return dict(zip(KINDS, found.tolist(), strict=True))


def ranks_before_by_seed(trainings: list[Training], *, seed: int) -> pd.DataFrame:
    """How final heads of either kind, of all models together, ranked before in the other's score, against each chance.

    Columns heads, against, n, percentile (mean, 0..1, among all heads or those of the layer), by chance, p, smallest p;
    NaN and 1 where no head came after the first step.
    """
    against = {"all": "all heads", "layer": "heads of the same layer"} | (
        {"place": "the same heads of other seeds"} if len(trainings) > 1 else {})
    rows = []
    for kind in reversed(KINDS):
        for among, words in against.items():
            found = ranks_before(trainings, kind, seed=seed, among=among)
            test = found.test() if found.n else Test(np.nan, 1.0, 1.0)
            rows.append((kind, words, found.n, test.value, found.by_chance, test.p_value, test.smallest_p))
    return pd.DataFrame(rows, columns=["heads", "against", "n", "percentile", "by chance", "p", "smallest p"])


def _exchanged(
    trainings: list[Training], among: str, n_draws: int, seed: int, **definition: Any
) -> Iterator[tuple[Heads, Exchange]]:
    """The heads of each model, or of all side by side at the steps that they share, and how they exchange curves."""
    heads = [training.heads(**definition) for training in trainings]
    if among == "place":
        shared = reduce(np.intersect1d, [training.steps for training in trainings])
        at = [np.isin(training.steps, shared) for training in trainings]
        of_kind, scores = (np.concatenate([own[part][:, steps] for own, steps in zip(heads, at, strict=True)], axis=2)
                           for part in (0, 1))
        layers = np.concatenate([own.layers for own in heads])
        yield Heads(of_kind, scores, layers), exchanged_between(len(heads), len(layers) // len(heads), seed)
    else:
        for i, own in enumerate(heads):
            yield own, exchanged_within(own.layers * (among == "layer"), n_draws, seed + i)
