"""Tables of the scoring page. They print numbers of the table `statistics` and no others."""

import pandas as pd

from icl_lib.ablation.effects import FEW_SHOT
from icl_lib.analysis.scoring_numbers import TOP, undone_tasks
from icl_lib.figures.common import LABEL
from icl_lib.figures.scoring import COLUMNS, head_table
from icl_lib.kinds import DEFINED_BY, INDUCTION_THRESHOLD, KINDS, RANKED_BY


def kinds_table(numbers: pd.DataFrame) -> pd.DataFrame:
    """How many heads the model has of each kind by the one definition, and its top heads."""
    of, n = numbers.set_index("name")["value"], numbers.set_index("name")["n"]
    definition = {"induction": f"prefix matching above {INDUCTION_THRESHOLD:g}",
                  "fv": f"FV score above {of['FV threshold']:.4f}"}
    rows = {}
    for kind in KINDS:
        tops = [name.rsplit(" ", 1)[1] for name in of.index if name.startswith(f"top {kind} head ")]
        rows[LABEL[kind]] = {"heads": f"{of[f'{kind} heads']:.0f} of {n[f'{kind} heads']}",
                             "defined by": definition[kind], "top heads": ", ".join(tops)}
    return pd.DataFrame.from_dict(rows, orient="index")


def accuracy_table(numbers: pd.DataFrame) -> pd.DataFrame:
    """Mean accuracy per group of tasks by demonstrations, and with shuffled labels where that was measured."""
    found = numbers["name"].str.extract(r"^accuracy, (?P<tasks>.*), (?P<labels>.*), (?P<shots>\d+) shots$")
    found = found.assign(value=numbers["value"], shots=found["shots"].astype(float)).dropna(subset="tasks")
    wide = found.pivot(index="tasks", columns=["labels", "shots"], values="value").sort_index(axis=1).round(2)
    wide.columns = [f"{shots:.0f} shots{'' if labels == 'clean' else ', shuffled'}" for labels, shots in wide.columns]
    return wide.loc[found["tasks"].unique()]


def scores_table(numbers: pd.DataFrame) -> pd.DataFrame:
    """Per score the highest value with its head, and which share of the sum of positive scores few heads have."""
    of, rows = numbers.set_index("name")["value"], []
    for label, score, kind, digits in (
            ("attention mass (ranks)", RANKED_BY["induction"], "induction", 3),
            ("prefix matching (defines)", DEFINED_BY["induction"], "", 3),
            ("FV score (ranks, defines)", "fv", "fv", 4)):
        shares = {f"share of the positive sum in the top {k}": f"{of[f'share of top {k}, {kind}']:.0%}"
                  if f"share of top {k}, {kind}" in of else "-" for k in TOP}
        value, layer, head = (of[f"highest {score}{part}"] for part in ("", ", layer", ", head"))
        rows.append({"score": label, "highest": f"{value:.{digits}f}", "head": f"L{layer:.0f}H{head:.0f}", **shares})
    return pd.DataFrame(rows).set_index("score")


def accuracy_by_task(accuracy: pd.DataFrame, tasks: pd.DataFrame) -> pd.DataFrame:
    """First-token accuracy per task by demonstrations and labels; floor, number of prompts, whether it is done."""
    rows, undone = accuracy[accuracy["metric"] == FEW_SHOT], undone_tasks(accuracy, tasks)
    tasks = tasks[tasks["task"].isin(rows["task"])].sort_values(["split", "task_type", "task"]).set_index("task")
    wide = rows.pivot(index="task", columns=["labels", "n_shots"], values="value").sort_index(axis=1).loc[tasks.index]
    wide.columns = [f"{shots} shots{'' if labels == 'clean' else ', shuffled'}" for labels, shots in wide.columns]
    return pd.concat([tasks[["split", "group"]], wide.round(2)], axis=1).assign(
        floor=tasks["floor"].round(2), prompts=int(rows["n_prompts"].iloc[0]),
        done=["no" if task in undone else "yes" for task in tasks.index])


def top_heads_table(scores: pd.DataFrame, n: int) -> pd.DataFrame:
    """The `n` heads with the highest FV scores and the `n` with the highest attention mass, with all their scores."""
    table = head_table(scores)
    names = "L" + table["layer"].astype(str) + "H" + table["head"].astype(str)
    wide = table[list(COLUMNS.values())].set_index(names.rename("head"))
    best = [wide.nlargest(n, COLUMNS[RANKED_BY[kind]]).index for kind in ("fv", "induction")]
    return wide.loc[best[0].union(best[1], sort=False)].round({name: 4 if name == "FV score" else 3 for name in wide})
