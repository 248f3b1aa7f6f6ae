"""Sentences and tables of the scaling page. They print numbers of its table `statistics` and no others."""

import pandas as pd

from icl_lib.ablation.effects import CONTROLS, DIFFERENCE, METRIC_WORDS
from icl_lib.analysis.scaling import KIND_COLUMN
from icl_lib.analysis.scaling_numbers import lost
from icl_lib.pages.common import CONTROL_WORDS, numbers_table

# What the page calls its counts and means over models with heads of both kinds.
COMPARISON = {
    "models with deeper FV heads": ("models whose FV heads sit deeper on average", ".0f"),
    "models with significantly deeper FV heads": ("models whose FV heads sit deeper at p < 0.05", ".0f"),
    "models with power for depth": ("models whose heads are enough for such a p", ".0f"),
    "models with more overlap than by chance": ("models whose top sets share more heads than by chance", ".0f"),
    "induction percentile of FV heads": ("mean percentile of FV heads in the induction score", ".2f"),
    "FV percentile of induction heads": ("mean percentile of induction heads in the FV score", ".2f"),
}


def models_sentence(numbers: pd.DataFrame, models: dict[str, list[int]]) -> str:
    """Which models are compared, which of the suite are missing, and which lack a kind of heads."""
    sizes = numbers[(numbers["name"] == "parameters") & (numbers["model"] != "")].set_index("model")["value"]
    absent = [model for model in models if model not in sizes.index]
    note = f" Not run: {', '.join(absent)}." if absent else ""
    both = _over_models(numbers).loc["models with heads of both kinds"]
    lacking = without_kinds(numbers)
    left = "".join(f" {', '.join(of)} {'has' if len(of) == 1 else 'have'} {what}." for what, of in lacking.items())
    return (f"{len(sizes)} {'model' if len(sizes) == 1 else 'models'} of {sizes.min():,.0f} to {sizes.max():,.0f} "
            f"parameters, {both['value']:.0f} of them with induction heads and FV heads.{left}{note} Counts and means "
            f"over models leave out those that lack a kind.")


def without_kinds(numbers: pd.DataFrame) -> dict[str, list[str]]:
    """Models that lack a kind of heads, by what they lack: {"no FV heads": [...]}."""
    found: dict[str, list[str]] = {}
    for model in by_size(numbers):
        of = numbers[numbers["model"] == model].set_index("name")["value"]
        missing = [f"no {name}" for name in KIND_COLUMN.values() if of.get(name, 1) == 0]
        if missing:
            found.setdefault(" and ".join(missing), []).append(model)
    return found


def comparison_table(numbers: pd.DataFrame) -> pd.DataFrame:
    """Depth, overlap and percentiles over the models with heads of both kinds; `n`: how many these are."""
    return numbers_table(numbers[numbers["model"] == ""], COMPARISON)


def overlaps_table(numbers: pd.DataFrame) -> pd.DataFrame:
    """Per share of heads how many the top sets share, against two random sets, and in how many models at p < 0.05."""
    of = _over_models(numbers)
    rows = []
    for where in sorted((name.split(", ")[1] for name in of.index if name.startswith("overlap, ")),
                        key=lambda name: float(name.split()[1])):
        row = {name: of.at[f"{name}, {where}", "value"] for name in
               ("fewest heads", "most heads", "overlap", "overlap by chance", "models with more overlap",
                "models with less overlap", "models with power for overlap")}
        rows.append((f"top {float(where.split()[1]):.0%}", *(f"{row.pop(name):.0f}" for name in list(row)[:2]),
                     *(f"{row.pop(name):.0%}" for name in list(row)[:2]), *(f"{value:.0f}" for value in row.values()),
                     of.at[f"overlap, {where}", "n"]))
    return pd.DataFrame(rows, columns=[
        "heads", "fewest", "most", "shared", "by chance", "more than chance in", "fewer in", "with power", "models"
    ]).set_index("heads")


def effects_sentence(numbers: pd.DataFrame) -> str:
    """By how much either metric drops when either kind is ablated, beyond random heads of the same layers."""
    of = _over_models(numbers)
    lines = []
    for metric, words in METRIC_WORDS.items():
        fv, induction, gap = (lost(metric, ranking, CONTROLS[-1], False) for ranking in ("fv", "induction", DIFFERENCE))
        unit = " nats" if metric == "token_loss_difference" else ""
        if fv in of.index:
            n, (above, below) = of.at[fv, "n"], (
                of.at[f"{gap}, interval {side} zero", "value"] for side in ("above", "below"))
            models = "1 model" if n == 1 else f"{n} models"
            lines.append(
                f"- **{words}** drops by {of.at[fv, 'value']:.2f}{unit} when FV heads are ablated, by "
                f"{of.at[induction, 'value']:.2f}{unit} when induction heads are ({models}; "
                f"the interval of the difference lies above zero in {above:.0f}, below in {below:.0f})."
                + _trend_words(of, gap))
    if not lines:
        lines.append("- No model has this control for both kinds.")
    if left := [f"{', '.join(models)} ({what})" for what, models in _without_control(numbers).items()]:
        lines.append(f"- Left out: {'; '.join(left)}.")
    return ("Beyond random heads of the same layers, means over models with heads of both kinds:\n\n"
            + "\n".join(lines))


def effects_table(numbers: pd.DataFrame) -> pd.DataFrame:
    """Means over models of what is lost to either kind, against each control, with and without exclusion."""
    of, rows = _over_models(numbers), []
    for metric, words in METRIC_WORDS.items():
        for excluded in (False, True):
            for control in CONTROLS:
                names = {ranking: lost(metric, ranking, control, excluded) for ranking in
                         ("fv", "induction", DIFFERENCE)}
                if names["fv"] in of.index:
                    gap = of["value"][[f"{names[DIFFERENCE]}, {end}" for end in
                                       ("above zero", "interval above zero", "interval below zero")]]
                    rows.append((words, "with exclusion" if excluded else "plain", CONTROL_WORDS[control],
                                 of.at[names["fv"], "n"], *(f"{of.at[names[kind], 'value']:.3f}" for kind in
                                                            ("fv", "induction")), *gap.astype(int)))
    return pd.DataFrame(rows, columns=[
        "metric", "ranking", "lost", "models", "FV heads", "induction heads", "more with FV heads in",
        "interval above zero", "interval below zero"])


def _over_models(numbers: pd.DataFrame) -> pd.DataFrame:
    return numbers[numbers["model"] == ""].set_index("name")


def by_size(numbers: pd.DataFrame) -> list[str]:
    """The models of a scaling page's numbers, smallest first."""
    sizes = numbers[(numbers["name"] == "parameters") & (numbers["model"] != "")]
    return list(sizes.sort_values(["value", "model"])["model"])


def _without_control(numbers: pd.DataFrame) -> dict[str, list[str]]:
    """Ablated models that are in no comparison, or not in that against layer-matched heads, by why."""
    gap = lost("first_token_accuracy", DIFFERENCE, CONTROLS[-1], False)
    with_effects = set(numbers[numbers["name"].str.contains(" lost, ")]["model"])
    ablated = [model for model in by_size(numbers) if model in with_effects]
    found = {what: kept for what, models in without_kinds(numbers).items()
             if (kept := [model for model in models if model in ablated])}
    lacking = {model for models in found.values() for model in models}
    controlled = set(numbers[numbers["name"] == gap]["model"])
    if bare := [model for model in ablated if model not in lacking | controlled]:
        found["not enough heads of neither kind for a control of the same layers"] = bare
    return found


def _trend_words(of: pd.DataFrame, gap: str) -> str:
    name = f"{gap}, trend with size"
    if f"{name}, sizes" not in of.index:
        return ""
    sizes = of.at[f"{name}, sizes", "value"]
    if name not in of.index:
        return f" {sizes:.0f} {'size' if sizes == 1 else 'sizes'} cannot say whether the difference grows with size."
    smallest = of.at[f"{name}, smallest p", "value"]
    power = "" if smallest < 0.05 else f"; so few sizes allow no p below {smallest:.2g}, so it cannot be told"
    return (f" Rank correlation of the difference with size: {of.at[name, 'value']:+.2f} over "
            f"{sizes:.0f} sizes (permutation p = {of.at[name, 'p_value']:.2g}, two-sided{power}).")
