"""What each part of the recipe does: `python -m lab.recipe [ARM ...] [--seed K]`.

Trains the rung of `recipe.yaml` once per arm, one change at a time, measures it as `lab.check` does and puts a row
per arm and seed into `recipe.csv`. The arm without a change is the committed model where there is one. Trained models
are kept until their row is written; finished rows are not repeated.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from transformers.utils.logging import disable_progress_bar

from lab.check import measure
from lab.files import ARMS, MODELS, TRIALS, changed, put, read_rows, read_rung
from lab.train import train

WORK = Path("results/recipe")


def run_arm(arm: str, change: dict[str, Any], *, rung: str, seed: int, n_prompts: int) -> dict[str, Any]:
    """Train and measure one arm; the row of the table."""
    config = changed(read_rung(rung), change)
    last = f"step{config['steps']}"
    folder = MODELS / rung / f"seed{seed}"
    if change or not (folder / last).is_dir():
        folder = WORK / arm.replace(" ", "-") / f"seed{seed}"
        if not (folder / last).is_dir():
            train(arm.replace(" ", "-"), seed=seed, models=WORK, config=config)
    loss = pd.read_csv(folder / "curve.csv")["loss"].iloc[-1]
    found = measure(str(folder / last), n_prompts=n_prompts, seed=1)
    return {"arm": arm, "seed": seed, "rung": rung, "loss": loss, **found}


def main() -> None:
    plan = yaml.safe_load(ARMS.read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("arms", nargs="*", default=list(plan["arms"]), help="default: all of recipe.yaml")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches")
    parser.add_argument("--prompts", type=int, default=20, help="per task")
    arguments = parser.parse_args()
    disable_progress_bar()
    unknown = [arm for arm in arguments.arms if arm not in plan["arms"]]
    if unknown:
        raise SystemExit(f"error: unknown arm {unknown[0]!r}; known: {', '.join(plan['arms'])}")
    for arm in arguments.arms:
        done = read_rows(TRIALS, ["arm", "seed"])
        if ((done["arm"] == arm) & (done["seed"] == arguments.seed)).any():
            continue
        row = run_arm(arm, plan["arms"][arm], rung=plan["rung"], seed=arguments.seed, n_prompts=arguments.prompts)
        table = put(TRIALS, pd.DataFrame([row]), ["arm", "seed"], digits=4, arms=plan["arms"])
        shutil.rmtree(WORK / arm.replace(" ", "-"), ignore_errors=True)
        print(table[table["arm"] == arm].round(3).to_string(index=False))


if __name__ == "__main__":
    main()
