"""The lab in tables, for its page: examples of the world, what models read, the ladder, the recipe's trials."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import yaml

from icl_lib.data.tasks import Task
from icl_lib.kinds import INDUCTION_THRESHOLD, fv_threshold, mean_scores, null_draws
from icl_lib.measurements import task_group
from icl_lib.models.locate import count_parameters
from icl_lib.names import size_of
from icl_lib.tables import read_table
from lab.files import ARMS, MODELS, TRIALS, read_rung

REACHED = ("model", "parameters", "0 shots", "1 shot", "10 shots", "10, shuffled", "all trained", "unseen",
           "prefix matching", "induction heads by layer", "FV score", "FV threshold")


def world_table(tasks: dict[str, Task]) -> pd.DataFrame:
    """Tasks by group and split: how many, how many pairs, and one pair of the first of them."""
    rows = []
    for group in ("shared labels", "look-up", "extractive"):
        of_group = [task for task in tasks.values() if task_group(task) == group]
        question, answer = of_group[0].pairs[0]
        splits = {split: sum(task.split == split for task in of_group)
                  for split in ("scoring", "evaluation", "training", "unseen")}
        rows.append({"group": group, "tasks": len(of_group), **splits,
                     "pairs": sum(len(task.pairs) for task in of_group), "example": f"{question} → {answer}"})
    return pd.DataFrame(rows).set_index("group")


def card_table(tasks: dict[str, Task]) -> pd.DataFrame:
    """Every task's card: split, group, relation, number of pairs, floor and an example."""
    rows = [{"task": name, "split": task.split, "group": task_group(task), "relation": task.relation,
             "pairs": len(task.pairs), "floor": round(task.floor, 2), "example": " → ".join(task.pairs[0])}
            for name, task in tasks.items()]
    return pd.DataFrame(rows).set_index("task").sort_values(["group", "split"], kind="stable")


def mixture_table(rung: str) -> pd.DataFrame:
    """What one optimiser step of a rung reads: rows, tokens and share of tokens per kind of text."""
    mixture = pd.DataFrame(read_rung(rung)["mixture"]).T
    tokens = mixture["rows"] * mixture["length"]
    return mixture.assign(tokens=tokens, share=(tokens / tokens.sum()).map("{:.0%}".format)).rename_axis("text")


def trained() -> list[tuple[str, int]]:
    """(rung, seed) of every model whose training curve is there, with or without weights, by size."""
    runs = [(path.parts[-3], int(path.parts[-2].removeprefix("seed"))) for path in MODELS.glob("*/seed*/curve.csv")]
    return sorted(runs, key=lambda run: (count_parameters(run[0]), run[1]))


def ladder_table() -> pd.DataFrame:
    """One row per rung: shape, parameters without embeddings, seeds, steps, tokens, minutes (seed 0), size on disk."""
    rows, runs = [], trained()
    for rung in dict.fromkeys(rung for rung, _ in runs):
        config, seeds = read_rung(rung), [seed for name, seed in runs if name == rung]
        curve = curves([(rung, seeds[0])])
        seconds = (curve["tokens"].diff().fillna(curve["tokens"]) / curve["tokens_per_second"]).sum()
        size = sum(file.stat().st_size for file in (MODELS / rung).rglob("*.safetensors"))
        rows.append({
            "rung": rung, "parameters": count_parameters(rung), "layers": config["shape"]["layers"],
            "heads per layer": config["shape"]["heads"], "d_model": config["shape"]["d_model"],
            "seeds": len(seeds), "steps": config["steps"],
            "million tokens": round(curve["tokens"].iloc[-1] / 1e6, 1), "minutes": round(seconds / 60),
            "weights here, MB": round(size / 1e6, 1)})
    return pd.DataFrame(rows).set_index("rung").rename_axis("size")


def curves(runs: Iterable[tuple[str, int]]) -> pd.DataFrame:
    """Training curves of (rung, seed) runs: columns rung, seed, step, loss (nats), tokens, tokens_per_second."""
    frames = [pd.read_csv(MODELS / rung / f"seed{seed}" / "curve.csv").assign(rung=rung, seed=seed)
              for rung, seed in runs]
    return pd.concat(frames, ignore_index=True)


def reached_table(results: str, models: dict[str, list[int]], tasks: dict[str, Task]) -> pd.DataFrame:
    """One row per lab model of a suite, at its last scored step: accuracies (first token) and top scores.

    Accuracies are means over tasks: `0`, `1` and `10 shots` and `10, shuffled` over trained tasks that share inputs
    and labels, `all trained` at 10 shots over every trained task, `unseen` over tasks never trained on. Models that
    are no lab models or have no tables are left out; the table may be empty.
    """
    rows = []
    for model, steps in models.items():
        paths = [Path(results) / table / model / f"step{steps[-1]}.parquet" for table in ("accuracy", "scores")]
        if not model.startswith("lab-") or not all(path.is_file() for path in paths):
            continue
        accuracy = read_table(paths[0], schema_name="accuracy").query("metric == 'first_token_accuracy'")
        scores = read_table(paths[1], schema_name="scores")
        matching = mean_scores(scores, "induction_prefix_matching")
        sharing = accuracy["task"].map(lambda name: name in tasks and task_group(tasks[name]) == "shared labels")
        known = accuracy["split"] != "unseen"

        def mean(rows: pd.Series, shots: int, labels: str = "clean", table: pd.DataFrame = accuracy) -> float:
            at = rows & (table["n_shots"] == shots) & (table["labels"] == labels)
            return float(table[at]["value"].mean())

        rows.append((
            model, count_parameters(model), mean(sharing & known, 0), mean(sharing & known, 1),
            mean(sharing & known, 10), mean(sharing & known, 10, "shuffled"), mean(known, 10), mean(~known, 10),
            float(matching.max()), " ".join(map(str, (matching > INDUCTION_THRESHOLD).sum(axis=1))),
            float(mean_scores(scores, "fv").max()), fv_threshold(null_draws(scores))))
    table = pd.DataFrame(rows, columns=REACHED)
    return table.sort_values(["parameters", "model"]).set_index("model")


def means_by_size(reached: pd.DataFrame) -> pd.DataFrame:
    """A `reached_table` by size: how many seeds, and means over them of accuracies and top scores."""
    sizes = reached.groupby(reached.index.map(size_of).rename("size"), sort=False)
    means = sizes.mean(numeric_only=True).drop(columns=["parameters", "FV threshold"]).round(2)
    means.insert(0, "seeds", sizes.size())
    return means


def recipe_table(rung: str) -> pd.DataFrame:
    """A size's trials (`lab.recipe`): one row per arm and seed; raises FileNotFoundError where none were run."""
    columns = ["arm", "seed", "loss", "10 shots", "1 shot", "gap to shuffled", "prefix matching", "induction layers",
               "other heads", "FV score", "null, 99 %", "FV heads"]
    return _trials(rung).reindex(columns=columns).dropna(axis="columns", how="all").set_index("arm")


def recipe_changes(rung: str) -> pd.DataFrame:
    """What each arm of a size's trials changes, as it stands in recipe.yaml."""
    arms = yaml.safe_load(ARMS.read_text(encoding="utf-8"))[rung]
    return pd.DataFrame([(arm, yaml.safe_dump(change, default_flow_style=True).strip() if change else "nothing")
                         for arm, change in arms.items()], columns=["arm", "changed"]).set_index("arm")


def recipe_sentence(rung: str) -> str:
    """In how many seeds of each arm the two kinds of heads formed, where, and the 10-shot accuracies, in one sentence.

    Where: layers with induction heads and the largest share of a layer's heads, where a trial measured them.
    """
    parts = []
    for arm, rows in _trials(rung).groupby("arm", sort=False):
        induction = int((rows["prefix matching"] > 0.5).sum())
        fv = int(((rows["FV score"] > 0.03) & (rows["FV score"] > rows["null, 99 %"])).sum())
        shots = ", ".join(f"{value:.2f}" for value in rows["10 shots"])
        known = rows.dropna(subset=["induction layers", "other heads"])
        where = "; ".join(f" (layers: {row['induction layers']:.0f}, of the fullest {1 - row['other heads']:.0%})"
                          for _, row in known.iterrows())
        parts.append(f"*{arm}*: induction heads in {induction} of {len(rows)} seeds{where}, FV heads in {fv}, accuracy "
                     f"at 10 shots {shots}")
    return (f"Counting prefix matching above 0.5 and FV scores above 0.03 and their null. {'; '.join(parts)}. Where "
            "seeds of the recipe as it is differ, one seed of another arm says little.")


def _trials(rung: str) -> pd.DataFrame:
    return pd.read_csv(TRIALS).query("rung == @rung")
