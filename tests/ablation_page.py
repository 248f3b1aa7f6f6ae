"""A made-up model's tables for the ablation page, with the values per prompt that they were made from."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from icl_lib.ablation.conditions import ablation_conditions, at_fractions
from icl_lib.ablation.effects import effects_table
from icl_lib.ablation.protocols import PROTOCOLS, protocol_conditions
from icl_lib.ablation.table import Measurement, ablation_table, zero_shot
from icl_lib.provenance import provenance
from icl_lib.tables import run_path, write_table

LAYERS, HEADS, TASKS, PROMPTS, DOCUMENTS = 4, 8, 6, 5, 12
MODEL, STEP = "lab-40k", 8192
GIVEN = {
    "model": MODEL, "step": STEP, "seed": 0, "n_prompts": PROMPTS, "n_shots": 4, "task_files": "lab",
    "documents": "lab", "n_documents": DOCUMENTS, "loss_window": 2, "fractions": [0.1, 0.2], "grid_fractions": [0.1],
    "n_draws": 3, "exclude_fraction": 0.1, "replacements": ["mean", "zero"], "positions": ["all", "last"],
    "fractions_all": [], "loss_fractions": [], "n_prompts_all": 0, "n_curve_documents": 8, "spread_draws": False,
    "protocols": ["paper", "released"],
}
MADE_BY = provenance(suite="made up", seed=0, dtype="", device="", bos="", parameters=GIVEN)


class Made(NamedTuple):
    """What was made up: scores, conditions with their heads, measurements, and the two tables of them."""

    scores: pd.DataFrame
    conditions: list
    historic: dict
    measured: list[Measurement]
    ablations: pd.DataFrame
    effects: pd.DataFrame


def made_up(n_induction=4, n_fv=3, nats=2.0, seed=0) -> Made:
    """Ablating FV heads lowers accuracy most, induction heads the token-loss difference, which is `nats` unablated."""
    rng = np.random.default_rng(seed)
    scores, of_kind = _scores(rng, n_induction, n_fv)
    options = {"n_draws": GIVEN["n_draws"], "seed": 0}
    conditions = ablation_conditions(
        scores, fractions=GIVEN["fractions"], exclude_fraction=GIVEN["exclude_fraction"], lowest=True, **options)
    historic = {name: protocol_conditions(name, scores, **options) for name in GIVEN["protocols"]}
    some = {"mean": conditions, "zero": at_fractions(conditions, GIVEN["grid_fractions"])}
    measured = [_measured(rng, metric, replacement, positions, some[replacement], of_kind, nats)
                for replacement in GIVEN["replacements"] for positions in GIVEN["positions"]
                for metric in ("first_token_accuracy", "token_loss_difference", "token_loss_difference_points")]
    measured += zero_shot([_measured(rng, "first_token_accuracy", "mean", "all", conditions, of_kind, nats, 0.4)])
    for name, own in historic.items():
        p = PROTOCOLS[name]
        measured += [_measured(rng, p.metric, *p.few_shot, own, of_kind, nats),
                     _measured(rng, p.loss_metric, *p.token_loss, own, of_kind, nats)]
    ceilings = pd.DataFrame({"task": [f"task {i}" for i in range(TASKS)], "value": 0.95, "n_prompts": PROMPTS}).assign(
        metric="f1_ceiling", replacement="none", positions="none", ranking="none", excluded="", matched="",
        fraction=0.0, n_heads=0, draw=0, standard_error=np.nan)
    ablations = ablation_table(measured, name=MODEL, step=STEP, ceilings=ceilings)
    return Made(scores, conditions, historic, measured, ablations,
                effects_table(measured, name=MODEL, step=STEP))


def write_page(folder, made: Made) -> dict:
    """Write the tables that the page reads; the page's parameters."""
    tasks = pd.DataFrame({"task": [f"task {i}" for i in range(TASKS)], "task_type": "abstractive", "group": "look-up",
                          "split": "evaluation", "floor": 0.1, "n_pairs": 9, "faults": ""})
    curves = pd.DataFrame({"ranking": ["none", "fv"], "matched": "", "fraction": [0.0, 0.1], "position": 9.0,
                           "value": [3.0, 3.5], "standard_error": 0.1, "n_prompts": GIVEN["n_curve_documents"]})
    tables = {"scores": made.scores, "tasks": tasks, "ablations": made.ablations, "effects": made.effects,
              "curves": curves}
    for kind, rows in tables.items():
        path = run_path(folder, kind, MODEL, STEP)
        write_table(rows.assign(model=MODEL, step=STEP), path, schema_name=kind, provenance=MADE_BY)
    return GIVEN | {"suite": "made up", "results": str(folder)}


def _scores(rng, n_induction, n_fv):
    """The table scores and the masks of both kinds, which share one head where there are both."""
    order = rng.permutation(LAYERS * HEADS)
    kinds = np.zeros((2, LAYERS * HEADS))
    kinds[0, order[:n_induction]] = 1
    kinds[1, order[max(0, n_induction - 1):][:n_fv]] = 1
    grid = pd.MultiIndex.from_product([range(LAYERS), range(HEADS)], names=["layer", "head"]).to_frame(index=False)
    mass = rng.uniform(0, 0.05, LAYERS * HEADS) + 0.4 * kinds[0]
    rows = [("induction_attention_mass", "", mass), ("induction_prefix_matching", "", 2 * mass)]
    rows += [("fv", f"task {i}", rng.normal(0, 0.003, mass.shape) + 0.05 * kinds[1]) for i in range(TASKS)]
    rows += [("fv_null", f"draw {i}", rng.normal(0, 0.002, mass.shape)) for i in range(5)]
    frames = [grid.assign(score=score, task=task, value=values) for score, task, values in rows]
    table = pd.concat(frames, ignore_index=True).assign(standard_error=0.001, n_prompts=PROMPTS)
    return table.assign(model=MODEL, step=STEP), kinds.reshape(2, LAYERS, HEADS).astype(bool)


def _measured(rng, metric, replacement, positions, conditions, of_kind, nats, clean=0.9) -> Measurement:
    heads = np.stack([c.heads for c in conditions])
    induction, fv = ((heads & mask).sum((1, 2)) / max(1, mask.sum()) for mask in of_kind)
    size = heads.sum((1, 2)) / (LAYERS * HEADS)
    if "loss" in metric:
        tasks, noise = np.full(DOCUMENTS, "documents"), rng.normal(0, 0.5, DOCUMENTS)
        values = (nats - 0.2 * fv - 1.1 * induction - size)[:, None] + noise + rng.normal(
            0, 0.1, (len(conditions), DOCUMENTS))
    else:
        tasks = np.repeat([f"task {i}" for i in range(TASKS)], PROMPTS)
        right = clean - 0.5 * fv - 0.2 * induction - 0.5 * size
        values = (rng.uniform(size=(len(conditions), len(tasks))) < right[:, None]).astype(float)
    return Measurement(metric, replacement, positions, conditions, tasks, values)
