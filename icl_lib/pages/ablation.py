"""Sentences and small tables of the ablation page, made from its tables."""

from collections.abc import Mapping
from itertools import product

import pandas as pd

from icl_lib.ablation.conditions import Condition, nearest_fraction
from icl_lib.ablation.effects import CONTROLS, DIFFERENCE, FEW_SHOT, METRIC_WORDS
from icl_lib.ablation.protocols import titles
from icl_lib.ablation.table import TOKEN_LOSS
from icl_lib.analysis.ablation_numbers import LOSSES, carries_loss, effect_name, find, set_name
from icl_lib.heads import head_names
from icl_lib.kinds import KINDS, LOWEST, heads_of_kind
from icl_lib.pages.common import CONTROL_WORDS, KIND_WORDS, interval_words


def conditions_table(conditions: list[Condition], scores: pd.DataFrame) -> pd.DataFrame:
    """The ablated heads of each ranking that is not random, by fraction, and how many of them are of either kind."""
    of_kind = heads_of_kind(scores)
    rows = [(c.fraction, c.ranking, c.excluded or "nothing", int(c.heads.sum()),
             *(int((c.heads & of_kind[kind]).sum()) for kind in KINDS), " ".join(head_names(c.heads)))
            for c in conditions if c.ranking in KINDS]
    return pd.DataFrame(rows, columns=[
        "fraction", "ranking", "excluded", "n_heads", "induction heads", "FV heads", "heads"])


def finding_sentence(numbers: pd.DataFrame) -> str:
    """What either metric loses to each kind replaced by its mean at all positions, beyond layer-matched random heads
    or, without a valid control, as it is."""
    clean, neither = find(numbers, f"{FEW_SHOT}, no ablation"), find(numbers, "heads of neither kind")
    n, share = (find(numbers, name)["value"] for name in ("heads ablated", "share of heads ablated"))
    heads = f"the top {n:.0f} {'head' if n == 1 else 'heads'} ({share:.0%}) by a kind's score"
    controlled = find(numbers, effect_name(FEW_SHOT, "fv", False, "mean", "all", "random_layer_matched")) is not None
    control = "random_layer_matched" if controlled else "none"
    parts, measured = [], []
    for metric, the, unit, of in ((FEW_SHOT, "", "", f"prompts of {clean['n']} tasks"),
                                  (TOKEN_LOSS, "the ", " nats", "documents")):
        drops = {label: row for kind, label in KIND_WORDS.items()
                 if (row := find(numbers, effect_name(metric, kind, False, "mean", "all", control))) is not None}
        if drops:
            texts = [f"{interval_words(row, '.3f')}{unit} when {label} are" for label, row in drops.items()]
            parts.append(f"**{the}{METRIC_WORDS[metric]}** drops by {' ablated and by '.join(texts)}")
            measured.append(f"{next(iter(drops.values()))['n']} {of}")
    text = (f"Without ablation few-shot accuracy is {interval_words(clean, '.2f')}. With {heads} replaced by their "
            f"mean at all positions {'; '.join(parts)}, {CONTROL_WORDS[control]} (95 % intervals; "
            f"{' and '.join(measured)}).")
    if not controlled:
        text += (f" There is no valid control here: {neither['value']:.0f} of {neither['n']} heads are of neither "
                 "kind, and with the ablated sets taken out they are fewer than the heads of a set.")
    if find(numbers, "shared heads at the shown share")["value"] == 1:
        text += " The plain sets of both kinds are the same heads: only with exclusion can the kinds be told apart."
    return text


def controls_table(numbers: pd.DataFrame, positions: str = "all") -> pd.DataFrame:
    """What is lost against each control at the shown share, side by side: a row per metric, kind and exclusion.
    Holm's p is of the effect in the same layers."""
    rows = []
    for metric, excluded, kind in product(METRIC_WORDS, (False, True), KIND_WORDS):
        names = {control: effect_name(metric, kind, excluded, "mean", positions, control) for control in CONTROLS}
        p_value, of_set = find(numbers, f"{names[CONTROLS[-1]]}, Holm's p"), set_name(kind, excluded)
        if find(numbers, names["none"]) is not None:
            rows.append({
                "metric": METRIC_WORDS[metric], "ablated": set_name(KIND_WORDS[kind], excluded),
                "left": _told(numbers, f"{metric}, {of_set}, mean at {positions}", ".2f"),
                **{CONTROL_WORDS[control]: _told(numbers, name, "+.3f", none="no valid control")
                   for control, name in names.items()},
                "Holm's p": "-" if p_value is None else "< 0.001" if p_value["value"] < 0.001
                else f"{p_value['value']:.3f}",
                "different draws of the same layers": int(find(numbers, f"draws, layer-matched, {of_set}")["value"]),
                "mean distance of their layers": _told(numbers, f"layer distance, {of_set}", ".2f")})
    return pd.DataFrame(rows).set_index(["metric", "ablated"])


def _told(numbers: pd.DataFrame, name: str, form: str, none: str = "-") -> str:
    row = find(numbers, name)
    return none if row is None else interval_words(row, form)


def order_table(numbers: pd.DataFrame) -> pd.DataFrame:
    """In how many interventions the order that the paper reports holds, beyond random heads of the same layers."""
    rows = []
    for (metric, first), excluded in product(((FEW_SHOT, "fv"), (TOKEN_LOSS, "induction")), (False, True)):
        found = [find(numbers, f"interventions {what}, {metric}, {set_name(first, excluded)}")
                 for what in ("in order", "beyond random", "told apart")]
        if found[0] is not None:
            rows.append((METRIC_WORDS[metric], set_name(KIND_WORDS[first], excluded),
                         *(int(row["value"]) for row in found), int(found[0]["n"])))
    return pd.DataFrame(rows, columns=["metric", "drops most for", "in the paper's order", "beyond random",
                                       "beyond the other kind", "interventions"]).set_index("metric")


def protocols_table(numbers: pd.DataFrame, historic: Mapping[str, list[Condition]]) -> pd.DataFrame:
    """Per protocol the heads it ablates and excludes, and what its token-loss difference can show against its error
    (`carries_loss`)."""
    rows = {}
    for name, words in titles(list(LOSSES)).items():
        row, own = {}, numbers[numbers["name"].str.startswith(f"heads ablated, {name}, ")]
        if name in historic:
            changed = find(numbers, f"sets changed by exclusion, {name}")
            row |= {"heads ablated": ", ".join(f"{n:.0f}" for n in sorted(own["value"].unique())),
                    "excluded": f"top {float(next(c.excluded for c in historic[name] if c.excluded).split()[1]):.0%}",
                    "sets changed by exclusion": f"{changed['value']:.0f} of {changed['n']}"}
        if (carried := carries_loss(numbers, name)) is not None:
            clean = find(numbers, f"{LOSSES[name]}, no ablation")
            row |= {"token-loss difference (nats)": interval_words(clean, "+.3f"), "documents": f"{clean['n']}",
                    "least change told (nats)": _told(numbers, f"least change told, {name}", ".2f"),
                    "third row of Figure 4": "drawn" if carried else "not drawn"}
        if row:
            rows[words] = row
    return pd.DataFrame.from_dict(rows, orient="index").fillna("-").rename_axis("protocol")


def few_heads_table(numbers: pd.DataFrame) -> pd.DataFrame:
    """Few-shot accuracy lost without the single top head, or the heads of the lowest FV scores; below 0: it rises."""
    found = numbers["name"].str.extract(
        rf"^{FEW_SHOT} lost, (?P<n>\d+) heads of (?P<ranking>\w+), mean at (?P<at>\w+)$")
    found = found.assign(text=[interval_words(row, "+.3f") for _, row in numbers.iterrows()]).dropna()
    words = {"fv": "FV head, the top one", "induction": "induction head, the top one", LOWEST: "lowest FV scores"}
    found = found.sort_values(
        ["ranking", "n"], key=lambda of: of.map(list(words).index) if of.name == "ranking" else of.astype(int))
    found["ablated"] = found["n"] + " " + found["ranking"].map(words)
    found["where"] = found["at"].map({"all": "lost, all positions", "last": "lost, last position"})
    wide = found.pivot(index="ablated", columns="where", values="text").fillna("-")
    return wide.loc[found["ablated"].unique()].rename_axis(columns=None)


# Departures that change a number of the grid: place in the list, words, what differs from the one intervention.
_AT_LAST = {"positions": "last", "control": "without"}
_CHANGES = (
    ("", "one intervention, as on this page", {}),
    ("A1", "each task's own mean", {"replacement": "task_mean"}),
    ("A2", "the last position only", {"positions": "last"}),
    ("A18", "zero instead of the mean", {"replacement": "zero"}),
    ("A18", "another prompt's output", {"replacement": "resample"}),
    ("T5", "the output at the BOS", {"replacement": "bos_value"}),
    ("A14", "the other kind's top heads kept", {"excluded": True}),
    ("A4", "F1, last position, no random heads", _AT_LAST | {"metric": "generated_f1"}),
    ("", "accuracy, last position, no random heads", _AT_LAST),
)


def changes_table(numbers: pd.DataFrame) -> pd.DataFrame:
    """What each departure does to the difference between the kinds: metric lost to FV heads minus to induction heads,
    beyond random heads of the same layers but where the words say without."""
    rows = []
    for place, words, change in _CHANGES:
        of = {"metric": FEW_SHOT, "ranking": DIFFERENCE, "replacement": "mean", "positions": "all", "excluded": False,
              "control": CONTROLS[-1]} | change
        told = (_told(numbers, effect_name(**of | metric), "+.3f") for metric in ({}, {"metric": TOKEN_LOSS}))
        rows.append((place, words, *told))
    columns = ["place", "what differs", "few-shot accuracy", "token-loss difference (nats)"]
    return pd.DataFrame(rows, columns=columns).set_index("place")


def task_table(ablations: pd.DataFrame, tasks: pd.DataFrame, share: float) -> pd.DataFrame:
    """Accuracy per task, clean and ablated at the share nearest to the given one; A6: ceiling of the F1."""
    rows = ablations.query("metric == @FEW_SHOT and positions != 'last' and replacement in ('none', 'mean') and "
                           "excluded == ''")
    nearest = nearest_fraction(rows[rows["ranking"] != "none"]["fraction"], share)
    wide = rows[rows["fraction"].isin((0, nearest))].pivot_table(
        index="task", columns=["ranking", "matched"], values="value")
    columns = {("none", ""): "clean"}
    for kind, label in KIND_WORDS.items():
        columns |= {(kind, ""): label, ("random_layer_matched", kind): f"random, layers of {label}"}
    ceilings = ablations[ablations["metric"] == "f1_ceiling"].set_index("task")["value"].rename("F1 of right answers")
    return pd.concat([tasks.set_index("task")["floor"][wide.index], ceilings,
                      wide.reindex(columns=columns.keys()).set_axis(columns.values(), axis=1)], axis=1).round(2)
