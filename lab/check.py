"""Evaluate every committed lab model on fresh prompts: `python -m lab.check [--seed N] [RUNG ...]`.

Prints one row per rung and seed and ends with status 1 where a model falls below what its rung's file promises.
"""

import argparse
import sys
from collections.abc import Mapping

import pandas as pd

from icl_lib.data.sources import read_tasks
from icl_lib.kinds import FV_MINIMUM, INDUCTION_THRESHOLD, best_of_null
from icl_lib.load import load_model
from icl_lib.measurements import accuracy_table, in_split, prompts_of, task_group
from icl_lib.models.locate import count_parameters
from icl_lib.scores.function_vectors import fv_scores, permuted_mean_scores
from icl_lib.scores.induction import induction_scores, repeated_random_tokens
from lab.files import read_rung, rungs, trained
from workflow import command

# the columns that a rung's `promises` may bound from below
MEASURES = ("10 shots", "rise from 1 shot", "gap to shuffled", "prefix matching", "induction layers", "other heads",
            "FV score", "FV above null", "FV heads")


def measure(name: str, *, n_prompts: int, seed: int) -> dict[str, float]:
    """What one model does at its last step: accuracies (first token, means over tasks), top scores, the FV null.

    The rise from 1 to 10 shots and the gap to shuffled labels are over tasks that share inputs and labels, all other
    accuracies over every task seen in training, `unseen` over those that were not. `induction layers`: layers with
    induction heads; `other heads`: the lowest share of a layer's heads that are none; `FV heads`: how many above the
    null.
    """
    model, tasks = load_model(name), read_tasks()
    table = accuracy_table(model, tasks, name=name, step=-1, shots=[0, 1, 10], n_prompts=n_prompts, seed=seed)
    table = table[table["metric"] == "first_token_accuracy"].set_index("task")
    sharing = [task for task in tasks if task_group(tasks[task]) == "shared labels"]

    def accuracy(shots: int, labels: str = "clean", names=None, unseen: bool = False) -> float:
        rows = table[(table["n_shots"] == shots) & (table["labels"] == labels)]
        rows = rows[(rows["split"] == "unseen") == unseen]
        return float((rows if names is None else rows[rows.index.isin(names)])["value"].mean())

    tokens = repeated_random_tokens(model, n_sequences=100, seed=seed)
    matching = induction_scores(model, tokens, convention="prefix_matching")
    induction = matching > INDUCTION_THRESHOLD
    scoring = prompts_of(model, in_split(tasks, "scoring"), n_prompts=n_prompts, n_shots=10, seed=seed)
    fv = fv_scores(model, scoring)
    null = best_of_null(permuted_mean_scores(model, scoring, fv.mean_z, n_draws=10, seed=seed).numpy())
    ten = accuracy(10, names=sharing)
    return {
        "parameters": count_parameters(name), "0 shots": accuracy(0), "1 shot": accuracy(1), "10 shots": accuracy(10),
        "unseen tasks": accuracy(10, unseen=True), "rise from 1 shot": ten - accuracy(1, names=sharing),
        "gap to shuffled": ten - accuracy(10, "shuffled", sharing),
        "prefix matching": float(matching.max()), "induction layers": int(induction.any(1).sum()),
        "other heads": float((~induction).float().mean(1).min()), "FV score": float(fv.scores.max()),
        "null, 99 %": null, "FV above null": float(fv.scores.max()) - null,
        "FV heads": int((fv.scores > max(null, FV_MINIMUM)).sum()),
    }


def broken_promises(found: dict[str, float], promises: dict[str, float]) -> list[str]:
    """One line for each measure below its promise; ValueError for a promise about no measure."""
    for key in promises:
        if key not in MEASURES:
            raise ValueError(f"promise {key!r} is about no measure, expected among {', '.join(MEASURES)}")
    return [f"{key} is {found[key]:.3f}, promised {bound}"
            for key, bound in promises.items() if not found[key] >= bound]


def beyond(tolerances: Mapping[str, float], again: pd.DataFrame, committed: pd.DataFrame) -> list[str]:
    """One line for each measure of a repetition that differs by more than is tolerated; the last rows are compared."""
    new, old = again.iloc[-1], committed.iloc[-1]
    return [f"{name}: {new[name]:.3f}, committed {old[name]:.3f}, expected within {tolerance}"
            for name, tolerance in tolerances.items() if not abs(new[name] - old[name]) <= tolerance]


@command
def main(given: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("rungs", nargs="*", default=rungs())
    parser.add_argument("--seed", type=int, default=1, help="of the prompts")
    parser.add_argument("--prompts", type=int, default=20, help="per task")
    arguments = parser.parse_args(given)
    models = {f"{rung}-seed{seed}": rung for rung, seed in trained(arguments.rungs)}
    if not models:
        raise ValueError(f"no model of {', '.join(arguments.rungs)} is trained; run `python -m lab.train RUNG` first")
    rows = {name: measure(name, n_prompts=arguments.prompts, seed=arguments.seed) for name in models}
    problems = [f"{name}: {line}" for name, rung in models.items()
                for line in broken_promises(rows[name], read_rung(rung).get("promises", {}))]
    print(pd.DataFrame(rows).T.astype({"parameters": int}).sort_values("parameters").round(3).to_string())
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
