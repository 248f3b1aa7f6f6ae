"""Sentences and tables of the scaling page. They print numbers of its table `statistics` and no others."""

from itertools import product

import pandas as pd

from icl_lib.ablation.effects import CONTROLS, DIFFERENCE, METRIC_WORDS
from icl_lib.analysis.scaling import KIND_COLUMN
from icl_lib.analysis.scaling_numbers import lost
from icl_lib.pages.common import CONTROL_WORDS, KIND_WORDS, NUMBERS, interval_words

_UNIT = {"first_token_accuracy": "of accuracy", "token_loss_difference": "nats"}


def models_sentence(numbers: pd.DataFrame, models: dict[str, list[int]]) -> str:
    """Which models are compared, which of the suite are missing, and which lack a kind of heads."""
    sizes = by_size(numbers)
    absent = [model for model in models if model not in sizes]
    note = f" Not run: {', '.join(absent)}." if absent else ""
    both = _over_models(numbers).at["models with heads of both kinds", "value"]
    left = "".join(f" {', '.join(lacking)} {'has' if len(lacking) == 1 else 'have'} {what}."
                   for what, lacking in without_kinds(numbers).items())
    return (f"{len(sizes)} {'model' if len(sizes) == 1 else 'models'} of {min(sizes.values()):,.0f} to "
            f"{max(sizes.values()):,.0f} parameters, {both:.0f} of them with induction heads and FV heads.{left}{note} "
            "Counts and means over models leave out those that lack a kind.")


def without_kinds(numbers: pd.DataFrame) -> dict[str, list[str]]:
    """Models that lack a kind of heads, by what they lack: {"no FV heads": [...]}."""
    found: dict[str, list[str]] = {}
    for model in by_size(numbers):
        of = numbers[numbers["model"] == model].set_index("name")["value"]
        if missing := " and ".join(f"no {name}" for name in KIND_COLUMN.values() if of.get(name, 1) == 0):
            found.setdefault(missing, []).append(model)
    return found


def overlaps_table(numbers: pd.DataFrame) -> pd.DataFrame:
    """Per share of heads how many the top sets and random sets of their layers share, and models in which p < 0.05."""
    of, shown = _over_models(numbers), NUMBERS["overlaps"]
    rows = {f"top {share:.0%}": [
        *(f"{of.at[f'{name}, top {share:g}', 'value']:{form}}" for name, (_, form) in shown.items()),
        of.at[f"overlap, top {share:g}", "n"]]
        for share in sorted(float(name.split()[-1]) for name in of.index if name.startswith("overlap, top "))}
    columns = [*(column for column, _ in shown.values()), "models"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("heads")


def effects_table(numbers: pd.DataFrame) -> pd.DataFrame:
    """Means over models with heads of both kinds of the drop when a kind is ablated, against each control; the rank
    correlation of the difference between the kinds with size, its permutation p and the smallest possible."""
    of, rows = _over_models(numbers), []
    for metric, excluded, control in product(METRIC_WORDS, (False, True), reversed(CONTROLS)):
        fv, induction, gap = (lost(metric, ranking, control, excluded) for ranking in ("fv", "induction", DIFFERENCE))
        if fv not in of.index:
            continue
        counts = of["value"][[f"{gap}, {end}" for end in (
            "above zero", "interval above zero", "interval below zero")]].astype(int)
        trend = ("", "")
        if (name := f"{gap}, trend with size") in of.index:
            trend = (f"{of.at[name, 'value']:+.2f}",
                     f"{of.at[name, 'p_value']:.2g} (at least {of.at[name, 'smallest_p']:.2g})")
        rows.append((METRIC_WORDS[metric], "with exclusion" if excluded else "plain", CONTROL_WORDS[control],
                     of.at[fv, "n"], *(f"{of.at[name, 'value']:.3f}" for name in (fv, induction)), *counts, *trend))
    return pd.DataFrame(rows, columns=[
        "metric", "ranking", "drop", "models", "FV heads", "induction heads", "more with FV heads in",
        "interval above zero", "interval below zero", "trend of the difference with size", "p"])


def main_effects_table(numbers: pd.DataFrame) -> pd.DataFrame:
    """`effects_table` beyond random heads of the same layers, plain rankings: a row per metric."""
    rows = effects_table(numbers)
    rows = rows[(rows["drop"] == CONTROL_WORDS[CONTROLS[-1]]) & (rows["ranking"] == "plain")]
    return rows.drop(columns=["ranking", "drop"]).set_index("metric")


def dependence_table(numbers: pd.DataFrame) -> pd.DataFrame:
    """What each ablated model loses to each kind, beyond layer-matched heads; "yes": the 95 % interval is above 0."""
    rows = {}
    for model in _ablated(numbers):
        own, rows[model] = numbers[numbers["model"] == model].set_index("name"), {}
        for (metric, words), (kind, heads) in product(METRIC_WORDS.items(), KIND_WORDS.items()):
            text, name = "no control", lost(metric, kind, CONTROLS[-1], False)
            if name in own.index:
                low, high = own.loc[name, ["low", "high"]]
                said = "yes" if low > 0 else "no" if high < 0 else "not told apart"
                text = f"{said}: {interval_words(own.loc[name], '.2f')} {_UNIT[metric]}"
            rows[model][f"{words}, {heads}"] = text
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model")


def left_out_sentence(numbers: pd.DataFrame) -> str:
    """Which ablated models are in none of the means, or not in those against layer-matched heads, and why."""
    ablated = _ablated(numbers)
    left = {what: kept for what, models in without_kinds(numbers).items()
            if (kept := [model for model in models if model in ablated])}
    gap = lost("first_token_accuracy", DIFFERENCE, CONTROLS[-1], False)
    told = {*sum(left.values(), []), *numbers[numbers["name"] == gap]["model"]}
    if bare := [model for model in ablated if model not in told]:
        left["not enough heads of neither kind for a control of the same layers"] = bare
    words = "; ".join(f"{', '.join(models)} ({what})" for what, models in left.items())
    return f"Left out: {words}." if words else "No ablated model is left out."


def _ablated(numbers: pd.DataFrame) -> list[str]:
    ablated = set(numbers[numbers["name"].str.contains(" lost, ")]["model"])
    return [model for model in by_size(numbers) if model in ablated]


def _over_models(numbers: pd.DataFrame) -> pd.DataFrame:
    return numbers[numbers["model"] == ""].set_index("name")


def by_size(numbers: pd.DataFrame) -> dict[str, float]:
    """The models of a scaling page's numbers with their parameters, smallest first."""
    sizes = numbers[(numbers["name"] == "parameters") & (numbers["model"] != "")].sort_values(["value", "model"])
    return sizes.set_index("model")["value"].to_dict()
