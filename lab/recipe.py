"""What each part of a size's recipe does: `python -m lab.recipe [ARM ...] [--rung SIZE] [--seed K]`.

Trains the size once per arm of `recipe.yaml`, one change at a time, measures it as `lab.check` does and puts a row
per arm and seed into `recipe.csv`. The arm without a change is the committed model where there is one. Trained models
are kept until their row is written; finished rows are not repeated.
"""

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from transformers.utils.logging import disable_progress_bar

from icl_lib.names import refuse_unknown
from lab.check import measure
from lab.files import ARMS, MODELS, TRIALS, changed, put, read_rows, read_rung
from lab.train import train
from workflow import command

WORK = Path("results/recipe")
KEY = ["rung", "arm", "seed"]


def run_arm(arm: str, change: dict[str, Any], *, rung: str, seed: int, n_prompts: int) -> dict[str, Any]:
    """Train and measure one arm; the row of the table."""
    config = changed(read_rung(rung), change)
    last = f"step{config['steps']}"
    folder = MODELS / rung / f"seed{seed}"
    if change or not (folder / last).is_dir():
        folder = train(arm.replace(" ", "-"), seed=seed, models=WORK / rung, config=config)
    loss = pd.read_csv(folder / "curve.csv")["loss"].iloc[-1]
    found = measure(str(folder / last), n_prompts=n_prompts, seed=1)
    return {"rung": rung, "arm": arm, "seed": seed, "loss": loss, **found}


@command
def main(given: list[str]) -> None:
    recipes = yaml.safe_load(ARMS.read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("arms", nargs="*", help="default: all of the size's in recipe.yaml")
    parser.add_argument("--rung", choices=recipes, default="lab-40k", help="size (default: lab-40k)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches")
    parser.add_argument("--prompts", type=int, default=20, help="per task")
    arguments = parser.parse_args(given)
    disable_progress_bar()
    rung, seed, arms = arguments.rung, arguments.seed, recipes[arguments.rung]
    for arm in arguments.arms:
        refuse_unknown(f"arm of {rung}", arm, arms)
    for arm in arguments.arms or arms:
        done = read_rows(TRIALS, KEY)
        if (done[KEY] == [rung, arm, seed]).all(axis=1).any():
            continue
        row = run_arm(arm, arms[arm], rung=rung, seed=seed, n_prompts=arguments.prompts)
        order = dict.fromkeys(name for trials in recipes.values() for name in trials)
        table = put(TRIALS, pd.DataFrame([row]), KEY, digits=4, arms=order)
        shutil.rmtree(WORK / rung / arm.replace(" ", "-"), ignore_errors=True)
        print(table[(table["rung"] == rung) & (table["arm"] == arm)].round(3).to_string(index=False))


if __name__ == "__main__":
    sys.exit(main())
