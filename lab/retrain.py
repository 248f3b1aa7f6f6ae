"""Train a lab model, or a committed one again: `python -m lab.retrain RUNG [--seed K]`, `make lab RUNG=...`.

A model that is not there yet is trained into `lab/models`. A committed one is trained again under `results/retrained`
and compared: weights per checkpoint, then accuracies on the same fresh prompts, which must agree within 0.05.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file
from transformers.utils.logging import disable_progress_bar

from icl_lib.models.locate import steps_of
from lab.check import beyond, measure
from lab.files import last_checkpoint
from lab.train import train
from workflow import command

AGAIN = Path("results/retrained")
TOLERANCES = dict.fromkeys(("0 shots", "1 shot", "10 shots", "unseen tasks"), 0.05)


def largest_differences(committed: Path, again: Path) -> pd.Series:
    """Per step the largest difference of any weight between two folders of checkpoints; index: step."""
    differences = {}
    for step in steps_of(committed):
        one, other = (load_file(folder / f"step{step}" / "model.safetensors") for folder in (committed, again))
        differences[step] = max(float((one[name].float() - other[name].float()).abs().max()) for name in one)
    return pd.Series(differences, name="largest difference of a weight").rename_axis("step")


def compare(committed: Path, again: Path, *, n_prompts: int) -> tuple[pd.DataFrame, list[str]]:
    """Measures of two checkpoints, the committed one and that trained again, and a line per accuracy that differs."""
    found = {name: measure(str(checkpoint), n_prompts=n_prompts, seed=1)
             for name, checkpoint in (("committed", committed), ("trained again", again))}
    table = pd.DataFrame(found).T
    return table, beyond(TOLERANCES, table.loc[["trained again"]], table.loc[["committed"]])


@command
def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("rung")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompts", type=int, default=20, help="per task, for the comparison")
    given = parser.parse_args(arguments)
    disable_progress_bar()
    rung, seed = given.rung, given.seed
    committed, again = last_checkpoint(rung, seed), last_checkpoint(rung, seed, AGAIN)
    if not committed.is_dir():
        print(f"checkpoints: {train(rung, seed=seed)}")
        return
    if not again.is_dir():
        train(rung, seed=seed, models=AGAIN)
    differences = largest_differences(committed.parent, again.parent)
    print(f"{int((differences == 0).sum())} of {len(differences)} checkpoints are equal bit for bit "
          f"({torch.get_num_threads()} thread(s)); largest difference of a weight {differences.max():.3g}")
    table, off = compare(committed, again, n_prompts=given.prompts)
    print(table.round(3).to_string())
    if off:
        raise ValueError("; ".join(off))
    print("accuracies agree")


if __name__ == "__main__":
    sys.exit(main())
