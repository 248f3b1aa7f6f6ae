# What depends on what. Suites: config/*.yaml (default lab), checked by workflow/suite.py.
#   snakemake -n                                          the plan
#   snakemake --cores 2 --configfile config/smoke.yaml    another suite
import json
import shlex
import sys

sys.path.insert(0, str(workflow.basedir))

from workflow.cost import resources
from workflow.lock import LockedError, lock_sweep
from workflow.suite import GROUPED, RESULTS, TABLES, check_suite, committed, dependencies, place, read_suite, weights

try:
    # Not `configfile:`, which would mix the keys of the default suite into every other one.
    # Keys given on the command line alone go over the default suite.
    SUITE = check_suite(config) if "models" in config else read_suite("config/lab.yaml", over=config)
    SUITE.check_templates()
    CODE = {notebook: dependencies(notebook) for notebook in TABLES}
except (ValueError, OSError) as error:
    sys.exit(f"error: {error}")

OUT = SUITE.results
SCORED = [(model, step) for model, steps in SUITE.steps.items() for step in steps]
CHOSEN = {notebook: [(model, step) for model, steps in chosen.items() for step in steps]
          for notebook, chosen in SUITE.chosen.items()}
ABLATED = CHOSEN["ablation"]


def tables(kind, runs):
    return [f"{OUT}/{kind}/{model}/step{step}.parquet" for model, step in runs]


def measured(notebook, runs):
    """What runs of a notebook measured, without the numbers of its page."""
    return [path for kind in TABLES[notebook] if kind != "statistics" for path in tables(kind, runs)]


def written(notebook, stem=""):
    """The tables of a notebook's run; `stem` with its model and step, or with wildcards for them."""
    return [f"{OUT}/{place(notebook, kind)}{stem}.parquet" for kind in TABLES[notebook]]


def of_groups(notebook):
    """The tables of a notebook's runs over the models of included suites."""
    return [path for suite in SUITE.groups for path in written(notebook, f"/{suite.name}")]


def of_model(runs, model):
    return [run for run in runs if run[0] == model]


def swept_folder(notebook, point):
    return f"{OUT}/sweeps/{notebook}/{point}"


def swept_tables(notebook, point, model, step):
    return {table: f"{swept_folder(notebook, point)}/{place(notebook, table)}/{model}/step{step}.parquet"
            for table in TABLES[notebook]}


def swept_parameters(wildcards):
    notebook, model, step = wildcards.notebook, wildcards.model, int(wildcards.step)
    values = next(values for name, values, *run in SWEPT[notebook] if [name, *run] == [wildcards.point, model, step])
    given = SUITE.parameters(notebook, model=model, step=step) | {"results": swept_folder(notebook, wildcards.point)}
    return json.dumps(given | values, sort_keys=True)


def of_cluster(resource, notebook=None):
    """What a run asks a cluster for; on one machine its GPU, which runs of a suite share one after another."""
    return lambda wildcards: resources(SUITE, notebook or wildcards.notebook, wildcards.model)[resource]


def parameters(notebook):
    """JSON is YAML, and Snakemake notices when it changes."""
    return lambda wildcards: json.dumps(
        SUITE.parameters(
            notebook,
            model=getattr(wildcards, "model", ""),
            step=int(getattr(wildcards, "step", 0)),
            group=getattr(wildcards, "group", ""),
        ),
        sort_keys=True,
    )


NOTEBOOKS = [path.as_posix() for path in SUITE.notebooks]
SWEPT = {notebook: SUITE.swept(notebook) for notebook in SUITE.sweep}
JOINED = [f"{OUT}/sweeps/{notebook}/{table}.parquet" for notebook in SWEPT for table in TABLES[notebook]]
CAUSAL = sorted(str(path) for kind in ("csv", "yaml") for path in Path("lab/causal").rglob(f"*.{kind}"))
PAGE = f"{OUT}/book/_build/html/index.html"

PYTHON = shlex.quote(sys.executable)
# One or several threads a process, never more than its share: torch processes fight over cores.
RUN = (
    "printf '%s\\n' {params.parameters:q} > {log.parameters:q} && "
    "OMP_NUM_THREADS={threads} PYTHONHASHSEED=0 {PYTHON} -S workflow/warm.py "
    "--module workflow.run {input.template:q} {output.notebook:q} "
    "--parameters {log.parameters:q} --log {log.text:q} --results {OUT:q} --inputs {input:q}"
    + "".join(f" --committed {suite.tables}" for suite in (SUITE, *SUITE.included) if suite.tables)
)
RUN_WITH_TABLES = RUN + " --tables {output.tables:q}"


LOCKS = []  # held until this process ends


# Not for a dry run, nor when there is nothing to do.
onstart:
    try:
        LOCKS.append(lock_sweep(Path(OUT)))
    except (LockedError, OSError) as error:
        sys.exit(f"error: {error}")


wildcard_constraints:
    model=r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*",
    step=r"-?\d+",
    notebook="|".join(TABLES),
    point=r"[^/]+",
    table="[a-z]+",
    grouped="|".join(GROUPED),
    group="|".join(suite.name for suite in SUITE.groups) or "none",


# On a cluster the book is made where the sweep was started.
localrules: all, sweep, joined, book


rule all:
    input:
        PAGE,
        JOINED,


rule sweep:
    input:
        NOTEBOOKS,
        JOINED,


def made_by(notebook):
    """The committed tables of a run, or else the weights that it measures."""
    return lambda wildcards: (
        committed(SUITE, notebook, wildcards.model, int(wildcards.step))
        or weights(wildcards.model, int(wildcards.step)))


# Notebooks that run on a model at a step, and the tables of scoring that they need.
OF_STEP = {"scoring": (), "ablation": ("scores", "tasks"), "protocols": (), "task_execution": ("scores",),
           "example": ("scores", "accuracy")}
for NOTEBOOK, NEEDED in OF_STEP.items():

    rule:
        name:
            NOTEBOOK
        input:
            template=f"notebooks/{NOTEBOOK}.ipynb",
            code=CODE[NOTEBOOK],
            weights=made_by(NOTEBOOK),
            scores=[f"{OUT}/{kind}/{{model}}/step{{step}}.parquet" for kind in NEEDED],
        output:
            tables=written(NOTEBOOK, "/{model}/step{step}"),
            notebook=f"{OUT}/notebooks/{NOTEBOOK}/{{model}}/step{{step}}.ipynb",
        params:
            parameters=parameters(NOTEBOOK),
        log:
            text=f"{OUT}/logs/{NOTEBOOK}/{{model}}/step{{step}}.log",
            parameters=f"{OUT}/logs/{NOTEBOOK}/{{model}}/step{{step}}.yaml",
        resources:
            gpu=of_cluster("gpu", NOTEBOOK),
            mem_mb=of_cluster("mem_mb", NOTEBOOK),
            runtime=of_cluster("runtime", NOTEBOOK),
        threads: SUITE.threads
        shell:
            RUN_WITH_TABLES


rule swept:
    input:
        template="notebooks/{notebook}.ipynb",
        code=lambda wildcards: CODE[wildcards.notebook],
        weights=lambda wildcards: weights(wildcards.model, int(wildcards.step)),
        scores=lambda wildcards: [] if wildcards.notebook in ("scoring", "protocols")
        else [f"{OUT}/{kind}/{wildcards.model}/step{wildcards.step}.parquet" for kind in ("scores", "tasks")],
    output:
        notebook=f"{OUT}/sweeps/{{notebook}}/{{point}}/notebooks/{{model}}/step{{step}}.ipynb",
    params:
        parameters=swept_parameters,
        tables=lambda wildcards: list(
            swept_tables(wildcards.notebook, wildcards.point, wildcards.model, wildcards.step).values()),
        # The notebook looks for the scores in its own results folder.
        folder=lambda wildcards: swept_folder(wildcards.notebook, wildcards.point),
    log:
        text=f"{OUT}/logs/sweeps/{{notebook}}/{{point}}/{{model}}/step{{step}}.log",
        parameters=f"{OUT}/logs/sweeps/{{notebook}}/{{point}}/{{model}}/step{{step}}.yaml",
    resources:
        gpu=of_cluster("gpu"),
        mem_mb=of_cluster("mem_mb"),
        runtime=of_cluster("runtime"),
    threads: SUITE.threads
    shell:
        "for table in {input.scores:q}; do own={params.folder:q}\"${{table#{OUT}}}\" && mkdir -p \"${{own%/*}}\" "
        "&& cp \"$table\" \"$own\"; done && "
        + RUN + " --tables {params.tables:q}"


rule joined:
    input:
        lambda wildcards: [f"{swept_folder(wildcards.notebook, name)}/notebooks/{model}/step{step}.ipynb"
                           for name, _, model, step in SWEPT[wildcards.notebook]],
    output:
        f"{OUT}/sweeps/{{notebook}}/{{table}}.parquet",
    params:
        runs=lambda wildcards: json.dumps([
            {"point": values, "tables": swept_tables(wildcards.notebook, name, model, step)}
            for name, values, model, step in SWEPT[wildcards.notebook]]),
    log:
        f"{OUT}/logs/sweeps/{{notebook}}/{{table}}.json",
    shell:
        "printf '%s\n' {params.runs:q} > {log:q} && {PYTHON} -m workflow.sweep {log:q} {output:q}"


def of_seeds(wildcards):
    return [table for model in {wildcards.model, *SUITE.seeds_of(wildcards.model)}
            for table in measured("scoring", of_model(SCORED, model))]


# Notebooks that run once, or once for each model that is followed: what follows their names in files, what they read.
ALL = {
    "training_dynamics": ("/{model}", of_seeds, lambda wildcards: tables("effects", of_model(ABLATED, wildcards.model))),
    "model_scaling": ("", measured("scoring", SCORED), tables("effects", ABLATED)),
    "ablation_ladder": ("", sorted(map(str, Path("lab").glob("grid.csv"))), []),
    "causal_test": ("", CAUSAL, []),
    "claims": ("", measured("scoring", SCORED) + measured("ablation", ABLATED), tables(
        "executions", CHOSEN["task_execution"]) + of_groups("claims")),
    "lab": ("", measured("scoring", SCORED), sorted(str(path) for pattern in (
        "rungs/*.yaml", "models/*/*/curve.csv", "recipe.*") for path in Path("lab").glob(pattern))),
    "paper_figures": ("", measured("scoring", SCORED), [*written("claims"), *of_groups("claims"), *tables("scores", [
        (model, step) for suite in SUITE.groups for model, steps in suite.ablated.items() for step in steps])]),
    "index": ("", [path for kind in GROUPED for path in (*written(kind), *of_groups(kind))] + CAUSAL, [
        *tables("ablations", ABLATED), *(path for suite in SUITE.included for model, steps in suite.ablated.items()
                                         for path in tables("ablations", [(model, step) for step in steps]))]),
}
for NOTEBOOK, (OF, FIRST, SECOND) in ALL.items():

    rule:
        name:
            NOTEBOOK
        input:
            template=f"notebooks/{NOTEBOOK}.ipynb",
            code=CODE[NOTEBOOK],
            first=FIRST,
            second=SECOND,
        output:
            tables=written(NOTEBOOK, OF),
            notebook=f"{OUT}/notebooks/{NOTEBOOK}{OF}.ipynb",
        params:
            parameters=parameters(NOTEBOOK),
        log:
            text=f"{OUT}/logs/{NOTEBOOK}{OF}.log",
            parameters=f"{OUT}/logs/{NOTEBOOK}{OF}.yaml",
        threads: SUITE.threads
        shell:
            RUN_WITH_TABLES


def of_group(wildcards):
    suite, = [suite for suite in SUITE.included if suite.name == wildcards.group]
    runs = {notebook: [(model, step) for model, steps in chosen.items() for step in steps]
            for notebook, chosen in {"scoring": suite.steps, **suite.chosen}.items()}
    return measured("scoring", runs["scoring"]) + measured("ablation", runs["ablation"]) + (
        tables("executions", runs["task_execution"]))


# The notebooks over all models once more, over those of an included suite.
rule grouped:
    input:
        template="notebooks/{grouped}.ipynb",
        code=lambda wildcards: CODE[wildcards.grouped],
        tables=of_group,
    output:
        tables=[f"{OUT}/statistics/{{grouped}}/{{group}}.parquet"],
        notebook=f"{OUT}/notebooks/{{grouped}}/{{group}}.ipynb",
    params:
        parameters=lambda wildcards: parameters(wildcards.grouped)(wildcards),
    log:
        text=f"{OUT}/logs/{{grouped}}/{{group}}.log",
        parameters=f"{OUT}/logs/{{grouped}}/{{group}}.yaml",
    threads: SUITE.threads
    shell:
        RUN_WITH_TABLES


rule book:
    input:
        notebooks=NOTEBOOKS,
        settings=["_config.yml", "_toc.yml"],
        code=["workflow/book.py", "workflow/inert.py", "workflow/links.py", "workflow/runs.py"],
        pages=sorted(str(p) for p in Path("book").rglob("*") if p.is_file() and "_build" not in p.parts),
    output:
        PAGE,
    params:
        results=OUT,
    log:
        f"{OUT}/logs/book.log",
    shell:
        "{PYTHON} -m workflow.book {params.results:q} --log {log:q} --notebooks {input.notebooks:q}"
