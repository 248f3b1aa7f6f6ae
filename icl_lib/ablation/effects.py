"""What ablations say: effects against the clean model and random heads, ablated sets."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from icl_lib.ablation.conditions import Condition, nearest_fraction, refuse_overlap
from icl_lib.ablation.table import TOKEN_LOSS, Measurement
from icl_lib.heads import overlap
from icl_lib.kinds import ANY_HEADS, KINDS, LOWEST, RANKED_BY, mean_scores
from icl_lib.stats.intervals import Lost, effect, holm, lost_beyond, percentile_rank
from icl_lib.tables import KEYS

FEW_SHOT = "first_token_accuracy"
METRIC_WORDS = {FEW_SHOT: "few-shot accuracy", "token_loss_difference": "token-loss difference"}
DIFFERENCE = "fv_minus_induction"
# What a set's loss is compared with: the clean model, random heads of neither kind, and such heads of its layers.
CONTROLS = ("none", "random", "random_layer_matched")


def effects_table(
    measurements: Iterable[Measurement], *, name: str, step: int, metrics=(FEW_SHOT, TOKEN_LOSS)
) -> pd.DataFrame:
    """Table `effects`: what is lost when the top heads of a kind are ablated, per intervention and `control`.

    `control` "none": lost against the clean model; "random" and "random_layer_matched": lost beyond the mean of these
    draws, so that positive means that the heads matter more than they do. Paired by prompt or document, mean over
    tasks, 95 % interval over tasks (of the loss: documents) and draws (`intervals.effect`). `fv_minus_induction` is
    the difference of the two kinds' effects. `n_draws`: different draws, 0 for the clean model. Where there is no
    valid control there is no row. p-values are for one comparison each; see `with_holm`. Raises ValueError for a
    control that overlaps what it controls for.
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
                effects = {kind: (c, effect(own), own.n_draws) for kind, (c, own, _) in lost.items()}
                if set(lost) >= set(KINDS):
                    (c, fv, draws), (_, induction, others) = lost["fv"], lost["induction"]
                    # draws that both kinds are compared with leave their difference as it is
                    pair = (Lost(fv.by_task), Lost(induction.by_task)) if draws == others else (fv, induction)
                    effects[DIFFERENCE] = c, effect(*pair), max(fv.n_draws, induction.n_draws)
                for ranking, (c, found, n_draws) in effects.items():
                    rows.append({"metric": m.metric, "replacement": m.replacement, "positions": m.positions,
                                 "ranking": ranking, "excluded": c.excluded, "control": control, "fraction": fraction,
                                 "n_heads": int(c.heads.sum()), "n_draws": 0 if control == "none" else n_draws,
                                 "n_prompts": m.values.shape[1], **found._asdict()})
    return pd.DataFrame(rows).assign(model=name, step=step).drop_duplicates(KEYS["effects"], ignore_index=True)


def _against(
    m: Measurement, kind: str, fraction: float, excluded: bool, control: str
) -> tuple[Condition, Lost, set[bytes]] | None:
    """A kind's condition, what it loses beyond its control, and the control's draws; None where one is missing."""
    at = [(i, c) for i, c in enumerate(m.conditions) if c.ranking == "none" or c.fraction == fraction]
    of_kind = [(i, c) for i, c in at if c.ranking == kind and (c.excluded != "") == excluded]
    compared = [i for i, c in at if c.ranking == control and (
        control != "random_layer_matched" or c.matched == kind and (c.excluded != "") == excluded)]
    if not of_kind or not compared:
        return None
    i, condition = of_kind[0]
    return condition, lost_beyond(m.values[i], m.values[compared], m.tasks), {m.values[i].tobytes() for i in compared}


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
