"""Where the lab's configurations, checkpoints and tables lie; light enough for the page that only reads them."""

import fcntl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from icl_lib.files import whole

FOLDER = Path(__file__).parent
RUNGS = FOLDER / "rungs"
MODELS = FOLDER / "models"
ARMS = FOLDER / "recipe.yaml"
TRIALS = FOLDER / "recipe.csv"
CAUSAL = FOLDER / "causal"
CONFIRMATION = CAUSAL / "confirmation"
NO_GLOSSARIES = CAUSAL / "no_glossaries"
DOSE = CAUSAL / "dose"
PLANS = {"the plan": CAUSAL, "its confirmation on new seeds": CONFIRMATION,  # in the order of their commits
         "its confirmation without glossaries": NO_GLOSSARIES}
GRID = FOLDER / "grid.csv"


def rungs() -> list[str]:
    """The names of all rungs."""
    return sorted(path.stem for path in RUNGS.glob("*.yaml"))


def read_rung(name: str) -> dict:
    """A rung's configuration; an unknown name is refused with the known ones."""
    path = RUNGS / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"unknown rung {name!r}; known rungs: {', '.join(rungs())}")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def changed(config: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """The configuration with a change put in: nested keys are merged, a value of None takes its key out."""
    merged = dict(config)
    for key, value in change.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict) and isinstance(config.get(key), dict):
            merged[key] = changed(config[key], value)
        else:
            merged[key] = value
    return merged


def last_checkpoint(rung: str, seed: int = 0, models: Path = MODELS) -> Path:
    """The folder of a trained model's last checkpoint, whether or not it is there; errors as in `read_rung`."""
    return models / rung / f"seed{seed}" / f"step{read_rung(rung)['steps']}"


def trained(names: Iterable[str] | None = None) -> list[tuple[str, int]]:
    """(rung, seed) of every model whose last checkpoint is there, of all rungs or of some; errors as in `read_rung`."""
    steps = {rung: read_rung(rung)["steps"] for rung in (rungs() if names is None else names)}
    return [(rung, int(folder.name.removeprefix("seed"))) for rung in steps
            for folder in sorted((MODELS / rung).glob("seed*")) if (folder / f"step{steps[rung]}").is_dir()]


def read_plan(folder: Path = CAUSAL) -> dict:
    """A plan of the causal test: rung and its changes, arms with strengths, seeds, measures and rules."""
    path = folder / "plan.yaml"
    if not path.is_file():
        raise ValueError(f"no plan {path}, expected a folder with plan.yaml and its runs' tables; try lab/causal")
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def read_rows(path: Path, columns: Iterable[str]) -> pd.DataFrame:
    """A table of runs, without rows where it is not there yet."""
    return pd.read_csv(path) if path.is_file() else pd.DataFrame(columns=list(columns))


def put(path: Path, rows: pd.DataFrame, key: list[str], *, digits: int = 5, arms: Iterable[str] = ()) -> pd.DataFrame:
    """Add rows to a table in place of those with the same `key`, sorted by it (`arms` in this order); the table.

    Other processes may do so too.
    """
    order = {arm: place for place, arm in enumerate(arms)}
    with locked(Path("results/causal/.tables.lock"), wait=True):
        old = [pd.read_csv(path)] if path.is_file() else []
        table = pd.concat([*old, rows.round(digits)], ignore_index=True).drop_duplicates(key, keep="last")
        table = table.sort_values(
            key, key=lambda column: column.map(order) if column.name == "arm" else column, ignore_index=True)
        with whole(path) as temporary:
            table.to_csv(temporary, index=False)
    return table


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[bool]:
    """Whether this process has the lock, which another one may have where it does not `wait` for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
