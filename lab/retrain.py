"""Train a lab model, or a committed one again: `python -m lab.retrain RUNG [--seed K]`, `make lab RUNG=...`.

A model that is not there yet is trained into `lab/models`. A committed one is trained again under `results/retrained`
and compared: weights per checkpoint, then accuracies on the same fresh prompts, which must agree within 0.05.
"""

import argparse
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file
from transformers.utils.logging import disable_progress_bar

from icl_lib.models.locate import steps_of
from lab.check import measure
from lab.files import MODELS, read_rung
from lab.train import train

AGAIN = Path("results/retrained")
TOLERANCE = 0.05  # of an accuracy
ACCURACIES = ("0 shots", "1 shot", "10 shots", "unseen tasks")


def largest_differences(committed: Path, again: Path) -> pd.Series:
    """Per step the largest difference of any weight between two folders of checkpoints; index: step."""
    differences = {}
    for step in steps_of(committed):
        one, other = (load_file(folder / f"step{step}" / "model.safetensors") for folder in (committed, again))
        differences[step] = max(float((one[name].float() - other[name].float()).abs().max()) for name in one)
    return pd.Series(differences, name="largest difference of a weight").rename_axis("step")


def compare(rung: str, seed: int, again: Path, *, n_prompts: int) -> tuple[pd.DataFrame, list[str]]:
    """Measures of the committed model and of the one trained again, and one line per accuracy that differs."""
    last = f"step{read_rung(rung)['steps']}"
    found = {name: measure(str(folder / last), n_prompts=n_prompts, seed=1)
             for name, folder in (("committed", MODELS / rung / f"seed{seed}"), ("trained again", again))}
    table = pd.DataFrame(found).T
    off = [f"{name}: {table.at['trained again', name]:.3f}, committed {table.at['committed', name]:.3f}, "
           f"expected within {TOLERANCE}" for name in ACCURACIES
           if not abs(table.at["trained again", name] - table.at["committed", name]) <= TOLERANCE]
    return table, off


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("rung")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompts", type=int, default=20, help="per task, for the comparison")
    arguments = parser.parse_args()
    disable_progress_bar()
    rung, seed = arguments.rung, arguments.seed
    try:
        committed = MODELS / rung / f"seed{seed}"
        if not (committed / f"step{read_rung(rung)['steps']}").is_dir():
            print(f"checkpoints: {train(rung, seed=seed)}")
            return
        again = AGAIN / rung / f"seed{seed}"
        if not (again / f"step{read_rung(rung)['steps']}").is_dir():
            train(rung, seed=seed, models=AGAIN)
    except (ValueError, FloatingPointError) as error:
        raise SystemExit(f"error: {error}") from None
    differences = largest_differences(committed, again)
    print(f"{int((differences == 0).sum())} of {len(differences)} checkpoints are equal bit for bit "
          f"({torch.get_num_threads()} thread(s)); largest difference of a weight {differences.max():.3g}")
    table, off = compare(rung, seed, again, n_prompts=arguments.prompts)
    print(table.round(3).to_string())
    if off:
        raise SystemExit("error: " + "; ".join(off))
    print("accuracies agree")


if __name__ == "__main__":
    main()
