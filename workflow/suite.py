"""A suite: which models and steps, what each notebook is given, and where its results go."""

import difflib
import os
import re
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from icl_lib.models.load import locate, steps_of
from icl_lib.tables import run_path
from workflow.sweep import points
from workflow.templates import check_parameters, library_files, template_parameters

SCHEMA = Path(__file__).resolve().parent.parent / "config" / "schema.yaml"
TEMPLATES = Path("notebooks")
RESULTS = Path("results")

# What each notebook writes: one table per run and kind, under results/<suite>/ at `place`. `statistics` hold the
# numbers that the notebook's page prints.
TABLES = {
    "scoring": ("scores", "accuracy", "tasks", "statistics"),
    "ablation": ("ablations", "effects", "curves", "statistics"),
    "protocols": ("statistics",),
    "task_execution": ("executions",),
    "example": ("example",),
    "training_dynamics": ("statistics",),
    "model_scaling": ("statistics",),
    "ablation_ladder": ("statistics",),
    "causal_test": ("statistics",),
    "claims": ("statistics",),
    "lab": (),
    "paper_figures": (),
    "index": (),
}
# What the workflow gives each notebook. A template must declare these ...
GIVEN = {
    "scoring": ("suite", "seed", "results", "model", "step"),
    "ablation": ("suite", "seed", "results", "model", "step"),
    "protocols": ("suite", "seed", "results", "model", "step"),
    "task_execution": ("suite", "seed", "results", "model", "step"),
    "example": ("suite", "seed", "results", "model", "step"),
    "training_dynamics": ("suite", "seed", "results", "model", "steps"),
    "model_scaling": ("suite", "seed", "results", "models"),
    "ablation_ladder": ("suite", "seed", "results"),
    "causal_test": ("suite", "seed", "results"),
    "claims": ("suite", "seed", "results", "models"),
    "lab": ("suite", "seed", "results", "models"),
    "paper_figures": ("suite", "seed", "results", "models"),
    "index": ("suite", "seed", "results", "models"),
}
# Notebooks that run on some of the scored steps: the key of a model's entry that says which, and its default.
CHOSEN_BY = {
    "ablation": ("ablate", "last"), "protocols": ("protocols", "none"), "task_execution": ("execute", "none"),
    "example": ("example", "none"),
}  # fmt: skip
# ... and is given these if it declares them: which of the steps were ablated, the steps of all seeds of the model.
GIVEN_IF_DECLARED = {
    "training_dynamics": ("ablated_steps", "seeds"), "model_scaling": ("ablated_models",),
    "claims": ("ablated_models", "executed_models", "real_models"), "index": ("ablated_models", "real_models"),
    "paper_figures": ("real_models",),
}  # fmt: skip

# Notebooks over all models that run once more over those of each included suite.
GROUPED = ("model_scaling", "claims")

# Files that library modules read, as (module, file or folder).
DATA = (("icl_lib/tables.py", Path("icl_lib/tables.yaml")),
        ("icl_lib/data/tasks.py", Path("lab/world")),
        ("icl_lib/departures.py", Path("icl_lib/departures.yaml")),
        ("icl_lib/analysis/claims.py", Path("icl_lib/analysis/claims.yaml")),
        ("icl_lib/analysis/paper_figures.py", Path("icl_lib/analysis/paper_figures.yaml")),
        ("icl_lib/data/upstream.py", Path("icl_lib/data/upstream_tasks.sha256")),
        ("icl_lib/models/paper_models.py", Path("icl_lib/models/paper_models.yaml")),
        ("icl_lib/models/packaged.py", Path("icl_lib/models/packaged_models.yaml")))

# Stands for a model's published weights where it has no checkpoints.
NO_STEP = -1


def place(notebook: str, table: str) -> str:
    """The folder of a notebook's table; or, where it runs once, the file's name without its ending.

    Several notebooks write statistics, each its own: results/<suite>/statistics/claims.parquet.
    """
    return f"{table}/{notebook}" if table == "statistics" else table


class SuiteError(ValueError):
    """A suite file that is not valid; the message is one line."""


class UniqueKeys(yaml.SafeLoader):
    """YAML in which a key that stands twice in a mapping is an error; yaml itself would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.YAMLError(f"key {key.value} stands there twice, again in line {key.start_mark.line + 1}")
                seen.add(key.value)
        return super().construct_mapping(node, deep)


@dataclass(frozen=True)
class Suite:
    """A checked suite. `steps` gives each model's scored steps in rising order, `chosen` those of the notebooks that
    run on some of them, as notebook to model to steps."""

    name: str
    seed: int
    threads: int
    steps: dict[str, list[int]]
    chosen: dict[str, dict[str, list[int]]]
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)
    sweep: dict[str, dict[str, list]] = field(default_factory=dict)
    tables: str = ""  # folder of committed tables that are shown without measuring
    included: tuple["Suite", ...] = ()  # suites whose committed models are shown beside this one's
    of_model: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)  # overrides of one model's runs

    @property
    def results(self) -> str:
        """The suite's folder, relative to the repository."""
        return (RESULTS / self.name).as_posix()

    @property
    def ablated(self) -> dict[str, list[int]]:
        """Models of which any step is ablated, with these steps."""
        return {model: steps for model, steps in self.chosen["ablation"].items() if steps}

    @property
    def groups(self) -> list["Suite"]:
        """The included suites that can be compared model by model: those with an ablated model."""
        return [suite for suite in self.included if suite.ablated]

    @property
    def followed(self) -> list[str]:
        """Models with more than one step: those that training_dynamics is about."""
        return [model for model, steps in self.steps.items() if len(steps) > 1]

    @property
    def notebooks(self) -> list[Path]:
        """The executed notebooks of all runs, in the order of the book's chapters and sections."""
        suites = [self, *self.included]
        runs = [f"scoring/{model}/step{step}" for suite in suites for model, steps in suite.steps.items()
                for step in steps]
        runs += [f"{kind}/{model}/step{step}" for kind in self.chosen for suite in suites
                 for model, steps in suite.chosen[kind].items() for step in steps]
        runs += [f"training_dynamics/{model}" for model in self.followed]
        for kind in TABLES:
            if "model" not in GIVEN[kind]:
                runs += [f"{kind}/{suite.name}" for suite in self.groups if kind in GROUPED] + [kind]
        return [Path(self.results, "notebooks", f"{run}.ipynb") for run in runs]

    def seeds_of(self, model: str) -> dict[str, list[int]]:
        """Followed models that differ from this one by nothing but the seed in their names, itself included."""
        return {other: self.steps[other] for other in self.followed if unseeded(other) == unseeded(model)}

    def parameters(self, notebook: str, *, model: str = "", step: int = NO_STEP, group: str = "") -> dict[str, Any]:
        """All parameters of one run of a notebook, as papermill gets them.

        A run of an included suite's model, or over all its models (`group`), has the parameters of that suite.
        """
        for suite in self.included:
            if model in suite.steps or group == suite.name:
                own_table = {"table": f"statistics/{notebook}/{group}.parquet"} if group else {}
                return suite.parameters(notebook, model=model, step=step) | {"results": self.results} | own_table
        known = {
            "suite": self.name, "seed": self.seed, "results": self.results, "model": model, "step": step,
            "steps": self.steps.get(model, []), "ablated_steps": self.ablated.get(model, []),
            "models": self.steps, "ablated_models": self.ablated, "seeds": self.seeds_of(model),
            "executed_models": {name: at for name, at in self.chosen["task_execution"].items() if at},
            "real_models": {suite.name: suite.ablated for suite in self.groups},
        }  # fmt: skip
        declared = template_parameters(TEMPLATES / f"{notebook}.ipynb")
        names = [*GIVEN[notebook], *(n for n in GIVEN_IF_DECLARED.get(notebook, ()) if n in declared)]
        own = self.of_model.get(model, {}).get(notebook, {})
        return {name: known[name] for name in names} | self.overrides.get(notebook, {}) | own

    def swept(self, notebook: str) -> list[tuple[str, dict[str, Any], str, int]]:
        """Runs of a notebook over the suite's grid of its parameters: name of the point, its values, model, step."""
        steps = self.steps if notebook == "scoring" else self.chosen[notebook]
        return [(name, point, model, at[-1]) for name, point in points(self.sweep.get(notebook, {})).items()
                for model, at in steps.items() if at] if notebook in self.sweep else []

    def check_templates(self) -> None:
        """Refuse templates and overrides that do not fit each other, before anything runs."""
        for model in (next(iter(self.steps)), *self.of_model):
            for notebook in TABLES:
                check_parameters(
                    TEMPLATES / f"{notebook}.ipynb", self.parameters(notebook, model=model, step=self.steps[model][0]))
        for notebook in self.sweep:
            runs = self.swept(notebook)
            if not runs:
                raise SuiteError(f"sweep.{notebook}: the suite runs {notebook} on no model")
            for _, point, model, step in runs:
                check_parameters(
                    TEMPLATES / f"{notebook}.ipynb", self.parameters(notebook, model=model, step=step) | point)


def read_suite(path: str | Path, over: dict[str, Any] | None = None) -> Suite:
    """The suite of a file, the keys of `over` in place of its own. Raises SuiteError in one line."""
    path = Path(path)
    if not path.is_file():
        others = sorted(p.stem for p in path.parent.glob("*.yaml") if p.stem != "schema")
        raise SuiteError(f"suite file {path} does not exist; there are {', '.join(others) or 'none'}")
    try:
        config = UniqueKeys(path.read_text(encoding="utf-8")).get_single_data()
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise SuiteError(f"{path} is not YAML: {_short(error)}") from None
    try:
        return check_suite({**config, **over} if over and isinstance(config, dict) else config)
    except SuiteError as error:
        raise SuiteError(f"{path}: {error}") from None


def check_suite(config: Any) -> Suite:
    """The suite that a parsed file describes. Raises SuiteError naming the key and the nearest valid ones."""
    schema = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))
    errors = sorted(
        jsonschema.Draft202012Validator(schema).iter_errors(config), key=lambda e: list(map(str, e.path))
    )
    if errors:
        raise SuiteError(_one_line(errors[0]))
    steps, chosen = {}, {notebook: {} for notebook in CHOSEN_BY}
    for entry in config["models"]:
        name = entry["name"]
        if name in steps:
            raise SuiteError(f"model {name} is listed twice")
        try:
            steps[name] = _chosen(name, entry.get("steps", "all"))
            for notebook, (key, default) in CHOSEN_BY.items():
                chosen[notebook][name] = _chosen(name, entry.get(key, default), among=steps[name])
        except (ValueError, OSError) as error:
            raise SuiteError(str(error)) from None
    overrides = config.get("parameters", {})
    of_model = {entry["name"]: entry["parameters"] for entry in config["models"] if "parameters" in entry}
    for notebook, given in (item for part in (overrides, *of_model.values()) for item in part.items()):
        for name in (*GIVEN[notebook], *GIVEN_IF_DECLARED.get(notebook, ())):
            if name in given:
                raise SuiteError(f"parameters.{notebook}: {name} is set by the workflow, not here")
    sweep = config.get("sweep", {})
    for notebook, grid in sweep.items():
        for name in ("suite", "results", "model", "step"):
            if name in grid:
                raise SuiteError(f"sweep.{notebook}: {name} is set by the workflow, not here")
        try:
            points(grid)
        except ValueError as error:
            raise SuiteError(f"sweep.{notebook}: {error}") from None
    included = tuple(suite for name in config.get("include", []) if (suite := _measured(name)).steps)
    for suite in included:
        if both := sorted(set(steps) & set(suite.steps)):
            raise SuiteError(f"model {both[0]} is in this suite and in {suite.name}, which it includes")
    return Suite(config["suite"], config.get("seed", 0), config.get("threads", 1), steps, chosen, overrides, sweep,
                 config.get("tables", ""), included, of_model)


def _measured(name: str) -> Suite:
    """A suite of config/ with those of its runs whose committed tables are there."""
    suite = read_suite(SCHEMA.with_name(f"{name}.yaml"))

    def there(notebook: str, chosen: dict[str, list[int]]) -> dict[str, list[int]]:
        kept = {model: [step for step in steps if committed(suite, notebook, model, step)]
                for model, steps in chosen.items()}
        return {model: steps for model, steps in kept.items() if steps}

    steps = there("scoring", suite.steps)
    chosen = {notebook: there(notebook, {model: at for model, at in chosen.items() if model in steps})
              for notebook, chosen in suite.chosen.items()}
    return replace(suite, steps=steps, chosen=chosen)


def unseeded(model: str) -> str:
    """The model's name without its seed: lab-40k for lab-40k-seed2."""
    return re.sub(r"-seed\d+$", "", model)


def dependencies(notebook: str) -> list[str]:
    """Library and data files that a notebook depends on, relative to the repository."""
    files = library_files(TEMPLATES / f"{notebook}.ipynb")
    read = [data for module, data in DATA if module in files]
    return files + sorted(
        f.as_posix() for data in read for f in (data.rglob("*") if data.is_dir() else [data])
        if f.suffix in (".json", ".yaml", ".sha256"))


def committed(suite: Suite, notebook: str, model: str, step: int) -> list[str]:
    """The committed tables of a run that are there; it needs no weights then."""
    suite = next((other for other in suite.included if model in other.steps), suite)
    paths = [run_path(suite.tables, kind, model, step) for kind in TABLES[notebook] if kind != "statistics"]
    return [path.as_posix() for path in paths if suite.tables and path.is_file()]


def weights(model: str, step: int) -> list[str]:
    """Files of a checkpoint relative to the working folder, none for a model of the hub."""
    source, revision = locate(model, None if step == NO_STEP else step)
    if revision is not None or not Path(source).is_dir():
        return []
    return sorted(os.path.relpath(file) for file in Path(source).iterdir() if file.is_file())


def _chosen(model: str, wanted: str | list[int], among: list[int] | None = None) -> list[int]:
    """The steps of a model that a suite file asks for, in rising order."""
    locate(model)  # refuses unknown models, naming the nearest
    known = steps_of(model) if among is None else among
    if wanted == "none":
        return []
    if isinstance(wanted, str):
        return (known[-1:] if wanted == "last" else list(known)) or [NO_STEP]
    if among is not None:
        for step in wanted:
            if step not in among:
                raise SuiteError(f"model {model}: step {step} is not among its scored steps ({among})")
    for step in wanted:
        locate(model, step)
    return sorted(wanted)


def _one_line(error: jsonschema.ValidationError) -> str:
    where = ".".join(map(str, error.absolute_path)) or "suite file"
    if error.validator == "additionalProperties":
        known = list(error.schema["properties"])
        key = next(str(k) for k in error.instance if k not in known)
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"; nearest: {near[0]}" if near else ""
        return f"unknown key {key!r} in {where}, expected one of {', '.join(known)}{hint}"
    if error.validator == "required":
        key = next(k for k in error.validator_value if k not in error.instance)
        return f"{where} lacks the key {key!r}"
    key = where.rsplit(".", 1)[-1]
    if key == "steps" or key in [key for key, _ in CHOSEN_BY.values()]:
        none = "" if key == "steps" else "none, "
        return f"{where} is {error.instance!r}, expected {none}all, last or a list of different steps from 0"
    return f"{where}: {_short(error.message)}"


def _short(message: object) -> str:
    """One line, the middle left out where a value makes it long."""
    line = " ".join(str(message).split())
    return line if len(line) < 400 else f"{line[:200]} ... {line[-150:]}"


def main() -> int:
    """Check a suite file: `python -m workflow.suite FILE`."""
    if len(sys.argv) != 2:
        print("error: expected one suite file: python -m workflow.suite config/lab.yaml", file=sys.stderr)
        return 2
    try:
        read_suite(sys.argv[1]).check_templates()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
