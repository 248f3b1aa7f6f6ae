"""Does induction have to come first? One training per arm, strength and seed: `python -m lab.causal [ARM ...]`.

`lab/causal/plan.yaml` says what is trained and how the outcome is judged; it was committed before the runs. So was
`lab/causal/confirmation/plan.yaml`, which asks again on new seeds (`--folder lab/causal/confirmation`). A finished
run's rows go into `<arm>.csv` beside the plan; finished runs are not repeated. With `--again` (one arm, with
`--seed`) a run is trained anew and its rows are compared with the committed ones. The weights are not kept.
"""

import argparse
import shutil
import sys
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from icl_lib.data.sources import read_tasks
from icl_lib.data.tasks import Prompt, Task, write_prompt
from icl_lib.forward.edits import Edit
from icl_lib.kinds import best_of_null
from icl_lib.load import load_model
from icl_lib.measurements import in_split, prompts_of, task_group
from icl_lib.metrics.evaluate import answer_metrics, token_losses
from icl_lib.names import refuse_unknown
from icl_lib.scores.function_vectors import fv_scores, permuted_mean_scores
from icl_lib.scores.induction import induction_scores, repeated_random_tokens
from lab.check import beyond
from lab.files import CAUSAL, changed, locked, put, read_plan, read_rows, read_rung
from lab.interventions import heads_to_clamp
from lab.train import train
from workflow import command

WORK = Path("results/causal")
HEADS = "heads.csv"
KEY = ["arm", "strength", "seed", "step"]


class Run(NamedTuple):
    """One training: an arm of the plan, its strength, the seed of weights and batches."""

    arm: str
    strength: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.strength:g}"


def planned(plan: dict[str, Any]) -> list[Run]:
    """All runs: seed by seed every arm at its first strength, then the long arms, then the other strengths."""
    runs = [(("long_of" in entry) + 2 * (strength != entry["strengths"][0]), Run(arm, float(strength), seed))
            for seed in plan["seeds"] for arm, entry in plan["arms"].items() for strength in entry["strengths"]]
    return [run for _, run in sorted(runs, key=lambda ranked: ranked[0])]


def configuration(run: Run, plan: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What `train` gets. Arms that clamp heads need those of the untouched run of the same seed in heads.csv."""
    entry = plan["arms"][run.arm]
    intervention = {"name": entry["intervention"], "strength": run.strength, "sham": entry.get("sham", False)}
    if entry["intervention"] == "clamp":
        scores = read_heads(run.seed, folder)
        heads = heads_to_clamp(scores, threshold=plan["measures"]["induction_head"], strength=run.strength,
                               sham=intervention["sham"], seed=run.seed)
        intervention["heads"] = tuple((int(layer), int(head)) for layer, head in heads.nonzero())
    config = changed(changed(read_rung(plan["rung"]), plan["change"]), entry.get("change", {}))
    return config | {"intervention": intervention}


def read_heads(seed: int, folder: Path) -> Tensor:
    """Prefix-matching score of every head at the end of the untouched run of a seed, `[layer head]`."""
    path = folder / HEADS
    table = read_rows(path, ["seed"])
    rows = table[table["seed"] == seed]
    if rows.empty:
        raise ValueError(f"no heads of seed {seed} in {path}, expected those of the arm 'none'; run "
                         f"`python -m lab.causal none --seed {seed}` first")
    return torch.from_numpy(rows.pivot(index="layer", columns="head", values="prefix_matching").to_numpy().copy())


def measure(model, tasks: dict[str, Task], plan: dict[str, Any], *, last: bool) -> dict[str, float]:
    """The measures of one checkpoint: how much induction, FV heads and few-shot accuracy it has.

    `prefix_matching`: best head. `repeat_gain`: loss of a random run of tokens less that of its copy, nats;
    `repeat_gain_ablated`: with the induction heads at zero; `any_order_gain`: of a copy in another order, which is not
    induction. `fv_score`: best head, `fv_null` the 99th percentile of the best head under other tasks' means (about
    the highest of few draws), `n_fv` heads above it. Accuracies at 10 shots, first token, means over tasks:
    trained tasks with shared labels (clean, with labels shuffled, with the induction heads at zero;
    `prompt_retrieval`: of `retrieval_prompts`). At the `last` step also over all abstractive and extractive tasks,
    trained and unseen. `n_induction`: how many induction heads.
    """
    given = plan["measures"]
    n, seed = given["prompts_last" if last else "prompts"], given["seed"]
    tokens = repeated_random_tokens(model, n_sequences=given["sequences"], seed=seed)
    matching = induction_scores(model, tokens, convention="prefix_matching")
    induction = matching > given["induction_head"]
    edit = Edit(induction, torch.zeros(1, *induction.shape, model.cfg.d_head), positions="all")
    scoring = prompts_of(model, in_split(tasks, "scoring"), n_prompts=n, n_shots=10, seed=seed)
    fv = fv_scores(model, scoring)
    null = best_of_null(permuted_mean_scores(
        model, scoring, fv.mean_z, n_draws=given["null_draws"], seed=seed).numpy())
    wanted = tasks if last else {name: task for name, task in tasks.items() if _shares_labels(task)}
    prompts = prompts_of(model, wanted, n_prompts=n, n_shots=10, seed=seed)
    clean = _accuracies(model, {name: p.clean for name, p in prompts.items()}, {"none": None, "ablated": edit})
    sharing = [name for name, task in wanted.items() if _shares_labels(task)]
    retrieval = {name: retrieval_prompts(tasks[name], n_prompts=n, n_shots=10, bos=model.tokenizer.bos_token, seed=seed)
                 for name in sharing}
    shuffled = _accuracies(model, {name: prompts[name].shuffled for name in sharing}, {"none": None})
    found = {
        "prefix_matching": float(matching.max()), "n_induction": int(induction.sum()),
        "repeat_gain": repeat_gain(token_losses(model, tokens)),
        "repeat_gain_ablated": repeat_gain(token_losses(model, tokens, edit)),
        "any_order_gain": repeat_gain(token_losses(model, reordered_copies(tokens, seed=seed))),
        "fv_score": float(fv.scores.max()), "fv_null": null, "n_fv": int((fv.scores > max(null, 0)).sum()),
        "accuracy": float(clean.loc[sharing, "none"].mean()),
        "accuracy_shuffled": float(shuffled["none"].mean()),
        "accuracy_ablated": float(clean.loc[sharing, "ablated"].mean()),
        "prompt_retrieval": float(_accuracies(model, retrieval, {"none": None})["none"].mean()),
    }
    if last:
        for kind in ("abstractive", "extractive"):
            for name, unseen in (("trained", False), ("unseen", True)):
                of_kind = [t for t, task in tasks.items() if task.type == kind and (task.split == "unseen") == unseen]
                found[f"{name}_{kind}"] = float(clean.loc[of_kind, "none"].mean())
    return found


def repeat_gain(losses: Tensor) -> float:
    """Mean loss of the first run of tokens less that of its copy, in nats; the copy's first token is left out.

    `losses`: `[row, loss]` on BOS, a run of tokens, the same again. What induction is for.
    """
    half = losses.shape[1] // 2
    return float(losses[:, :half].mean() - losses[:, half + 1 :].mean())


def reordered_copies(tokens: Tensor, *, seed: int) -> Tensor:
    """BOS, a run of tokens and the same tokens in another order, `[row, pos]`, from BOS, a run and its copy."""
    half = tokens.shape[1] // 2
    places = torch.rand(len(tokens), half, generator=torch.Generator().manual_seed(seed)).argsort(1)
    return torch.cat([tokens[:, : half + 1], tokens[:, half + 1 :].gather(1, places)], dim=1)


def retrieval_prompts(task: Task, *, n_prompts: int, n_shots: int, bos: str, seed: int) -> list[Prompt]:
    """Prompts with a task's labels dealt to its inputs at random, whose query is one of the inputs shown.

    The answer is the label that was dealt to it: only the prompt gives it, by copying from beside an earlier copy of
    the query, which is induction in the form of prompts. Fewer demonstrations where the task has fewer inputs.
    """
    rng = np.random.default_rng([seed, n_shots, zlib.crc32(task.name.encode())])
    inputs, labels = (sorted(set(words)) for words in zip(*task.training_pairs, strict=True))
    prompts = []
    for _ in range(n_prompts):
        shown = [inputs[i] for i in rng.permutation(len(inputs))[:n_shots]]
        dealt = [labels[i] for i in rng.choice(len(labels), len(shown), replace=len(labels) < len(shown))]
        asked = int(rng.integers(len(shown)))
        prompt = write_prompt(list(zip(shown, dealt, strict=True)), shown[asked], bos)
        prompts.append(Prompt(prompt, f" {dealt[asked]}"))
    return prompts


def carry_out(run: Run, plan: dict[str, Any], folder: Path, work: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train and measure one run: its rows, and the prefix-matching score of every head at the end."""
    config = configuration(run, plan, folder)
    trained = train(run.name, seed=run.seed, models=work, config=config)
    curve = pd.read_csv(trained / "curve.csv").set_index("step")["loss"]
    tasks, rows = read_tasks(), []
    for step in [*config["checkpoints"], config["steps"]]:
        model = load_model(str(trained / f"step{step}"))
        rows.append({"arm": run.arm, "strength": run.strength, "seed": run.seed, "step": step,
                     "loss": float(curve[step]), **measure(model, tasks, plan, last=step == config["steps"])})
    tokens = repeated_random_tokens(model, n_sequences=plan["measures"]["sequences"], seed=plan["measures"]["seed"])
    scores = induction_scores(model, tokens, convention="prefix_matching")
    heads = pd.DataFrame(scores.numpy()).stack().rename_axis(["layer", "head"]).rename("prefix_matching").reset_index()
    heads.insert(0, "seed", run.seed)
    shutil.rmtree(trained)
    return pd.DataFrame(rows), heads


def committed(run: Run, folder: Path) -> pd.DataFrame:
    """The rows of a run in its arm's table, none if it was not run."""
    table = read_rows(folder / f"{run.arm}.csv", KEY)
    return table[(table["strength"] == run.strength) & (table["seed"] == run.seed)]


def repeat(run: Run, plan: dict[str, Any], folder: Path, work: Path) -> list[str]:
    """Train a committed run anew: one line for each measure that differs by more than the plan tolerates."""
    old = committed(run, folder)
    if old.empty:
        raise ValueError(f"arm {run.arm}, strength {run.strength:g}, seed {run.seed} has no rows in {folder}; run "
                         f"`python -m lab.causal {run.arm} --seed {run.seed}` first")
    new, _ = carry_out(run, plan, folder, work / "again")
    shown = pd.DataFrame({"committed": old.iloc[-1], "again": new.iloc[-1]}).drop(index=KEY)
    print(shown.astype(float).round(3).to_string(), flush=True)
    return beyond(plan["measures"]["tolerances"], new, old)


def _shares_labels(task: Task) -> bool:
    return task.split != "unseen" and task_group(task) == "shared labels"


def _accuracies(model, prompts, edits) -> pd.DataFrame:
    """First-token accuracy, task by edit."""
    metrics = answer_metrics(model, prompts, edits)
    return metrics.groupby(["task", "edit"])["first_token_correct"].mean().unstack("edit")


@command
def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("arms", nargs="*", help="default: all of the plan")
    parser.add_argument("--seed", type=int, action="append", help="default: all of the plan")
    parser.add_argument("--strength", type=float, help="default: all of the arm; with --again the first")
    parser.add_argument("--folder", type=Path, default=CAUSAL, help="of plan.yaml and tables, default: lab/causal")
    parser.add_argument("--again", action="store_true", help="train anew and compare with the committed table")
    given = parser.parse_args(arguments)
    disable_progress_bar()
    folder, work, plan = given.folder, WORK / given.folder.name, read_plan(given.folder)
    arms, seeds = given.arms or list(plan["arms"]), given.seed or plan["seeds"]
    for arm in arms:
        refuse_unknown("arm", arm, plan["arms"])
    strengths = {arm: plan["arms"][arm]["strengths"] for arm in arms}
    if given.strength is not None:
        asked = dict.fromkeys(arms, [given.strength])
    else:
        asked = {arm: known[:1] if given.again else known for arm, known in strengths.items()}
    chosen = [run for run in planned(plan) if run.seed in seeds and run.strength in asked.get(run.arm, [])]
    if not chosen:
        raise ValueError(f"no run with seed {given.seed} and strength {given.strength}, expected a seed of "
                         f"{plan['seeds']} and a strength of {strengths}")
    problems = []
    for run in chosen:
        if given.again:
            problems += [f"{run.name} seed {run.seed}: {line}" for line in repeat(run, plan, folder, work)]
            continue
        # several processes may share the work
        with locked(work / f".{run.name}-seed{run.seed}.lock", wait=False) as mine:
            if not mine or len(committed(run, folder)):
                continue
            rows, heads = carry_out(run, plan, folder, work)
            put(folder / f"{run.arm}.csv", rows, KEY)
            if run.arm == "none":
                put(folder / HEADS, heads, ["seed", "layer", "head"])
        print(rows.drop(columns=["arm", "strength"]).round(3).to_string(index=False), flush=True)
    if problems:
        raise ValueError("; ".join(problems))
    if given.again:
        print("agrees with the committed table")


if __name__ == "__main__":
    sys.exit(main())
