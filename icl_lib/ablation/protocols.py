"""The historical ablation protocols as points of the grid: rows of the table `ablations` like any other."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from icl_lib.ablation.conditions import Condition, ablation_conditions, exclusion_words
from icl_lib.ablation.table import TOKEN_LOSS, TOKEN_LOSS_POINTS
from icl_lib.kinds import OF_EITHER_KIND
from icl_lib.names import refuse_unknown

PAPER_FRACTIONS = (0.01, 0.03, 0.05, 0.07, 0.09, 0.15, 0.2)


@dataclass(frozen=True)
class Protocol:
    """What is replaced by what, where, for either metric; counts of heads; how the numbers are taken."""

    few_shot: tuple[str, str]  # replacement, positions
    token_loss: tuple[str, str]
    metric: str  # of few-shot accuracy
    loss_metric: str
    exclude_fraction: float
    rounding: str  # of the excluded share
    n_draws: int | None = None  # of random heads, None: as many as are asked for
    reach_back: bool = False  # decode the last five ids even where some are the prompt's
    short_divisor: bool = False  # divide the sum over n documents by n - 1


PROTOCOLS = {
    "single": Protocol(
        ("mean", "all"), ("mean", "all"), "first_token_accuracy", TOKEN_LOSS, exclude_fraction=0.05, rounding="ceil"),
    "paper": Protocol(
        ("mean", "last"), ("mean", "all"), "exact_match", TOKEN_LOSS_POINTS, exclude_fraction=0.02, rounding="ceil",
        n_draws=1),
    "released": Protocol(
        ("mean", "last"), ("bos_value", "all"), "generated_f1", TOKEN_LOSS_POINTS, exclude_fraction=0.02,
        rounding="floor", n_draws=1, reach_back=True, short_divisor=True),
}  # fmt: skip


def protocol(name: str) -> Protocol:
    """A protocol by name: `single` (one intervention for both metrics, this project's), `paper` (the text: mean
    ablation, accuracy, exclusion of the top 2 % rounded up as in its figures) or `released` (the code).

    Raises ValueError naming the nearest for another name.
    """
    refuse_unknown("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]


def titles(names: Sequence[str]) -> dict[str, str]:
    """What the page calls the historical protocols that were measured, and the one intervention beside them."""
    known = {"paper": "paper's text", "released": "released code", "single": "one intervention"}
    return {name: known[name] for name in known if name in names or name == "single"}


def protocol_conditions(name: str, scores: pd.DataFrame, *, n_draws: int, seed: int) -> list[Condition]:
    """The conditions of a historical protocol: both rankings without and with its exclusion, and random heads.

    The random heads are drawn from all heads, those of either kind included (A16), and none by layer.
    """
    p = protocol(name)
    refuse_unknown("historical protocol", name, [other for other in PROTOCOLS if other != "single"])
    return ablation_conditions(
        scores, fractions=list(PAPER_FRACTIONS), n_draws=p.n_draws or n_draws, exclude_fraction=p.exclude_fraction,
        rounding=p.rounding, seed=seed, random_from="all")


def protocol_rows(
    name: str, ablations: pd.DataFrame, metric: str, *, exclude_fraction: float | None = None
) -> pd.DataFrame:
    """The rows of the table `ablations` that a protocol shows for "few_shot" or "token_loss", clean model included.

    `exclude_fraction` in place of its own, for `single`, whose share is a parameter. Where a fraction was measured with
    two numbers of heads, the smaller is the released code's; it also adds up one row more than it divides by (T2).
    """
    p = protocol(name)
    (replacement, positions), column = {
        "few_shot": (p.few_shot, p.metric), "token_loss": (p.token_loss, p.loss_metric)}[metric]
    excluded = {exclusion_words(exclude_fraction or p.exclude_fraction, kind, p.rounding)
                for kind in ("induction", "fv")}
    clean = ablations["ranking"] == "none"
    edited = (ablations["replacement"] == replacement) & (ablations["positions"] == positions)
    random = ablations["ranking"] == "random"
    of_random = OF_EITHER_KIND if name == "single" else ""
    shown = ablations["excluded"].isin({"", *excluded}).mask(random, ablations["excluded"] == of_random)
    if name != "single":
        shown &= ablations["fraction"].isin(PAPER_FRACTIONS) & (ablations["ranking"] != "random_layer_matched")
        shown &= ablations["draw"] < (p.n_draws or 10**9)
    rows = ablations[(ablations["metric"] == column) & (clean | (edited & shown))]
    n_heads = rows.groupby("fraction")["n_heads"].transform("min" if p.rounding == "floor" else "max")
    rows = rows[rows["n_heads"] == n_heads]
    if p.short_divisor and metric == "token_loss":
        rows = rows.assign(value=rows["value"] * rows["n_prompts"] / (rows["n_prompts"] - 1).clip(lower=1))
    return rows
