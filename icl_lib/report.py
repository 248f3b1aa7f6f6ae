"""Sentences and small tables for the notebooks, made from tables so that no result is typed by hand."""

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import HTML

from icl_lib.ablation_tables import Condition
from icl_lib.dynamics import same_checkpoints
from icl_lib.heads import head_names, overlap
from icl_lib.measurements import mean_scores, task_group
from icl_lib.statistics import bootstrap_difference, bootstrap_mean, expected_overlap, spearman, trend_test
from icl_lib.tables import provenance
from icl_lib.tasks import Task

FEW_SHOT = "first_token_accuracy"
METRIC_WORDS = {FEW_SHOT: "few-shot accuracy", "token_loss_difference": "token-loss difference"}


def fault_table(tasks: Mapping[str, Task]) -> pd.DataFrame:
    """What is odd in the tasks' files, a row each; nothing of it is repaired."""
    rows = [{"task": name, "fault": fault} for name, task in tasks.items() for fault in task.faults]
    return pd.DataFrame(rows, columns=["task", "fault"]).set_index("task")


def made_by(model, *, suite: str, seed: int, parameters: dict[str, Any]) -> dict[str, Any]:
    """Provenance of a table measured on a model, its revision on the hub included."""
    weight = next(model.original_model.parameters())
    return provenance(suite=suite, seed=seed, dtype=str(weight.dtype).removeprefix("torch."),
                      device=weight.device.type, bos="in the prompt's text, first token", parameters=parameters,
                      revision=getattr(model, "revision", ""), checked=str(getattr(model, "checked", "")))


def made_from_tables(*, suite: str, seed: int, parameters: dict[str, Any]) -> dict[str, Any]:
    """Provenance of a table made from tables."""
    return provenance(suite=suite, seed=seed, dtype="", device="", bos="", parameters=parameters)


def with_groups(accuracy: pd.DataFrame, tasks: Mapping[str, Task]) -> pd.DataFrame:
    """The table with a column `group`, the kind of each task."""
    return accuracy.assign(group=accuracy["task"].map(lambda name: task_group(tasks[name])))


def accuracy_sentence(accuracy: pd.DataFrame, n_shots: int) -> str:
    """Clean accuracy at the fewest and most shots and shuffled accuracy, per group of tasks."""
    parts = []
    for group, rows in accuracy.groupby("group", sort=False):
        clean = rows[rows["labels"] == "clean"].groupby("n_shots")["value"].mean()
        shuffled = rows[(rows["labels"] == "shuffled") & (rows["n_shots"] == n_shots)]["value"].mean()
        by_shots = ", ".join(f"{value:.2f} with {shots}" for shots, value in clean.items())
        parts.append(f"**{group}** tasks: accuracy {by_shots} demonstrations; {shuffled:.2f} with {n_shots} of "
                     f"shuffled labels")
    return "Means over tasks. " + "; ".join(parts) + "."


def accuracy_by_task(accuracy: pd.DataFrame, tasks: Mapping[str, Task], n_shots: int) -> pd.DataFrame:
    """First-token accuracy per task: 0 shots, `n_shots`, shuffled; with the floor and the number of prompts."""
    rows = accuracy[accuracy["metric"] == FEW_SHOT]

    def column(labels: str, shots: int) -> pd.Series:
        return rows[(rows["labels"] == labels) & (rows["n_shots"] == shots)].set_index("task")["value"]

    names = sorted(rows["task"].unique(), key=lambda name: (tasks[name].split, tasks[name].type, name))
    return pd.DataFrame({
        "split": [tasks[n].split for n in names], "group": [task_group(tasks[n]) for n in names],
        "0 shots": column("clean", 0).reindex(names).round(2).to_numpy(),
        f"{n_shots} shots": column("clean", n_shots).reindex(names).round(2).to_numpy(),
        f"{n_shots} shots, shuffled": column("shuffled", n_shots).reindex(names).round(2).to_numpy(),
        "floor": [round(tasks[n].floor, 2) for n in names], "prompts": int(rows["n_prompts"].iloc[0]),
    }, index=pd.Index(names, name="task"))


def loss_sentence(losses: pd.DataFrame, window: int) -> str:
    """The unedited model's token-loss difference with its interval."""
    row = losses.iloc[0]
    half, places = 1.96 * row["standard_error"], 2 * window + 1
    around = "" if window == 0 else f", each averaged over {places} positions"
    return (f"Loss at the 50th minus loss at the 500th token: {row['value']:.2f} nats ({row['value'] - half:.2f} to "
            f"{row['value'] + half:.2f}; {row['n_prompts']} documents{around}).")


def folded(table: pd.DataFrame, title: str) -> HTML:
    """A long table that opens on a click."""
    return HTML(f"<details><summary>{escape(title)}</summary>{table.to_html()}</details>")


def side_by_side(texts: Mapping[str, str]) -> HTML:
    """Named texts beside each other, as they are."""
    cells = "".join(f"<div><b>{escape(name)}</b><pre>{escape(text)}</pre></div>" for name, text in texts.items())
    return HTML(f'<div style="display: flex; gap: 2em; flex-wrap: wrap">{cells}</div>')


def transposed(comparison: pd.DataFrame) -> pd.DataFrame:
    """A table with one row per model turned, so that models stand side by side; whole numbers stay whole."""
    text = comparison.set_index("model").map(lambda v: f"{v:,}" if isinstance(v, int) else f"{v:.3f}")
    return text.T.rename_axis(index=None, columns=None)


def null_quantile(scores: pd.DataFrame, quantile: float) -> float:
    """The FV score that the best head of a null draw reaches with probability 1 - quantile."""
    best = scores[scores["score"] == "fv_null"].groupby("task")["value"].max()
    return float(np.quantile(best.to_numpy(), quantile))


def score_sentence(scores: pd.DataFrame) -> str:
    """The best head of each kind, and how the best FV score stands to its null."""
    found = {}
    for score in ("induction_prefix_matching", "induction_attention_mass", "fv"):
        values = mean_scores(scores, score)
        layer, head = np.unravel_index(int(values.argmax()), tuple(values.shape))
        found[score] = (f"L{layer}H{head}", float(values.max()))
    prefix, mass, fv = found.values()
    n_draws = scores[scores["score"] == "fv_null"]["task"].nunique()
    limit = null_quantile(scores, 0.99)
    return (f"Highest prefix-matching score: {prefix[1]:.3f} ({prefix[0]}); highest attention mass: {mass[1]:.3f} "
            f"({mass[0]}). Highest FV score: {fv[1]:.4f} ({fv[0]}), {'above' if fv[1] > limit else 'not above'} "
            f"{limit:.4f}, the 99th percentile of the best head under {n_draws} permutations of the clean means.")


def top_heads_table(scores: pd.DataFrame, n: int) -> pd.DataFrame:
    """The `n` heads with the highest FV scores and the `n` with the highest induction scores."""
    columns = {"induction_prefix_matching": "prefix matching", "induction_attention_mass": "attention mass",
               "previous_token": "previous token", "fv": "FV score"}
    wide = pd.DataFrame({label: mean_scores(scores, score).flatten().numpy() for score, label in columns.items()})
    n_heads = mean_scores(scores, "fv").shape[1]
    wide.index = pd.Index([f"L{i // n_heads}H{i % n_heads}" for i in range(len(wide))], name="head")
    best = [wide.nlargest(n, column).index for column in ("FV score", "prefix matching")]
    chosen = wide.loc[best[0].union(best[1], sort=False)]
    return chosen.round({"prefix matching": 3, "attention mass": 3, "previous token": 3, "FV score": 4})


def type_sentence(by_type: Mapping[str, Any], *, seed: int) -> str:
    """How FV scores on abstractive tasks agree with those on extractive ones, over heads."""
    parts = []
    for kind, values in by_type.items():
        layer, head = np.unravel_index(int(values.argmax()), tuple(values.shape))
        parts.append(f"{float(values.max()):.4f} (L{layer}H{head}) on {kind} tasks")
    rho = spearman(*(values.numpy() for values in by_type.values()), seed=seed)
    return (f"Highest FV score: {', '.join(parts)}. Rank correlation of the two over heads: {rho.value:.2f} (95 % "
            f"interval {rho.low:.2f} to {rho.high:.2f}).")


def overlap_sentence(scores: pd.DataFrame, tops: dict, *, seed: int) -> str:
    """Shared heads of the top sets against chance, and the rank correlation of the scores."""
    n, n_total = int(tops["fv"].sum()), tops["fv"].numel()
    induction, fv = (mean_scores(scores, score).numpy() for score in ("induction_attention_mass", "fv"))
    rho = spearman(induction, fv, seed=seed)
    return (f"Top induction heads: {', '.join(head_names(tops['induction']))}; top FV heads: "
            f"{', '.join(head_names(tops['fv']))}. Shared: {overlap(tops['induction'], tops['fv']):.0%}, by chance "
            f"{expected_overlap(n_total, n, n) / n:.0%}. Rank correlation of the two scores over all {n_total} heads: "
            f"{rho.value:.2f} (95 % interval {rho.low:.2f} to {rho.high:.2f}).")


def conditions_table(conditions: list[Condition]) -> pd.DataFrame:
    """The ablated heads of each ranking that is not random, by fraction."""
    rows = [(c.fraction, c.ranking, c.excluded or "nothing", int(c.heads.sum()), " ".join(head_names(c.heads)))
            for c in conditions if c.ranking in ("induction", "fv")]
    return pd.DataFrame(rows, columns=["fraction", "ranking", "excluded", "n_heads", "heads"])


def curve_metrics(ablations: pd.DataFrame, positions: str) -> list[str]:
    """The metrics that were measured with edits at these positions, few-shot accuracy first."""
    measured = ablations[ablations["positions"] == positions]["metric"].unique()
    return [metric for metric in (FEW_SHOT, "token_loss_difference") if metric in measured]


def ablation_sentence(ablations: pd.DataFrame, positions: str, *, seed: int) -> str:
    """Loss of few-shot accuracy by kind at the largest fraction up to 10 %, against random heads of its layers."""
    ablations = ablations[ablations["replacement"].isin(("none", "mean"))]
    edited = ablations[(ablations["positions"] == positions) & (ablations["metric"] == FEW_SHOT)]
    fractions = np.sort(edited["fraction"].unique())
    fraction = fractions[fractions <= 0.1][-1] if (fractions <= 0.1).any() else fractions[0]
    at = edited[edited["fraction"] == fraction]
    clean = ablations[(ablations["ranking"] == "none") & (ablations["metric"] == FEW_SHOT)].set_index("task")["value"]
    control = at[at["ranking"] == "random_layer_matched"]
    control = control.groupby([control["excluded"] != "", "matched", "task"])["value"].mean()
    parts = []
    for ranking, label in (("fv", "FV heads"), ("induction", "induction heads")):
        for excluded, words in ((False, ""), (True, " (top heads of the other kind kept)")):
            rows = at[(at["ranking"] == ranking) & ((at["excluded"] != "") == excluded)].set_index("task")["value"]
            random = control[excluded, ranking].loc[rows.index].to_numpy()
            lost = bootstrap_difference(random, rows.to_numpy(), rows.index.to_numpy(), seed=seed, over="tasks")
            parts.append(f"{label}{words} {rows.mean():.2f}, {lost.value:+.2f} lost beyond random heads in the same "
                         f"layers ({lost.low:+.2f} to {lost.high:+.2f})")
    mean = bootstrap_mean(clean.to_numpy(), clean.index.to_numpy(), seed=seed, over="tasks")
    n_heads = int(at["n_heads"].iloc[0])
    return (f"Without ablation the few-shot accuracy is {mean.value:.2f} ({mean.low:.2f} to {mean.high:.2f}); with "
            f"{n_heads} {'head' if n_heads == 1 else 'heads'} ({fraction:.0%}) replaced: " + "; ".join(parts)
            + ". Intervals: 95 %, bootstrap over tasks.")


def steps_sentence(scores: pd.DataFrame, steps: list[int]) -> str:
    """Which checkpoints the page is about, and which of them are missing."""
    present = set(scores["step"])
    missing = [step for step in steps if step not in present]
    note = f" Missing: {', '.join(map(str, missing))}; figures have a gap there." if missing else ""
    known = [step for step in steps if step in present]
    note += "".join(f" Steps {one} and {other} have the same scores to the last bit: the same weights under two steps."
                    for one, other in same_checkpoints(scores))
    return f"{len(known)} checkpoints of {scores['model'].iloc[0]}: steps {', '.join(map(str, known))}.{note}"


def emergence_sentence(emergence: pd.DataFrame) -> str:
    """When each kind came and in which order, with the checkpoints that bound it."""
    came = emergence.set_index("kind")["first step with it"]
    parts = []
    for kind, label in (("induction", "Induction heads"), ("fv", "FV heads")):
        row = emergence.set_index("kind").loc[kind]
        if pd.isna(row["first step with it"]):
            parts.append(f"{label} did not come")
        else:
            after = f", after {row['last step without']}" if pd.notna(row["last step without"]) else ""
            parts.append(f"{label} came by step {row['first step with it']}{after}")
    text = ". ".join(parts) + "."
    if came.isna().any():
        return text
    if came["induction"] == came["fv"]:
        return text + " At this spacing of checkpoints they came together."
    return text + f" {'Induction' if came['induction'] < came['fv'] else 'FV'} heads came first."


def seeds_sentence(by_seed: pd.DataFrame) -> str:
    """In how many seeds which kind came first."""
    counts = by_seed["first"].value_counts()
    words = {"induction": "induction heads came first", "FV": "FV heads came first",
             "same checkpoint": "both came at the same checkpoint", "neither came": "neither came"}
    parts = [f"{text} in {counts[key]}" for key, text in words.items() if key in counts]
    if len(by_seed) == 1:
        return "Only one seed of this model has checkpoints here."
    return f"Of {len(by_seed)} models that differ by their seed, {', '.join(parts)}."


def interval_sentence(low: float, high: float) -> str:
    """The interval of the FV heads' emergence step."""
    return f"FV heads, 95 % interval over scoring tasks: {_step(low)} to {_step(high)}."


def transition_sentence(transitions: pd.DataFrame) -> str:
    """Heads that had both scores, by which came first."""
    rows = transitions.set_index("order")
    first, reverse = rows.loc["induction_first"], rows.loc["fv_first"]
    return (f"{int(first['heads'])} heads were induction heads before they were FV heads "
            f"({first['expected by chance']:.1f} by chance, p = {first['p (at least as many)']:.2g}), "
            f"{int(reverse['heads'])} the reverse ({reverse['expected by chance']:.1f} by chance), "
            f"{int(rows.loc['both_at_once', 'heads'])} both from the same checkpoint on.")


def transitions_by_seed_sentence(by_seed: pd.DataFrame) -> str:
    """Heads that changed kind in each direction, over models that differ by their seed."""
    first, reverse = by_seed["induction first"].sum(), by_seed["FV first"].sum()
    heads = "head" if first == 1 else "heads"
    return (f"Over {len(by_seed)} {'seeds' if len(by_seed) > 1 else 'seed'}: {first} {heads} induction first "
            f"({by_seed['induction first, by chance'].sum():.1f} by chance), {reverse} FV first "
            f"({by_seed['FV first, by chance'].sum():.1f} by chance); more induction-first heads than by chance at "
            f"p < 0.05 in {int((by_seed['p (induction first)'] < 0.05).sum())}.")


def models_sentence(sizes: pd.DataFrame, models: dict[str, list[int]]) -> str:
    """Which models are compared, and which of the suite are missing."""
    absent = [model for model in models if model not in set(sizes["model"])]
    note = f" Not run: {', '.join(absent)}." if absent else ""
    return f"{len(sizes)} models of {sizes['parameters'].min():,} to {sizes['parameters'].max():,} parameters.{note}"


def comparison_sentence(comparison: pd.DataFrame) -> str:
    """Depth, overlap and percentiles in counts of models."""
    n = len(comparison)
    deeper = int((comparison["depth difference (layers)"] > 0).sum())
    significant = int(((comparison["depth difference (layers)"] > 0) & (comparison["p (depth)"] < 0.05)).sum())
    more = int((comparison["overlap"] > comparison["overlap by chance"]).sum())
    return (f"FV heads sit deeper on average in {deeper} of {n} models (p < 0.05 in {significant}). The top sets share "
            f"more heads than by chance in {more} of {n}. FV heads have a mean percentile of "
            f"{comparison['induction percentile of FV heads'].mean():.2f} in the induction score, induction heads one "
            f"of {comparison['FV percentile of induction heads'].mean():.2f} in the FV score.")


def effects_sentence(effects: pd.DataFrame) -> str:
    """In how many models each kind's ablation costs more than layer-matched random heads, for both metrics."""
    parts = []
    for metric, words in METRIC_WORDS.items():
        for excluded, how in ((False, ""), (True, " with exclusion")):
            rows = effects[(effects["metric"] == metric) & (effects["excluded"] == excluded)]
            counts = [f"{label} in {int((own['low'] > 0).sum())} of {len(own)} models"
                      for kind, label in (("fv", "FV heads"), ("induction", "induction heads"))
                      if len(own := rows[rows["ranking"] == kind])]
            parts += [f"**{words}{how}**: {', '.join(counts)}"] if counts else []
    return ("Ablation costs more than random heads of the same layers, with an interval above zero: "
            + "; ".join(parts) + ".")


def _step(step: float) -> str:
    return f"step {step:g}" if np.isfinite(step) else "none"


def gap_sentence(gaps: pd.DataFrame, metric: str, *, seed: int) -> str:
    """Does ablating FV heads cost more than ablating induction heads, the more so the larger the model?"""
    n = len(gaps)
    more, fewer = int((gaps["low"] > 0).sum()), int((gaps["high"] < 0).sum())
    text = (f"**{METRIC_WORDS[metric]}**: FV heads cost more than induction heads in {int((gaps['value'] > 0).sum())} "
            f"of {n} models (interval above zero in {more}, below in {fewer})")
    if gaps["parameters"].nunique() < 3:
        return f"{text}; whether the gap grows with size cannot be said from {gaps['parameters'].nunique()} sizes."
    trend = trend_test(gaps["parameters"].to_numpy(dtype=float), gaps["value"].to_numpy(), seed=seed)
    return (f"{text}. Rank correlation of the gap with size: {trend.value:+.2f} (permutation p = "
            f"{trend.p_value:.2g}, two-sided, {n} models).")


def overlaps_sentence(overlaps: pd.DataFrame) -> str:
    """In how many models the top sets share more or fewer heads than two random sets, per share of heads."""
    parts = []
    for fraction, rows in overlaps.groupby("fraction"):
        told = rows[rows["p_value"] < 0.05]
        more, fewer = (told["value"] > told["expected"]).sum(), (told["value"] < told["expected"]).sum()
        parts.append(f"top {fraction:.0%} ({rows['n_heads'].min()} to {rows['n_heads'].max()} heads): "
                     f"{rows['value'].mean():.0%} shared on average, {rows['expected'].mean():.0%} by chance; more "
                     f"than chance in {more} of {len(rows)} models, fewer in {fewer} (p < 0.05, hypergeometric)")
    return "; ".join(parts) + "."
