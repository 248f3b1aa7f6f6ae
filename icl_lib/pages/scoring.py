"""Sentences and tables of the scoring page. Sentences print numbers of the table `statistics` and no others."""

import re

import numpy as np
import pandas as pd

from icl_lib.analysis.scoring_numbers import TOP
from icl_lib.kinds import DEFINED_BY, FV_MINIMUM, INDUCTION_THRESHOLD, LABELS_READ, NULL_QUANTILE, RANKED_BY
from icl_lib.measurements import mean_scores

FEW_SHOT = "first_token_accuracy"
KIND = {"induction": "induction heads", "fv": "FV heads"}


def accuracy_table(numbers: pd.DataFrame) -> pd.DataFrame:
    """Mean accuracy per group of tasks by demonstrations, and with shuffled labels where that was measured."""
    found = numbers["name"].str.extract(r"^accuracy, (?P<tasks>.*), (?P<labels>.*), (?P<shots>\d+) shots$")
    found = found.assign(value=numbers["value"], shots=found["shots"].astype(float)).dropna(subset="tasks")
    wide = found.pivot(index="tasks", columns=["labels", "shots"], values="value").sort_index(axis=1).round(2)
    wide.columns = [f"{shots:.0f} shots{'' if labels == 'clean' else ', shuffled'}" for labels, shots in wide.columns]
    return wide.loc[found["tasks"].unique()]


def undone_sentence(numbers: pd.DataFrame, undone: list[str]) -> str:
    """Which tasks the model does not do, by the rule of `scoring_numbers.undone_tasks`."""
    row = numbers.set_index("name").loc["tasks not done"]
    names = f": {', '.join(undone)}" if undone else ""
    return (f"On {row['value']:.0f} of {row['n']} tasks no more answers are right than by always giving the commonest "
            f"label (exact binomial test, p < 0.05 asked for){names}. What is ablated shows little on these; they stay "
            "in all means.")


def concentration_sentence(numbers: pd.DataFrame) -> str:
    """On how many tasks the top FV head has the highest score, and the head that lowers the answer most."""
    of, n = numbers.set_index("name")["value"], numbers.set_index("name")["n"]
    name = "tasks with the top FV head highest"
    return (f"The head with the highest mean FV score has the highest one on {of[name]:.0f} of {n[name]} scoring tasks "
            f"taken alone. Lowest FV score: {of['lowest fv']:.4f} ({_head(of, 'lowest fv')}): the mean output of such "
            "a head lowers the answer's probability.")


def scores_table(numbers: pd.DataFrame) -> pd.DataFrame:
    """Per score the highest value with its head, and which share of the sum (FV: of positive scores) few heads have."""
    of, rows = numbers.set_index("name")["value"], []
    for label, score, kind, digits in (
            ("attention mass (ranks)", RANKED_BY["induction"], "induction", 3),
            ("prefix matching (defines)", DEFINED_BY["induction"], "", 3),
            ("FV score (ranks, defines)", "fv", "fv", 4)):
        shares = {f"of the sum, top {k}": f"{of[f'share of top {k}, {kind}']:.0%}"
                  if f"share of top {k}, {kind}" in of else "-" for k in TOP}
        rows.append({"score": label, "highest": f"{of[f'highest {score}']:.{digits}f}",
                     "head": _head(of, f"highest {score}"), **shares})
    return pd.DataFrame(rows).set_index("score")


def accuracy_by_task(accuracy: pd.DataFrame, tasks: pd.DataFrame) -> pd.DataFrame:
    """First-token accuracy per task by demonstrations and labels; with the floor and the number of prompts."""
    rows = accuracy[accuracy["metric"] == FEW_SHOT]
    tasks = tasks[tasks["task"].isin(rows["task"])].sort_values(["split", "task_type", "task"]).set_index("task")
    wide = rows.pivot(index="task", columns=["labels", "n_shots"], values="value").sort_index(axis=1).loc[tasks.index]
    wide.columns = [f"{shots} shots{'' if labels == 'clean' else ', shuffled'}" for labels, shots in wide.columns]
    return pd.concat([tasks[["split", "group"]], wide.round(2)], axis=1).assign(
        floor=tasks["floor"].round(2), prompts=int(rows["n_prompts"].iloc[0]))


def loss_sentence(numbers: pd.DataFrame, window: int) -> str:
    """The unedited model's token-loss difference with its interval; `window` as in `token_loss_difference`."""
    row = numbers.set_index("name").loc["token-loss difference"]
    around = "" if window == 0 else f", each averaged over {2 * window + 1} positions"
    interval = "" if np.isnan(row["low"]) else f"{row['low']:.2f} to {row['high']:.2f}; "
    documents = "document" if row["n"] == 1 else "documents"
    return (f"Loss at the 50th minus loss at the 500th token: {row['value']:.2f} nats ({interval}{row['n']} {documents}"
            f"{around}).")


def score_sentence(numbers: pd.DataFrame) -> str:
    """How many heads of each kind the model has by the one definition."""
    of, n = numbers.set_index("name")["value"], numbers.set_index("name")["n"]
    lost = of["accuracy lost to shuffled labels"]
    labels = ("whether the model reads labels was not measured here" if np.isnan(lost) else
              f"in a model that reads labels: accuracy is {lost:.2f} lower with shuffled ones, at least "
              f"{LABELS_READ:g} is asked for")
    return (
        f"Of {n['fv heads']} heads {of['induction heads']:.0f} "
        f"{_are(of['induction heads'], 'an induction head', KIND['induction'])} (prefix matching above "
        f"{INDUCTION_THRESHOLD:g}) and {of['fv heads']:.0f} {_are(of['fv heads'], 'an FV head', KIND['fv'])} (FV score "
        f"above {of['FV threshold']:.4f}: the percentile {100 * NULL_QUANTILE:g} of the best head under "
        f"{n['FV threshold']} permutations of the clean means, or {FV_MINIMUM:g} where that is lower; {labels}).")


def overlap_sentence(numbers: pd.DataFrame) -> str:
    """Shared heads of the top sets against chance, and the rank correlation of the two scores that rank."""
    rows = numbers.set_index("name")
    tops = {kind: _sorted(name.rsplit(" ", 1)[1] for name in rows.index if name.startswith(f"top {kind} head "))
            for kind in KIND}
    text = "; ".join(f"top {KIND[kind]} ({len(heads)}): {', '.join(heads)}" for kind, heads in tops.items())
    shared, chance = rows.loc["shared top heads"], rows.loc["shared top heads by chance"]
    text = (f"{text[0].upper()}{text[1:]}. Shared: {shared['value']:.0%}, by chance {chance['value']:.0%} "
            f"(p = {shared['p_value']:.2g}, hypergeometric, two-sided).")
    if "rank correlation" in rows.index:
        rho = rows.loc["rank correlation"]
        text += (f" Rank correlation of attention mass and FV score over all {rho['n']} heads: {rho['value']:.2f} "
                 f"(95 % interval {rho['low']:.2f} to {rho['high']:.2f}).")
    return text


def type_sentence(numbers: pd.DataFrame) -> str:
    """How FV scores on abstractive tasks agree with those on extractive ones, over heads."""
    rows = numbers.set_index("name")
    kinds = [name.split(", ")[1] for name in rows.index if re.fullmatch(r"highest fv, \w+ tasks", name)]
    parts = [f"{rows.at[f'highest fv, {kind}', 'value']:.4f} ({_head(rows['value'], f'highest fv, {kind}')}) on {kind}"
             for kind in sorted(kinds)]
    text = f"Highest FV score: {', '.join(parts)}."
    if "rank correlation of types" in rows.index:
        rho = rows.loc["rank correlation of types"]
        text += (f" Rank correlation of the two over heads: {rho['value']:.2f} (95 % interval {rho['low']:.2f} to "
                 f"{rho['high']:.2f}).")
    return text


def top_heads_table(scores: pd.DataFrame, n: int) -> pd.DataFrame:
    """The `n` heads with the highest FV scores and the `n` with the highest attention mass, with all their scores."""
    columns = {"induction_attention_mass": "attention mass", "induction_prefix_matching": "prefix matching",
               "previous_token": "previous token", "fv": "FV score"}
    wide = pd.DataFrame({label: mean_scores(scores, score).flatten().numpy() for score, label in columns.items()})
    n_heads = mean_scores(scores, "fv").shape[1]
    wide.index = pd.Index([f"L{i // n_heads}H{i % n_heads}" for i in range(len(wide))], name="head")
    best = [wide.nlargest(n, columns[RANKED_BY[kind]]).index for kind in ("fv", "induction")]
    chosen = wide.loc[best[0].union(best[1], sort=False)]
    return chosen.round({"attention mass": 3, "prefix matching": 3, "previous token": 3, "FV score": 4})


def _head(of: pd.Series, name: str) -> str:
    return f"L{of[f'{name}, layer']:.0f}H{of[f'{name}, head']:.0f}"


def _sorted(heads) -> list[str]:
    return sorted(heads, key=lambda name: [int(part) for part in re.findall(r"\d+", name)])


def _are(count: float, one: str, several: str) -> str:
    return f"is {one}" if count == 1 else f"are {several}"
