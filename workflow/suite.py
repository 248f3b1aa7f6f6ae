"""A suite: which models and steps, what each notebook is given, and where its results go.

`python -m workflow.suite FILE` checks a suite file.
"""

import os
import sys
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import yaml

from icl_lib.models.locate import locate, steps_of
from icl_lib.names import size_of
from icl_lib.parameters import own_data
from workflow import command
from workflow.notebooks import NOTEBOOKS, OF_STEP, WRITER, Run, points
from workflow.schema import SCHEMA, UniqueKeys, check_schema, short
from workflow.templates import check_parameters, library_files, template_parameters

TEMPLATES = Path("notebooks")
RESULTS = Path("results")
NO_STEP = -1  # stands for a model's published weights where it has no checkpoints


@dataclass(frozen=True)
class Suite:
    """A checked suite. `chosen`: the steps that a notebook runs on, in rising order, as notebook to model to steps.

    A model of which a notebook runs on no step is not among those of the notebook.
    """

    name: str
    chosen: dict[str, dict[str, list[int]]]
    included: tuple["Suite", ...]  # suites whose committed models are shown beside this one's
    of_model: dict[str, dict[str, dict[str, Any]]]  # parameters of one model's runs, by notebook
    seed: int = 0
    threads: int = 1
    tables: str = ""  # folder of committed tables that are shown without measuring
    parameters: dict[str, dict[str, Any]] = field(default_factory=dict)  # over the templates' own, by notebook
    intermediate: dict[str, dict[str, Any]] = field(default_factory=dict)  # at steps before a model's last
    sweep: dict[str, dict[str, list]] = field(default_factory=dict)

    @property
    def results(self) -> str:
        """The suite's folder, relative to the repository."""
        return (RESULTS / self.name).as_posix()

    @property
    def steps(self) -> dict[str, list[int]]:
        """All models with their scored steps."""
        return self.chosen["scoring"]

    @property
    def groups(self) -> list["Suite"]:
        """The included suites that can be compared model by model: those with an ablated model."""
        return [suite for suite in self.included if suite.chosen["ablation"]]

    @property
    def followed(self) -> list[str]:
        """Models with more than one step: those that training_dynamics is about."""
        return [model for model, steps in self.steps.items() if len(steps) > 1]

    @property
    def of_steps(self) -> list[Run]:
        """Every notebook at every step that was chosen for it, of included suites too."""
        return [Run(name, model, step) for name in OF_STEP for suite in (self, *self.included)
                for model, steps in suite.chosen[name].items() for step in steps]

    @cached_property
    def copied(self) -> dict[str, str]:
        """Committed tables that have no page, as copy to original."""
        return {f"{self.results}/{Path(path).relative_to(self.tables)}": path for run in self.of_steps
                if self.owner(run) is self and not self.has_page(run) for path in committed(self, run)}

    @cached_property
    def runs(self) -> list[Run]:
        """All runs in the order of the book's chapters and sections, each after those that it reads."""
        found, copied = [], self.copied
        for name, notebook in NOTEBOOKS.items():
            if notebook.of == "step":
                found += [run for run in self.of_steps if run.notebook == name
                          and not any(f"{self.results}/{path}" in copied for path in run.tables)]
            elif notebook.of == "model":
                found += [Run(name, model) for model in self.followed if self.is_first(model)]
            else:
                found += [Run(name, group=suite.name) for suite in self.groups if notebook.grouped] + [Run(name)]
        return found + [Run(name, model, steps[-1], point=point) for name, grid in self.sweep.items()
                        for point in points(grid) for model, steps in self.chosen[name].items()]

    @property
    def committed_runs(self) -> list[Run]:
        """Runs that measure nothing and wait for none that does: of included suites, and of committed files alone."""
        real = {model for suite in self.included for model in suite.steps}
        alone = {name for name, notebook in NOTEBOOKS.items() if notebook.files and not notebook.reads}
        return [run for run in self.runs if run.model in real or run.group or run.notebook in alone]

    @property
    def notebooks(self) -> list[Path]:
        """The executed notebooks that are pages, in the order of the book."""
        return [Path(self.results, run.executed) for run in self.runs if not run.point]

    @property
    def joined(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Tables of the sweeps: of each the tables that it joins, and their values of the grid."""
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for run in self.runs:
            for path, kind in run.tables.items() if run.point else ():
                whole = found.setdefault(f"{self.results}/sweeps/{run.notebook}/{kind}.parquet", {})
                whole[f"{self.results}/{path}"] = points(self.sweep[run.notebook])[run.point]
        return found

    def seeds_of(self, model: str) -> dict[str, list[int]]:
        """Followed models that differ from this one by nothing but the seed in their names, itself included."""
        return {other: self.steps[other] for other in self.followed if size_of(other) == size_of(model)}

    def is_first(self, model: str) -> bool:
        """Whether a model is the first of its seeds in this suite, the one that has the pages."""
        return next(other for other in self.steps if size_of(other) == size_of(model)) == model

    def has_page(self, run: Run) -> bool:
        """Whether a run on one of this suite's steps has a page also where its tables are committed: a last step's."""
        return run.step == self.steps[run.model][-1] and self.is_first(run.model)

    def owner(self, run: Run) -> "Suite":
        """The included suite that a run's model, or all its models (`group`), are of; else this one."""
        return next((suite for suite in self.included if run.model in suite.steps or run.group == suite.name), self)

    def given(self, run: Run) -> dict[str, Any]:
        """All parameters of a run, as papermill gets them.

        A notebook has to declare suite, seed, results and what it runs on; others it is given where it declares them. A
        run of an included suite has the parameters of that suite.
        """
        if (owner := self.owner(run)) is not self:
            own_table = {"table": f"statistics/{run.notebook}/{run.group}.parquet"} if run.group else {}
            return owner.given(replace(run, group="")) | {"results": self.results} | own_table
        of, model = NOTEBOOKS[run.notebook].of, run.model
        first = {"suite": self.name, "seed": self.seed, "results": Path(self.results, run.folder).as_posix()}
        first |= {"model": model} if of in ("step", "model") else {}
        first |= {"step": NO_STEP if run.step is None else run.step} if of == "step" else {}
        others = {
            "steps": self.steps.get(model, []), "seeds": self.seeds_of(model),
            "ablated_steps": {name: self.chosen["ablation"].get(name, []) for name in self.seeds_of(model)},
            "models": self.steps, "ablated_models": self.chosen["ablation"],
            "executed_models": self.chosen["task_execution"],
            "real_models": {suite.name: suite.chosen["ablation"] for suite in self.groups},
            "pattern_models": {name: at for suite in (*self.included, self)
                               for name, at in suite.chosen["patterns"].items()}}
        declared = template_parameters(run.template)
        early = self.intermediate if of == "step" and run.step != self.steps[model][-1] else {}
        return (first | {name: value for name, value in others.items() if name in declared}
                | self.parameters.get(run.notebook, {}) | self.of_model.get(model, {}).get(run.notebook, {})
                | early.get(run.notebook, {})
                | (points(self.sweep[run.notebook])[run.point] if run.point else {}))

    def inputs(self, run: Run) -> list[str]:
        """What a run is made from besides its template and the code: tables, weights, other files."""
        notebook = NOTEBOOKS[run.notebook]
        found = sorted(path.as_posix() for pattern in notebook.files for path in Path().glob(pattern))
        if notebook.of == "step":
            found += [*(committed(self, run) or weights(run.model, run.step)), *own_data(self.given(run))]
        found += [f"{self.results}/{path}" for kind in notebook.reads for other in self._read(run, WRITER[kind])
                  for path, of_kind in other.tables.items() if of_kind == kind]
        others = [other for other in self.runs if other.notebook in notebook.pages and not run.group and other != run]
        return found + [f"{self.results}/{path}" for other in others for path in other.tables]

    def _read(self, run: Run, writer: str) -> list[Run]:
        """The runs of a measuring notebook that a run reads."""
        of = NOTEBOOKS[run.notebook].of
        if of == "step":
            return [Run(writer, run.model, run.step)]
        models = self.seeds_of(run.model) if of == "model" else None
        return [Run(writer, model, step) for suite in (self.owner(run), *(self.included if of == "book" else ()))
                for model, steps in suite.chosen[writer].items() if models is None or model in models for step in steps]

    def check_templates(self) -> None:
        """Refuse templates and overrides that do not fit each other, and what is no folder in place of results."""
        if odd := [path for path in (RESULTS, Path(self.results)) if os.path.lexists(path) and not path.is_dir()]:
            raise ValueError(f"{odd[0]} is no folder, expected the folder of results; move it away")
        models = [next(iter(self.steps)), *self.followed[:1], *self.of_model]
        for run in [*(Run(name, model, self.steps[model][0]) for model in models for name in NOTEBOOKS),
                    *(run for run in self.runs if run.point)]:
            check_parameters(run.template, self.given(run))
        if idle := [notebook for notebook in self.sweep if not self.chosen[notebook]]:
            raise ValueError(f"sweep.{idle[0]}: the suite runs {idle[0]} on no model")


def read_suite(path: str | Path, over: dict[str, Any] | None = None) -> Suite:
    """The suite of a file, the keys of `over` in place of its own. Raises ValueError in one line."""
    path = Path(path)
    if not path.is_file():
        others = sorted(p.stem for p in path.parent.glob("*.yaml") if p.stem != "schema")
        raise ValueError(f"suite file {path} does not exist; there are {', '.join(others) or 'none'}")
    try:
        config = UniqueKeys(path.read_text(encoding="utf-8")).get_single_data()
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ValueError(f"{path} is not YAML: {short(error)}") from None
    try:
        found = check_suite({**config, **over} if over and isinstance(config, dict) else config)
        if config["suite"] != path.stem:
            raise ValueError(f"suite is {config['suite']!r}, expected {path.stem!r}: each file has results of its own")
        return found
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: {error}") from None


def check_suite(config: Any) -> Suite:
    """The suite that a parsed file describes. Raises ValueError, or FileNotFoundError for a model, in one line."""
    check_schema(config)
    chosen: dict[str, dict[str, list[int]]] = {name: {} for name in OF_STEP}
    for entry in config["models"]:
        model = entry["name"]
        if model in chosen["scoring"]:
            raise ValueError(f"model {model} is listed twice")
        for name, notebook in OF_STEP.items():  # scoring first
            wanted = entry.get(notebook.key, notebook.default)
            if steps := _chosen(model, wanted, chosen["scoring"].get(model), config.get("tables", "")):
                chosen[name][model] = steps
    for grid in config.get("sweep", {}).values():
        points(grid)
    included = tuple(suite for name in config.get("include", []) if (suite := _measured(name)).steps)
    for suite in included:
        if both := sorted(set(chosen["scoring"]) & set(suite.steps)):
            raise ValueError(f"model {both[0]} is in this suite and in {suite.name}, which it includes")
    of_model = {entry["name"]: entry["parameters"] for entry in config["models"] if "parameters" in entry}
    others = {key: value for key, value in config.items() if key not in ("suite", "models", "include")}
    return Suite(config["suite"], chosen, included, of_model, **others)


def _measured(name: str) -> Suite:
    """A suite of config/ with those of its runs whose committed tables are there."""
    suite = read_suite(SCHEMA.with_name(f"{name}.yaml"), over={"include": []})  # those it includes are not shown
    chosen: dict[str, dict[str, list[int]]] = {}
    for notebook, of_models in suite.chosen.items():  # scoring first
        among = chosen.get("scoring", of_models)
        chosen[notebook] = {model: there for model, steps in of_models.items() if model in among and (
            there := [step for step in steps if committed(suite, Run(notebook, model, step))])}
    return replace(suite, chosen=chosen)


def dependencies(notebook: str) -> list[str]:
    """Library files that a notebook depends on, data beside them that bears a module's name, and the lab's tasks."""
    files = library_files(TEMPLATES / f"{notebook}.ipynb")
    data = [found for file in map(Path, files) for kind in ("yaml", "sha256")
            for found in file.parent.glob(f"{file.stem}*.{kind}")]
    if "icl_lib/data/tasks.py" in files:
        data += Path("lab/world").rglob("*.json")
    return files + sorted(path.as_posix() for path in data)


def committed(suite: Suite, run: Run) -> list[str]:
    """The committed tables of a run that are there; it needs no weights then. A point of a grid has none."""
    folder = suite.owner(run).tables
    paths = [Path(folder, name) for name, kind in run.tables.items() if folder and kind != "statistics"]
    return [path.as_posix() for path in paths if path.is_file()]


def weights(model: str, step: int) -> list[str]:
    """Files of a checkpoint relative to the working folder, none for a model of the hub."""
    source, revision = locate(model, None if step == NO_STEP else step)
    if revision is not None or not Path(source).is_dir():
        return []
    return sorted(os.path.relpath(file) for file in Path(source).iterdir() if file.is_file())


def _chosen(model: str, wanted: str | list[int], among: list[int] | None, tables: str) -> list[int]:
    """The steps of a model that a suite file asks for, in rising order; one with committed tables needs no weights."""
    if wanted == "none":
        return []
    if isinstance(wanted, str):
        if among is None:
            locate(model)  # refuses unknown models, naming the nearest
            among = steps_of(model)
        return (among[-1:] if wanted == "last" else list(among)) or [NO_STEP]
    for step in wanted:
        if among is not None and step not in among:
            raise ValueError(f"model {model}: step {step} is not among its scored steps ({among})")
        if not tables or not Path(tables, f"scores/{model}/step{step}.parquet").is_file():
            locate(model, step)
    return sorted(wanted)


@partial(command, takes="SUITE_FILE")
def main(arguments: list[str]) -> None:
    read_suite(*arguments).check_templates()


if __name__ == "__main__":
    sys.exit(main())
