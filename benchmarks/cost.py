"""What a suite costs before it runs: `python -m benchmarks.cost config/paper.yaml [--table FILE]`.

Counts plain forward passes over the tokens that each notebook reads, from its parameters; what all heads' FV scores and
a grid of ablations cost in such passes was measured (`make bench`: book/fv_scores.csv, book/ablation_grid.csv). Hours
are operations, two for each parameter and token, over the rate of this machine's kind: that of one CPU thread was
measured, that of a GPU is what TFLOPS says, an assumption.
"""

import argparse
import json
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from icl_lib.data.sources import read_tasks, tasks_for
from icl_lib.data.upstream import EVALUATION_TASKS, SCORING_TASKS
from icl_lib.files import whole
from icl_lib.models.locate import locate
from icl_lib.models.paper_models import GIB, PaperModel, family, paper_models
from workflow import command
from workflow.notebooks import OF_STEP, Run
from workflow.suite import TEMPLATES, Suite, read_suite
from workflow.templates import template_parameters

MEASURED = Path(__file__).resolve().parent.parent / "book"
# Mean lengths with the GPT-2 tokenizer: a 10-shot prompt of the scoring and the evaluation tasks, documents.
TOKENS = {"scoring": 174, "evaluation": 235, "documents": 512}
N_PATTERNS = 6
GPU_TFLOPS = 50.0  # assumed in bfloat16, about a sixth of what current data-centre cards promise


def run_cost(notebook: str, model: PaperModel, given: dict[str, Any]) -> np.ndarray:
    """Forward passes of one run of a notebook, and the tokens they read; `given` over its parameters' defaults."""
    p = {name: parameter.default for name, parameter in template_parameters(TEMPLATES / f"{notebook}.ipynb").items()}
    p |= given
    upstream = tasks_for(model.id, p["task_files"]).startswith("upstream")
    n_scoring = (len(SCORING_TASKS) if upstream else _lab_tasks("scoring")) * p["n_prompts"]
    n_evaluation = (len(EVALUATION_TASKS) if upstream else _lab_tasks("evaluation")) * p["n_prompts"]
    if notebook == "example":  # the means; one prompt's passes are nothing beside them
        return _cost(n_scoring, TOKENS["scoring"])
    if notebook == "task_execution":
        return _cost((6 + p["n_draws"]) * (n_scoring + n_evaluation), TOKENS["evaluation"])
    if notebook == "ablation":
        return _ablation_cost(p, n_scoring, n_evaluation)
    if notebook == "patterns":
        return _patterns_cost(p, n_scoring // p["n_prompts"], n_evaluation // p["n_prompts"])
    n_tokens = TOKENS["scoring"] * p["n_shots"] / 10
    scoring = _cost(n_scoring * fv_ratio(model), n_tokens)
    if notebook == "protocols":
        return 5 * scoring + _cost(8 * p["n_sequences"] * p["n_seeds"], 101)
    accuracy = [_cost((1 + (n > 1)) * (n_scoring + n_evaluation), 20 * n + 15) for n in p["shots"]]
    # draws share the pass over the prompts and repeat what follows the replaced heads
    nulls = _cost(n_scoring * (1 + (fv_ratio(model) - 2) * p["n_null_draws"]), n_tokens)
    return (sum(accuracy) + scoring + nulls + _cost(4 * p["n_sequences"], 2 * p["sequence_length"] + 1)
            + _cost(p["n_documents"], TOKENS["documents"]))


def _ablation_cost(p: dict[str, Any], n_scoring: int, n_evaluation: int) -> np.ndarray:
    grid, every = len(p["grid_fractions"]) or len(p["fractions"]), len(p["fractions"])
    per = 4 + 5 * p["n_draws"]  # conditions of a fraction: four sets, each with matched draws, and random heads
    shares = grid_shares()
    conditions = sum(shares[where] * (1 + per * (every if i == 0 else grid))
                     for i, _ in enumerate(p["replacements"]) for where in p["positions"])
    historic = 2 * shares["last"] * (1 + 7 * (4 + p["n_draws"]))
    few = shares["all"] * (1 + every * (4 + 5 * min(5, p["n_draws"])))
    return (_cost(n_evaluation * (conditions + historic), TOKENS["evaluation"]) + _cost(n_evaluation * few, 15)
            + _cost(p["n_documents"] * (conditions + historic * shares["all"] / shares["last"]), TOKENS["documents"])
            + _cost(n_scoring, TOKENS["scoring"]))


def _patterns_cost(p: dict[str, Any], scoring_tasks: int, evaluation_tasks: int) -> np.ndarray:
    """As if the model could do every pattern: four sets, their matched draws and two kinds of random heads a share."""
    of_patterns, every = N_PATTERNS * p["n_seeds"], grid_shares()["all"]
    total = _cost(scoring_tasks * p["n_prompts_mean"], TOKENS["scoring"])
    for n in p["shots"]:
        rankings = [len(p["fractions"])] + [1] * (n == max(p["shots"]))
        ablated = every * sum(1 + 10 * n_shares for n_shares in rankings)
        total = total + _cost(of_patterns * (p["n_check"] + p["n_prompts"] * ablated), 8 * n + 20)
        total = total + _cost(evaluation_tasks * p["n_prompts_paper"] * ablated, 20 * n + 15)
    return total


def _cost(passes: float, tokens: float) -> np.ndarray:
    return np.array([passes, passes * tokens])


@cache
def _lab_tasks(split: str) -> int:
    return sum(task.split == split for task in read_tasks("lab").values())


@cache
def _measured(table: str) -> pd.DataFrame:
    return pd.read_csv(MEASURED / f"{table}.csv").set_index(["shape", "method"])


def grid_shares() -> dict[str, float]:
    """A condition of a grid in plain passes, heads replaced at `all` positions and at the `last`: Pythia 70M's 40."""
    passes = _measured("ablation_grid").loc["pythia-70m", "forward equivalents"]
    return {where: float(passes[f"40 conditions, {name}"]) / 40
            for where, name in (("all", "all positions"), ("last", "last position"))}


def multiplications(width: int, vocabulary: int, n_tokens: int, *, per_token: int, attended: int) -> tuple[int, ...]:
    """Of one layer on a prompt, of one layer on one last position beside it, and of the logits of one position.

    `per_token`: a layer's weights; `attended`: the width of all heads side by side. Attention counts pairs of
    positions, causal.
    """
    return (n_tokens * per_token + n_tokens**2 * attended, per_token + 2 * n_tokens * attended, width * vocabulary)


def operations(
    layers: int, heads: int, width: int, vocabulary: int, n_tokens: int, *, per_token: int = 0, attended: int = 0
) -> tuple[int, int]:
    """Multiplications of one plain forward pass with logits at its last token, and of scoring one prompt.

    Scoring includes the clean pass for the means. See `multiplications`; a layer is by default that of GPT-NeoX.
    """
    layer, row, unembed = multiplications(
        width, vocabulary, n_tokens, per_token=per_token or 12 * width**2, attended=attended or width)
    rows = heads * sum(range(1, layers + 1)) * row
    return layers * layer + unembed, 2 * layers * layer + rows + (layers * heads + 1) * unembed


def fv_ratio(model: PaperModel) -> float:
    """FV scores of all heads in plain passes over the same prompts: the operations, times what they took above that."""
    plain, scoring = operations(model.layers, model.heads, model.d_model, model.vocab, TOKENS["scoring"],
                                per_token=4 * model.d_model**2 + 2 * model.d_model * model.d_mlp)
    over = _measured("fv_scores")["ratio to FLOP limit"][[
        ("pythia-160m", "fv_scores"), ("pythia-410m", "fv_scores")]].mean()
    logits = 2 * model.d_model * model.vocab  # of the two passes over the prompt, here plain ones
    return float((scoring + logits) / plain * max(1.0, over))


def cpu_flops() -> float:
    """Operations a second of one CPU thread: Pythia 410M's plain pass in the measured table."""
    model = paper_models()["EleutherAI/pythia-410m-deduped"]
    seconds = _measured("fv_scores").loc[("pythia-410m", "plain forward pass"), "seconds"]
    return 2 * (model.parameters - model.vocab * model.d_model) * 4 * TOKENS["scoring"] / seconds


def shape_of(name: str) -> PaperModel | None:
    """The shape of a model: the table's, or that of a folder's configuration; None for another model of the hub."""
    if name in paper_models():
        return paper_models()[name]
    if name.startswith("EleutherAI/pythia-"):  # a further seed has the shape of its size
        return paper_models().get(f"EleutherAI/pythia-{name.split('-')[1]}-deduped")
    source, revision = locate(name)
    if revision is not None or not Path(source, "config.json").is_file():
        return None
    c = json.loads(Path(source, "config.json").read_text(encoding="utf-8"))
    layers = c.get("num_hidden_layers") or c["n_layer"]
    heads, width = c.get("num_attention_heads") or c["n_head"], c.get("hidden_size") or c["n_embd"]
    d_mlp = c.get("intermediate_size") or c.get("n_inner") or 4 * width
    parameters = layers * (4 * width**2 + 2 * width * d_mlp) + 2 * c["vocab_size"] * width
    return PaperModel(name, layers, heads, c.get("num_key_value_heads") or heads, width, d_mlp, c["vocab_size"],
                      parameters)


def suite_costs(suite: Suite, *, flops: float) -> pd.DataFrame:
    """One row per model: runs of all notebooks and those not yet done, passes, hours, disk and memory in GiB."""
    rows = []
    for name, steps in suite.steps.items():
        model, runs = shape_of(name), [run for run in suite.runs if run.model == name and run.step is not None]
        left = [run for run in runs if not Path(suite.results, run.executed).is_file()]
        row = {"model": name, "runs": len(runs), "done": len(runs) - len(left), "passes": None, "hours": None,
               "disk_gib": 0.0, "weights_gib": None, "memory_gib": None}
        if model:
            passes, tokens = sum((run_cost(run.notebook, model, suite.given(run)) for run in left), np.zeros(2))
            # Pythia's files are float16, GPT-2's float32
            stored = {"gpt2": "float32", "pythia": "float16"}.get(family(model.id), "bfloat16")
            row |= {"passes": round(passes), "hours": tokens * 2 * model.parameters / flops / 3600,
                    "disk_gib": len(set(steps)) * model.weights_gib(stored) if of_hub(name) else 0.0,
                    "weights_gib": model.weights_gib(), "memory_gib": model.memory_gib()}
        rows.append(row)
    return pd.DataFrame(rows)


def of_hub(name: str) -> bool:
    """Whether a model's weights have to be downloaded."""
    return not Path(locate(name)[0]).is_dir()


def resources(suite: Suite, run: Run) -> dict[str, int]:
    """What a cluster has to give one run: GPUs, memory in MB, minutes (three times the estimate, an hour at least)."""
    model = paper_models().get(run.model)
    if model is None or run.notebook not in OF_STEP:  # pages read tables
        return {"gpu": 0, "mem_mb": 4000, "runtime": 120}
    hours = run_cost(run.notebook, model, suite.given(run))[1] * 2 * model.parameters / (GPU_TFLOPS * 1e12) / 3600
    memory = 1.5 * model.weights_gib() * GIB / 1e6 + 4000
    return {"gpu": 1, "mem_mb": round(memory), "runtime": 60 + round(3 * 60 * hours)}


def summary(table: pd.DataFrame, rate: str) -> str:
    """The plan in a few lines."""
    (total, done), unknown = table[["runs", "done"]].sum(), table[table["passes"].isna()]["model"].tolist()
    lines = [f"{total} notebook runs on models, {done} done, {total - done} to go: about {table['passes'].sum():,.0f} "
             f"forward passes, {table['hours'].sum():,.1f} h {rate}"]
    if table["disk_gib"].sum():
        lines.append(f"downloads {table['disk_gib'].sum():,.0f} GiB; largest model {table['memory_gib'].max():.1f} GiB")
    if unknown:
        lines.append(f"not counted, for their shapes are not known before they are loaded: {', '.join(unknown)}")
    return "\n".join(lines)


@command
def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description="What a suite costs before it runs.")
    parser.add_argument("suite", type=Path)
    parser.add_argument("--table", type=Path, help="CSV file for the costs by model")
    given = parser.parse_args(arguments)
    suite = read_suite(given.suite)
    tflops = float(os.environ.get("TFLOPS") or (GPU_TFLOPS if any(map(of_hub, suite.steps)) else 0))
    table = suite_costs(suite, flops=tflops * 1e12 or cpu_flops())
    print(summary(table, f"at {tflops:g} TFLOP/s, which is an assumption (TFLOPS=...)" if tflops
                  else "on one CPU thread as measured"))
    if given.table:
        with whole(given.table) as temporary:
            table.drop(columns="done").round(dict.fromkeys(table.columns[4:], 1)).to_csv(temporary, index=False)


if __name__ == "__main__":
    sys.exit(main())
