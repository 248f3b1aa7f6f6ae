"""Tables of a made-up suite whose models have both kinds of heads, one, none, or no heads left for a control."""

import numpy as np
import pandas as pd
from safetensors import safe_open

from icl_lib.ablation import two_papers
from icl_lib.ablation.conditions import ablation_conditions
from icl_lib.ablation.effects import effects_table
from icl_lib.ablation.table import Measurement, ablation_table, zero_shot
from icl_lib.provenance import provenance
from icl_lib.tables import write_table
from tests.project import ROOT

LAYERS, HEADS, TASKS, PROMPTS, DOCUMENTS = 4, 8, 6, 5, 10
# Model to its steps; the lab's names, as sizes are read from their configurations. The last step is ablated.
MODELS = {
    "lab-7k": [8192], "lab-20k": [8192], "lab-40k": [1024, 2048, 4096, 8192], "lab-40k-seed1": [1024, 2048, 4096, 8192],
    "lab-110k": [1024, 2048, 8192], "lab-450k": [4096], "lab-1m": [4096],
}
BARE = "lab-450k"  # all but two of its heads are induction heads
COUNTS = {"lab-7k": (0, 0), "lab-20k": (3, 0), BARE: (30, 3)}  # induction and FV heads, of others (4, 3)
ABLE = {"lab-40k": 3, "lab-110k": 0}  # models measured on patterns, and how many they can do
MADE_BY = provenance(suite="made up", seed=0, dtype="", device="", bos="", parameters={})
SHARES = {"top_fraction": 0.15, "overlap_fraction": 0.1, "ablated_fraction": 0.1}  # given to the pages
LAST = {model: steps[-1:] for model, steps in MODELS.items()}


def made_up_suite(folder):
    """Write the tables scores, accuracy, ablations, effects and executions of all models under a folder."""
    for place, (model, steps) in enumerate(MODELS.items()):
        rng = np.random.default_rng(place)
        heads = _planted(rng, *COUNTS.get(model, (4, 3)))
        for step in steps:
            came = [step >= at for at in (steps[:2][-1], steps[-1])]
            scores = _scores(rng, [mask & there for mask, there in zip(heads, came, strict=True)])
            _write(folder, "scores", model, step, scores)
            _write(folder, "accuracy", model, step, _accuracy(rng, reads=came[1] and heads[1].any()))
        conditions = ablation_conditions(
            scores.assign(model=model), fractions=[0.1], n_draws=3, exclude_fraction=0.1, seed=0)
        measured = _measured(rng, conditions, heads)
        _write(folder, "ablations", model, steps[-1], ablation_table(measured, name=model, step=0))
        few = [m for m in measured if m.metric != "zero_shot_accuracy"]
        _write(folder, "effects", model, steps[-1], effects_table(few, name=model, step=0))
        _write(folder, "executions", model, steps[-1], _executions(rng))
        if model in ABLE:
            named = scores.assign(model=model)
            for kind, table in zip(("patterns", "pattern_effects"), _patterns(rng, named, ABLE[model]), strict=True):
                _write(folder, kind, model, steps[-1], table)


def _write(folder, kind, model, step, rows):
    write_table(rows.assign(model=model, step=step), folder / kind / model / f"step{step}.parquet", schema_name=kind,
                provenance=MADE_BY)


def _planted(rng, n_induction, n_fv):
    """Masks of induction and FV heads; they share one head where there are both."""
    order = rng.permutation(LAYERS * HEADS)
    masks = np.zeros((2, LAYERS * HEADS), dtype=bool)
    masks[0, order[:n_induction]] = True
    masks[1, order[max(0, n_induction - 1):][:n_fv]] = True
    return masks.reshape(2, LAYERS, HEADS)


def _scores(rng, heads):
    grid = pd.MultiIndex.from_product([range(LAYERS), range(HEADS)], names=["layer", "head"]).to_frame(index=False)
    frames = []

    def add(score, task, values):
        frames.append(grid.assign(score=score, task=task, value=values.ravel()))

    mass = rng.uniform(0, 0.05, (LAYERS, HEADS)) + 0.4 * heads[0]
    add("induction_attention_mass", "", mass)
    add("induction_prefix_matching", "", 2 * mass + rng.uniform(0, 0.02, mass.shape))
    for score in ("previous_token", "duplicate_token"):
        add(score, "", rng.uniform(0, 1, mass.shape))
    for task in range(TASKS):
        add("fv", f"task {task}", rng.normal(0, 0.003, mass.shape) + 0.05 * heads[1] * rng.uniform(0.5, 1.5))
    for draw in range(5):
        add("fv_null", f"draw {draw}", rng.normal(0, 0.003, mass.shape))
    return pd.concat(frames, ignore_index=True).assign(standard_error=0.001, n_prompts=PROMPTS)


def _accuracy(rng, reads):
    rows = [{"n_shots": shots, "labels": labels, "task": f"task {task}", "task_type": "abstractive", "split": "scoring",
             "metric": "first_token_accuracy",
             "value": rng.uniform(0.6, 0.9) - 0.4 * (labels == "shuffled" and reads) - 0.3 * (shots == 0)}
            for shots, labels in ((0, "clean"), (10, "clean"), (10, "shuffled")) for task in range(TASKS)]
    return pd.DataFrame(rows).assign(standard_error=0.1, n_prompts=PROMPTS)


def _measured(rng, conditions, heads):
    """Accuracy falls with the FV heads in a set, token loss with its induction heads, all a little with any head."""
    share = [np.array([(c.heads & mask).sum() / max(1, mask.sum()) for c in conditions]) for mask in heads]
    size = np.array([int(c.heads.sum()) for c in conditions]) / (LAYERS * HEADS)
    tasks = np.repeat([f"unseen {task}" for task in range(TASKS)], PROMPTS)
    right = 0.9 - 0.5 * share[1] - 0.2 * share[0] - 0.5 * size
    answered = (rng.uniform(size=len(tasks)) < right[:, None]).astype(float)
    without = (rng.uniform(size=len(tasks)) < (0.4 - 0.2 * size - 0.2 * share[1])[:, None]).astype(float)
    nats = (1.2 - 0.2 * share[1] - 0.6 * share[0] - size)[:, None] + rng.normal(0, 0.2, (len(conditions), DOCUMENTS))
    at_last = (rng.spawn(1)[0].uniform(size=len(tasks)) < right[:, None] + 0.1).astype(float)
    of = {("first_token_accuracy", "all"): (tasks, answered), ("first_token_accuracy", "last"): (tasks, at_last),
          ("token_loss_difference", "all"): (np.full(DOCUMENTS, "documents"), nats)}
    found = [Measurement(metric, "mean", positions, conditions, *values) for (metric, positions), values in of.items()]
    return found + zero_shot([Measurement("first_token_accuracy", "mean", "all", conditions, tasks, without)])


def _patterns(rng, scores, n_able):
    """Patterns and the paper's tasks with heads ablated, numbers at random, more right with demonstrations."""
    conditions = two_papers.conditions_of_both(scores, fractions=[0.1, 0.2], n_draws=3, exclude_fraction=0.1, seed=0)
    measured = []
    for task_set, n_tasks in (("patterns", n_able), ("paper", TASKS)):
        tasks = np.repeat([f"{task_set} {task}" for task in range(n_tasks)], PROMPTS)
        for n_shots in (10, 0):
            of = {"task_set": task_set, "n_shots": n_shots}
            if task_set == "patterns":
                checked = np.repeat([f"patterns {task}" for task in range(TASKS)], 2 * PROMPTS)
                right = (rng.uniform(size=(1, len(checked))) < 0.6).astype(float)
                clean = conditions[two_papers.THEIRS][:1]
                measured.append((of | {"ranked_by": ""}, Measurement(
                    "label_accuracy", "zero", "all", clean, checked, right)))
            rankings = list(conditions)[: 2 if n_shots else 1] if n_tasks else []
            for ranked_by, own in ((name, conditions[name]) for name in rankings):
                size = np.array([int(c.heads.sum()) for c in own]) / (LAYERS * HEADS)
                right = rng.uniform(size=(len(own), len(tasks))) < (0.3 + 0.5 * (n_shots > 0) - size)[:, None]
                measured.append((of | {"ranked_by": ranked_by}, Measurement(
                    two_papers.METRICS[task_set], "mean", "all", own, tasks, right.astype(float))))
    return two_papers.pattern_tables(measured, name="", step=0)


def _executions(rng):
    rows = [{"preset": "task", "prompts": "shuffled", "heads": heads, "layer": layer, "draw": draw, "items": "all",
             "task": f"unseen {task}", "value": rng.uniform(0, 0.3) + 0.5 * (heads == "fv" and layer == 1)}
            for heads, n_draws in (("none", 1), ("fv", 1), ("random_layer_matched", 2)) for draw in range(n_draws)
            for layer in ([-1] if heads == "none" else range(LAYERS)) for task in range(TASKS)]
    return pd.DataFrame(rows).assign(standard_error=0.1, n_prompts=PROMPTS)


def parameters_by_model():
    """Parameters without embeddings, counted from the weights' shapes as the files have them."""
    found = {}
    for model, steps in MODELS.items():
        name, _, seed = model.partition("-seed")
        with safe_open(ROOT / f"lab/models/{name}/seed{seed or 0}/step{steps[-1]}/model.safetensors", "pt") as file:
            found[model] = sum(int(np.prod(file.get_slice(key).get_shape())) for key in file.keys()
                               if "embed" not in key)
    return found
