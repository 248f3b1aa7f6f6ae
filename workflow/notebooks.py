"""All notebooks: how often each runs, what it reads, and what it writes. The book has them in this order.

A new notebook is a template in notebooks/, an entry here and a line of _toc.yml. What its parameters cell declares says
what it is given (workflow/suite.py).
"""

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCORED = ("scores", "accuracy", "tasks")
ABLATED = ("ablations", "effects", "curves")
PATTERNS = ("patterns", "pattern_effects")


@dataclass(frozen=True)
class Notebook:
    """One template. `writes` and `reads` are kinds of tables; `statistics` are the numbers that its page prints."""

    writes: tuple[str, ...] = ("statistics",)
    of: str = "suite"  # one run for each "step" chosen, "model" of several, "suite", or "book": included ones too
    key: str = ""  # of a model's entry in a suite file: at which of its scored steps the notebook runs
    default: str = "none"
    reads: tuple[str, ...] = ()  # measured tables: of the step, of the model (of all its seeds where scored), or of all
    pages: tuple[str, ...] = ()  # notebooks whose statistics it reads, those of included suites too
    files: tuple[str, ...] = ()  # patterns of other files that it reads
    grouped: bool = False  # runs once more over the models of each included suite


CAUSAL = ("lab/causal/**/*.csv", "lab/causal/**/*.yaml")
NOTEBOOKS = {
    "scoring": Notebook((*SCORED, "samples", "statistics"), "step", "steps", "all"),
    "ablation": Notebook((*ABLATED, "statistics"), "step", "ablate", "last", reads=("scores", "tasks")),
    "protocols": Notebook(of="step", key="protocols"),
    "task_execution": Notebook(("executions",), "step", "execute", reads=("scores",)),
    "patterns": Notebook(PATTERNS, "step", "patterns", reads=("scores",)),
    "example": Notebook(("example",), "step", "example", reads=("scores", "accuracy")),
    "training_dynamics": Notebook(of="model", reads=(*SCORED, "effects")),
    "model_scaling": Notebook(reads=(*SCORED, "effects"), grouped=True),
    "ablation_ladder": Notebook(files=("lab/grid.csv",)),
    "causal_test": Notebook(files=(*CAUSAL, "lab/rungs/*.yaml")),
    "two_papers": Notebook(of="book", reads=(*PATTERNS, "effects")),
    "claims": Notebook(reads=(*SCORED, *ABLATED, "executions", *PATTERNS), pages=("claims",), grouped=True),
    "lab": Notebook((), reads=SCORED, files=("lab/rungs/*.yaml", "lab/models/*/*/curve.csv", "lab/recipe.*")),
    "paper_figures": Notebook((), "book", reads=("scores",), pages=("claims",)),
    "index": Notebook((), "book", reads=("ablations",), pages=("model_scaling", "claims"), files=CAUSAL),
}
WRITER = {kind: name for name, notebook in NOTEBOOKS.items() for kind in notebook.writes if kind != "statistics"}
OF_STEP = {name: notebook for name, notebook in NOTEBOOKS.items() if notebook.of == "step"}


@dataclass(frozen=True)
class Run:
    """One run of a notebook, or with wildcards in braces all of a kind. Its files are under the suite's results."""

    notebook: str
    model: str = ""
    step: int | str | None = None
    group: str = ""  # the included suite over whose models it runs
    point: str = ""  # of the suite's grid

    @property
    def stem(self) -> str:
        return (self.model or self.group) + ("" if self.step is None else f"/step{self.step}")

    @property
    def folder(self) -> str:
        """Where its tables are, relative to the results."""
        return f"sweeps/{self.notebook}/{self.point}" if self.point else ""

    @property
    def template(self) -> str:
        return f"notebooks/{self.notebook}.ipynb"

    @property
    def executed(self) -> str:
        return f"{Path(self.folder, 'notebooks', '' if self.point else self.notebook, self.stem)}.ipynb"

    @property
    def log(self) -> str:
        return f"{Path('logs', self.folder or self.notebook, self.stem)}.log"

    @property
    def tables(self) -> dict[str, str]:
        """Path to kind. Several notebooks write statistics, each its own: statistics/claims.parquet."""
        return {f"{Path(self.folder, kind, self.notebook if kind == 'statistics' else '', self.stem)}.parquet": kind
                for kind in NOTEBOOKS[self.notebook].writes}


def points(grid: dict[str, list]) -> dict[str, dict[str, Any]]:
    """Every combination of a grid's values by its name, `n_shots=4,seed=1`. Raises ValueError for equal names."""
    found = {}
    for values in itertools.product(*grid.values()):
        point = dict(zip(grid, values, strict=True))
        name = ",".join(f"{key}={re.sub(r'[^A-Za-z0-9_.+-]+', '_', str(value))}" for key, value in point.items())
        if name in found:
            raise ValueError(f"two points are called {name}: values have to differ in letters, digits or . _ + -")
        found[name] = point
    return found
