"""The historical ablation protocols as points of the grid, and where the released code departs from the paper.

A protocol is not another way to measure: it names a replacement, positions, metric and head counts, which are rows
of the table `ablations` like any other.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from icl_lib.ablation.conditions import Condition, ablation_conditions, exclusion_words
from icl_lib.ablation.measure import TOKEN_LOSS, TOKEN_LOSS_POINTS, Measurement, measure
from icl_lib.kinds import OF_EITHER_KIND

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
    fractions: tuple[float, ...] = PAPER_FRACTIONS
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
    if name not in PROTOCOLS:
        near = difflib.get_close_matches(str(name), PROTOCOLS, n=1)
        raise ValueError(f"unknown protocol {name!r}; valid are {', '.join(PROTOCOLS)}"
                         + (f"; nearest: {near[0]}" if near else ""))
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
    return ablation_conditions(
        scores, fractions=list(p.fractions), n_draws=p.n_draws or n_draws, exclude_fraction=p.exclude_fraction,
        rounding=p.rounding, seed=seed, random_from="all")


def measure_protocol(
    name: str, model, conditions: list[Condition], prompts, scoring, documents, *, seed: int
) -> list[Measurement]:
    """Both metrics as the protocol measures them: few-shot and token loss under its two interventions."""
    p = protocol(name)
    few_shot = measure(model, conditions, prompts, scoring, None, replacement=p.few_shot[0], positions=p.few_shot[1],
                       seed=seed, f1=p.metric == "generated_f1", reach_back=p.reach_back)
    token_loss = measure(model, conditions, {}, scoring, documents, replacement=p.token_loss[0],
                         positions=p.token_loss[1], seed=seed)
    return [m for m in few_shot + token_loss if m.metric in (p.metric, p.loss_metric)]


def protocol_rows(
    name: str, ablations: pd.DataFrame, metric: str, *, exclude_fraction: float | None = None
) -> pd.DataFrame:
    """The rows of the table `ablations` that a protocol shows for "few_shot" or "token_loss", clean model included.

    With columns as there; `excluded` is "" or what the protocol excludes. `exclude_fraction` in place of its own, for
    `single`, whose share is a parameter. Where a fraction was measured with two numbers of heads,
    the smaller is the released code's, which rounds down; it also adds up one row more than it divides by (T2).
    """
    p = protocol(name)
    (replacement, positions), column = {
        "few_shot": (p.few_shot, p.metric), "token_loss": (p.token_loss, p.loss_metric)}[metric]
    excluded = {exclusion_words(exclude_fraction or p.exclude_fraction, kind, p.rounding)
                for kind in ("induction", "fv")}
    clean = ablations["ranking"] == "none"
    edited = (ablations["replacement"] == replacement) & (ablations["positions"] == positions)
    random = ablations["ranking"] == "random"
    own = ablations["excluded"].isin({"", *excluded}) & ~random
    if name == "single":
        own |= random & (ablations["excluded"] == OF_EITHER_KIND)
    else:
        own |= random & (ablations["excluded"] == "")
        own &= ablations["fraction"].isin(p.fractions) & (ablations["ranking"] != "random_layer_matched")
        own &= ablations["draw"] < (p.n_draws or 10**9)
    rows = ablations[(ablations["metric"] == column) & (clean | (edited & own))]
    n_heads = rows.groupby("fraction")["n_heads"].transform("min" if p.rounding == "floor" else "max")
    rows = rows[rows["n_heads"] == n_heads]
    if p.short_divisor and metric == "token_loss":
        rows = rows.assign(value=rows["value"] * rows["n_prompts"] / (rows["n_prompts"] - 1).clip(lower=1))
    return rows


# What became of each departure of the released code from the text (`paper.md` 3.3 and 3.4): `how` is "preset" where
# one of the protocols does as the code does, "shown" where the page shows it beside the metric, "not reproducible"
# and "not applicable" for the rest; `field` is the part of `Protocol` that does it.
DEPARTURES = (
    ("A1", "the mean of 29 tasks replaces, never the task's own", "preset", "few_shot",
     "replacement mean; task_mean is the other one of the grid"),
    ("A2", "only the last position is written, then each generated one", "preset", "few_shot",
     "positions last; all is the other one of the grid"),
    ("A3", "slot -1 whatever position is asked for", "not applicable", "",
     "there is no such argument here; the position is the same"),
    ("A4", "token F1 after normalisation is called accuracy", "preset", "metric", "metric generated_f1"),
    ("A5", "the article filter removes the answer a", "preset", "metric", "generated_f1 scores such answers 0"),
    ("A6", "five tokens, cut at hyphen, apostrophe or slash", "preset", "metric",
     "generated_f1; the ceiling of a perfect model stands in the table of tasks"),
    ("A7", "answers from few classes", "shown", "", "the floor of always giving the commonest label is drawn"),
    ("A8", "Llama 2 is sampled, since its generation config says so", "not reproducible", "",
     "no seed is set for it in the code; generation here is greedy for every model"),
    ("A9", "the last five ids are decoded, of the prompt if generation ends early", "preset", "reach_back",
     "released decodes so; the metric alone cuts at the end-of-text token"),
    ("A10", "one task's file is not found and left out silently", "not reproducible", "",
     "whether 18 or 19 tasks were averaged cannot be told; a missing task file is an error here"),
    ("A11", "demonstrations from 10 % of a file", "not applicable", "",
     "a lab task has its own training pairs; of the paper's files it is a matter of the split, not of the ablation"),
    ("A12", "the first 100 items of one split", "not applicable", "",
     "prompts are drawn by seed, the same for all conditions, which keeps the pairing"),
    ("A13", "int(share x heads), at least one", "preset", "rounding",
     "released rounds down; paper and single round up, as the plots do"),
    ("A14", "int(0.02 x heads) excluded, none in a small model", "preset", "rounding",
     "released rounds down; paper and single round up"),
    ("A15", "one random ranking for all shares", "preset", "n_draws",
     "one draw, nested over shares; its order is another one than Python's random gave"),
    ("A16", "the random line is not excluded in the exclusion row", "preset", "n_draws",
     "paper and released draw from all heads; the random heads of single are of neither kind"),
    ("A17", "a resumed run has other demonstrations", "not reproducible", "",
     "it depends on where a run was cut off; prompts here depend on task and seed alone"),
    ("A18", "options zero and random, not in the launcher", "not reproducible", "",
     "no result of them is known; zero and resample of the grid stand for them"),
    ("A19", "held-out tasks share inputs with scoring tasks", "not applicable", "",
     "a matter of the task files; the cards of lab tasks name their siblings"),
    ("T1", "1000 rows instead of 10 000", "not applicable", "", "the number of documents is a parameter"),
    ("T2", "1001 rows are added up, 1000 divided by", "preset", "short_divisor",
     "released divides the sum over n documents by n - 1"),
    ("T3", "index 50 and 500 of the shifted loss", "preset", "loss_metric", "so for every protocol"),
    ("T4", "joined texts cut into rows", "not applicable", "",
     "text files and datasets are cut so (icl_lib.data.documents); a lab document is one story"),
    ("T5", "every position gets the value vector of the BOS", "preset", "token_loss", "replacement bos_value"),
    ("T6", "random tokens seeded anew for each row", "not applicable", "", "only the BOS among them is ever used"),
    ("T7", "other positions and replacement than for few-shot accuracy", "preset", "token_loss",
     "all positions and bos_value, against last and mean; single has one intervention for both"),
    ("T8", "the final model is loaded for every checkpoint", "not reproducible", "",
     "it would put the last step's number at every step; steps are loaded here"),
    ("T9", "rankings from an fp16 model, losses from a folded fp32 one", "not reproducible", "",
     "models are never folded here; the dtype is an argument of load_model"),
    ("T10", "the random line is read from a folder that the launcher does not fill", "not reproducible", "",
     "its numbers come from runs that are not released; random heads without exclusion are drawn"),
    ("T11", "runs on a GPU only", "not applicable", "", "either device here, with the same result"),
    ("T12", "value vectors, of which grouped-query models have fewer", "not applicable", "",
     "head outputs are replaced, which is the same where it worked and works for grouped queries too"),
)  # fmt: skip


def departures_table() -> pd.DataFrame:
    """What became of each departure, for the page: columns departure, how, why; index its number in the dossier."""
    rows = [(number, text, f"{how} ({field})" if field else how, why) for number, text, how, field, why in DEPARTURES]
    return pd.DataFrame(rows, columns=["number", "the released code", "here", "how or why"]).set_index("number")
