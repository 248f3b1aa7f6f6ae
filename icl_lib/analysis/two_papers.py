"""From the tables of the patterns page: Crosbie & Shutova's protocol becomes the paper's, one change at a time."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from icl_lib.ablation.conditions import PAPERS, THEIRS, nearest_fraction
from icl_lib.ablation.effects import FEW_SHOT, corrected
from icl_lib.analysis.reading import number, table_of
from icl_lib.kinds import ANY_HEADS, KINDS
from icl_lib.stats.intervals import Interval, bootstrap_mean

MATCHED = "random_layer_matched"
TASK_SETS = {"patterns": "patterns", "paper": "the paper's tasks"}
DIFFERENCE = "difference"
PAPER_SHARE = 0.05  # of the ablations that the last steps are taken from, as near as was measured


def steps(fractions: list[float]) -> list[tuple[str, dict]]:
    """The changes one by one, each kept from there on: what it is called, and columns of `pattern_effects`."""
    small, large = min(fractions), max(fractions)
    return [(f"their tasks, ranking and\nrandom heads, {small:.0%}",
             {"task_set": "patterns", "ranked_by": THEIRS, "control": ANY_HEADS, "kept": False, "fraction": small}),
            (f"{large:.0%} of heads", {"fraction": large}),
            ("the paper's tasks", {"task_set": "paper"}),
            ("controls of neither kind,\nsame layers", {"control": MATCHED}),
            ("ranked by attention mass", {"ranked_by": PAPERS}),
            ("top heads of the\nother kind kept", {"kept": True})]


def step_names(pattern_effects: pd.DataFrame, effects: pd.DataFrame) -> list[str]:
    """The steps of `walk` in their order, of all models in the tables."""
    measured = {step for model, own in pattern_effects.groupby("model")
                for step in walk(own, effects[effects["model"] == model])["step"]}
    known = [name for name, _ in steps(pattern_effects["fraction"].unique().tolist())] if len(pattern_effects) else []
    return [*dict.fromkeys([*known, *sorted(measured)])]


def walk(pattern_effects: pd.DataFrame, effects: pd.DataFrame) -> pd.DataFrame:
    """What accuracy loses at each step when heads of a kind are ablated, from theirs to the paper's, of one model.

    Columns step, ranking, value, low, high, n_heads, n_prompts; a step that was not measured has no rows. The last two
    are of the table `effects`: the mean at all positions at 5 % of heads, then at the last position alone.
    """
    rows, at = [], {"task": "", "n_shots": pattern_effects["n_shots"].max()}
    own = pattern_effects.assign(kept=pattern_effects["excluded"] != "")
    for name, change in steps(own["fraction"].unique().tolist()):
        at |= change
        rows.append(own[(own[list(at)] == pd.Series(at)).all(axis=1)].assign(step=name))
    if len(effects):
        share = nearest_fraction(effects["fraction"], PAPER_SHARE)
        chosen = corrected(effects[effects["metric"] == FEW_SHOT]).query(
            "replacement == 'mean' and fraction == @share and excluded != ''")
        for name, where in ((f"{share:.0%} of heads", "all"), ("last position alone", "last")):
            rows.append(chosen[chosen["positions"] == where].assign(step=name))
    columns = ["step", "ranking", "value", "low", "high", "n_heads", "n_prompts"]
    return pd.concat(rows).query("ranking in @KINDS")[columns].reset_index(drop=True)


def benefits(patterns: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """How much demonstrations raise accuracy: at the most of them minus without any, of one model.

    Columns task_set, ranking ("none", a kind, or random heads of the layers of induction heads), fraction, value, low
    and high (95 % bootstrap over tasks, NaN for one task) and n (tasks). Induction heads by prefix matching.
    """
    rows = []
    for (task_set, ranking, fraction), by_task in by_task_benefits(patterns):
        several = len(by_task) > 1
        found = bootstrap_mean(by_task.to_numpy(), seed=seed) if several else (by_task.mean(), np.nan, np.nan)
        rows.append((task_set, ranking, fraction, *found, len(by_task)))
    return pd.DataFrame(rows, columns=["task_set", "ranking", "fraction", "value", "low", "high", "n"])


def by_task_benefits(patterns: pd.DataFrame) -> Iterator[tuple[tuple[str, str, float], pd.Series]]:
    """By task set, ranking and fraction the benefit of demonstrations by task; see `benefits`."""
    ablated = patterns[patterns["ranking"] == "induction"]
    plain = patterns[(patterns["excluded"] == "") & (patterns["ranked_by"].isin(("", THEIRS)))]
    plain = plain[plain["ranking"].isin(("none", *KINDS)) | (plain["matched"] == "induction")]
    most = plain["n_shots"].max()
    for (task_set, ranking, fraction), rows in plain.groupby(["task_set", "ranking", "fraction"], sort=False):
        rows = rows[rows["task"].isin(ablated[ablated["task_set"] == task_set]["task"])]
        by_task = rows.pivot_table(index="task", columns="n_shots", values="value")
        if {0, most} <= set(by_task):
            yield (task_set, ranking, fraction), (by_task[most] - by_task[0]).dropna()


def carriers(patterns: pd.DataFrame, *, seed: int) -> dict[str, tuple[Interval, int]]:
    """How much more of the benefit of demonstrations vanishes with the most FV heads than with as many induction heads.

    By task set, of one model, with 95 % bootstrap intervals over tasks and the number of these; where both sets were
    measured also `DIFFERENCE`, that on the paper's tasks less that on patterns, whose interval combines both (MOVER).
    """
    by_task = dict(by_task_benefits(patterns))
    most = max((fraction for *_, fraction in by_task), default=0.0)
    found = {}
    for task_set in TASK_SETS:
        if all((task_set, kind, most) in by_task for kind in KINDS):
            more = (by_task[task_set, "induction", most] - by_task[task_set, "fv", most]).dropna()
            if len(more) > 1:
                found[task_set] = bootstrap_mean(more.to_numpy(), seed=seed), len(more)
    if len(found) == len(TASK_SETS):
        ((a, a_low, a_high), n_paper), ((b, b_low, b_high), n_patterns) = found["paper"], found["patterns"]
        found[DIFFERENCE] = Interval(
            a - b, a - b - float(np.hypot(a - a_low, b_high - b)), a - b + float(np.hypot(a_high - a, b - b_low))
        ), n_paper + n_patterns
    return found


def able(patterns: pd.DataFrame) -> list[str]:
    """The patterns that one model can do: those that were measured with heads ablated, in order of names."""
    rows = patterns[(patterns["task_set"] == "patterns") & (patterns["ranking"] != "none")]
    return sorted(rows["task"].unique())


def of_patterns(pattern_effects: pd.DataFrame) -> pd.DataFrame:
    """What each pattern and their mean (task "") lose to the most heads at the most demonstrations, of one model."""
    rows = corrected(pattern_effects).query("task_set == 'patterns' and ranked_by == @THEIRS and excluded == ''")
    rows = rows[rows["ranking"].isin(KINDS) & (rows["n_shots"] == rows["n_shots"].max())]
    return rows[rows["fraction"] == rows["fraction"].max()]


def two_papers_numbers(
    patterns: pd.DataFrame, pattern_effects: pd.DataFrame, effects: pd.DataFrame | None = None, *, seed: int
) -> pd.DataFrame:
    """The numbers that the pages print, of all models in the tables, as rows of the table `statistics`.

    `effects`: that table of the ablation page, for the last steps of `walk`; None leaves them out.
    """
    effects, rows = pattern_effects[:0] if effects is None else effects, []
    for model, own in patterns.groupby("model", sort=False):
        lost = pattern_effects[pattern_effects["model"] == model]
        found = [number(accuracy_of(row.task, row.n_shots), row.value, n=row.n_prompts) for row in
                 own[(own["ranking"] == "none") & (own["task_set"] == "patterns")].itertuples()]
        found += [number(lost_at(row.step, row.ranking), row.value, row.low, row.high, n=row.n_prompts)
                  for row in walk(lost, effects[effects["model"] == model]).itertuples()]
        found += [number(benefit_of(row.task_set, row.ranking, row.fraction), row.value, row.low, row.high, n=row.n)
                  for row in benefits(own, seed=seed).itertuples()]
        found += [number(carried_by(name), *interval, n=n) for name, (interval, n) in carriers(own, seed=seed).items()]
        rows += [one | {"model": model} for one in found]
    return table_of(rows, notebook="two_papers")


# The names of these numbers.
def accuracy_of(task: str, n_shots: int) -> str:
    return f"accuracy, {task}, {n_shots} shots"


def lost_at(step: str, ranking: str) -> str:
    return f"lost, {' '.join(step.split())}: {ranking}"


def carried_by(name: str) -> str:
    return f"benefit that FV heads carry more than induction heads, {TASK_SETS.get(name, name)}"


def benefit_of(task_set: str, ranking: str, fraction: float) -> str:
    return f"benefit, {TASK_SETS[task_set]}, {ranking} {fraction:g}"
