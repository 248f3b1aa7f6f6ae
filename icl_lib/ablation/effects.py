"""What ablations say: effects against the clean model and random heads, ablated sets."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray

from icl_lib.ablation.conditions import Condition, nearest_fraction, refuse_overlap
from icl_lib.ablation.table import TOKEN_LOSS, Measurement
from icl_lib.heads import overlap
from icl_lib.kinds import ANY_HEADS, KINDS, LOWEST, RANKED_BY, mean_scores
from icl_lib.stats.intervals import effect_against_draws, holm, percentile_rank
from icl_lib.tables import KEYS

FEW_SHOT = "first_token_accuracy"
METRIC_WORDS = {FEW_SHOT: "few-shot accuracy", "token_loss_difference": "token-loss difference"}
DIFFERENCE = "fv_minus_induction"
# What a set's loss is compared with: the clean model, random heads of neither kind, and such heads of its layers.
CONTROLS = ("none", "random", "random_layer_matched")


def effects_table(
    measurements: Iterable[Measurement], *, name: str, step: int, seed: int, metrics=(FEW_SHOT, TOKEN_LOSS)
) -> pd.DataFrame:
    """Table `effects`: what is lost when the top heads of a kind are ablated, per intervention and `control`.

    `control` "none": lost against the clean model; "random" and "random_layer_matched": lost beyond the mean of these
    draws, so that positive means that the heads matter more than they do. Paired by prompt or document, mean over
    tasks, 95 % bootstrap interval over tasks, prompts and draws (`effect_against_draws`). `fv_minus_induction` is the
    difference of the two kinds' effects. `n_draws`: different draws, 0 for the clean model. Where there is no valid
    control there is no row. p-values are for one
    comparison each; see `with_holm`. Raises ValueError for a control that overlaps what it controls for.
    """
    rows = []
    for m in measurements:
        if m.metric not in metrics:
            continue
        refuse_overlap(m.conditions)
        for fraction, excluded in dict.fromkeys((c.fraction, c.excluded != "") for c in m.conditions
                                                if c.ranking in KINDS):
            for control in (*CONTROLS, ANY_HEADS):
                lost = {kind: against for kind in (*KINDS, LOWEST)
                        if (against := _against(m, kind, fraction, excluded, control)) is not None}
                if set(lost) >= set(KINDS):
                    lost[DIFFERENCE] = (np.zeros(len(m.tasks)), _gap(lost), lost["fv"][2])
                for ranking, (values, draws, c) in lost.items():
                    effect = effect_against_draws(values, draws, m.tasks, seed=seed)
                    rows.append({"metric": m.metric, "replacement": m.replacement, "positions": m.positions,
                                 "ranking": ranking, "excluded": c.excluded, "control": control, "fraction": fraction,
                                 "n_heads": int(c.heads.sum()), "n_draws": 0 if control == "none" else len(draws),
                                 "n_prompts": len(values),
                                 **effect._asdict()})
    return pd.DataFrame(rows).assign(model=name, step=step).drop_duplicates(KEYS["effects"], ignore_index=True)


def _against(m: Measurement, kind: str, fraction: float, excluded: bool, control: str):
    """A kind's values, those of its control by draw, and its condition; None where either is missing."""
    at = [(i, c) for i, c in enumerate(m.conditions) if c.ranking == "none" or c.fraction == fraction]
    of_kind = [(i, c) for i, c in at if c.ranking == kind and (c.excluded != "") == excluded]
    compared = [i for i, c in at if c.ranking == control and (
        control != "random_layer_matched" or c.matched == kind and (c.excluded != "") == excluded)]
    if not of_kind or not compared:
        return None
    i, condition = of_kind[0]
    return m.values[i], m.values[compared], condition


def _gap(lost: dict[str, tuple]) -> Float[ndarray, "draw row"]:
    """Lost to FV heads minus lost to induction heads, by draw and row."""
    draws = {kind: lost[kind][1] for kind in KINDS}
    n = max(map(len, draws.values()))
    if any(np.isnan(d).any() for d in draws.values()):  # each row has one draw: that of the kind which has more
        one = {kind: np.nanmean(draws[kind], axis=0) - lost[kind][0] for kind in KINDS}
        most = next(d for d in draws.values() if len(d) == n)
        return np.where(np.isnan(most), np.nan, one["fv"] - one["induction"])
    return _as_many(draws["fv"], n) - lost["fv"][0] - (_as_many(draws["induction"], n) - lost["induction"][0])


def _as_many(draws: Float[ndarray, "draw row"], n: int) -> Float[ndarray, "{n} row"]:
    """The draws as `n` rows of the same mean, whose mean has the same bootstrap error as that of the draws."""
    times = n // len(draws)
    rows = np.zeros((n, draws.shape[1]))
    rows[: times * len(draws)] = np.tile(draws - draws.mean(0), (times, 1)) * n / (len(draws) * times**0.5)
    return rows + draws.mean(0)


def corrected(effects: pd.DataFrame) -> pd.DataFrame:
    """The effects beyond random heads of the same layers."""
    return effects[effects["control"] == "random_layer_matched"]


def with_holm(effects: pd.DataFrame) -> pd.DataFrame:
    """The effects of the two kinds with Holm's p-values over all rows of a control: one family, however dependent."""
    kinds = effects[effects["ranking"].isin(KINDS)]
    p_holm = kinds.groupby("control")["p_value"].transform(lambda p_values: holm(p_values.to_numpy()))
    return kinds.assign(p_holm=p_holm.astype(float))


def at_fraction(effects: pd.DataFrame, fraction: float) -> pd.DataFrame:
    """The rows at the ablated fraction nearest to `fraction`; those with exclusion only where it changes a set."""
    rows = effects[effects["fraction"] == nearest_fraction(effects["fraction"], fraction)]
    key, numbers = ["metric", "replacement", "positions", "ranking", "control"], ["value", "low", "high"]
    plain, excluded = (rows[(rows["excluded"] != "") == words].set_index(key)[numbers] for words in (False, True))
    same = len(excluded) and excluded.equals(plain.reindex(excluded.index))
    return rows[rows["excluded"] == ""] if same else rows


def set_table(conditions: list[Condition], scores: pd.DataFrame) -> pd.DataFrame:
    """The ablated sets by fraction: their overlap, and how high the heads that remain still score.

    Columns excluded (whether), fraction, n_heads, overlap (share of heads that both kinds' sets have), and
    `<score>_after_<kind>`: the mean percentile in a score of the heads that remain when a kind's set is ablated,
    among all heads, 0..1. In the plain sets of a kind its own score can only depend on the number of heads.
    """
    percentile = {kind: percentile_rank(mean_scores(scores, score)) for kind, score in RANKED_BY.items()}
    sets = {(c.ranking, c.excluded != "", c.fraction): c.heads for c in conditions if c.ranking in KINDS}
    rows = []
    for (kind, excluded, fraction), heads in sets.items():
        if kind == "fv":
            both = {k: sets[k, excluded, fraction] for k in KINDS}
            left = {f"{score}_after_{k}": values[~mask].mean() if not mask.all() else np.nan
                    for score, values in percentile.items() for k, mask in both.items()}
            rows.append({"excluded": excluded, "fraction": fraction, "n_heads": int(heads.sum()),
                         "overlap": overlap(both["fv"], both["induction"]), **left})
    return pd.DataFrame(rows)
