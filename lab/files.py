"""Where the lab's configurations, checkpoints and tables lie; light enough for the page that only reads them."""

from pathlib import Path

import yaml

FOLDER = Path(__file__).parent
RUNGS = FOLDER / "rungs"
MODELS = FOLDER / "models"
ARMS = FOLDER / "recipe.yaml"
TRIALS = FOLDER / "recipe.csv"
CAUSAL = FOLDER / "causal"
CONFIRMATION = CAUSAL / "confirmation"
NO_GLOSSARIES = CAUSAL / "no_glossaries"
GRID = FOLDER / "grid.csv"


def read_rung(name: str) -> dict:
    """A rung's configuration; an unknown name is refused with the known ones."""
    path = RUNGS / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in RUNGS.glob("*.yaml")))
        raise ValueError(f"unknown rung {name!r}; known rungs: {known}")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def read_plan(folder: Path = CAUSAL) -> dict:
    """A plan of the causal test: rung and its changes, arms with strengths, seeds, measures and rules."""
    path = folder / "plan.yaml"
    if not path.is_file():
        raise ValueError(f"no plan {path}, expected a folder with plan.yaml and its runs' tables; try lab/causal")
    return yaml.safe_load(path.read_text(encoding="utf-8"))
