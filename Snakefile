# What depends on what. Suites: config/*.yaml (default lab), checked by workflow/suite.py; notebooks: workflow/notebooks.py.
#   snakemake -n                                          the plan
#   snakemake --cores 2 --configfile config/smoke.yaml    another suite
import json
import logging
import shlex
import sys

sys.path.insert(0, str(workflow.basedir))

from benchmarks.cost import resources
from workflow.lock import lock_sweep
from workflow.notebooks import NOTEBOOKS, Run
from workflow.progress import Progress, quiet_terminal
from workflow.suite import dependencies, read_suite

try:
    # Not `configfile:`, which would mix the keys of the default suite into every other one.
    # Keys given on the command line go over those of the file.
    SUITE = read_suite((workflow.configfiles or ["config/lab.yaml"])[-1], over=config)
    SUITE.check_templates()
    CODE = {notebook: dependencies(notebook) for notebook in NOTEBOOKS}
except (ValueError, OSError) as error:
    sys.exit(f"error: {error}")

TOLD = workflow.output_settings
if not TOLD.dryrun and "rules" in [quiet.name.lower() for quiet in TOLD.quiet or ()]:
    quiet_terminal()
OUT = SUITE.results
RUNS = {run.executed: run for run in SUITE.runs}
PAGES = [path.as_posix() for path in SUITE.notebooks]
PAGE = f"{OUT}/book/_build/html/index.html"
# All kinds of runs, by the name of their rule.
KINDS = {"step": {"model": "{model}", "step": "{step}"}, "model": {"model": "{model}"}, "suite": {}, "book": {}}
RULES = {name: Run(name, **KINDS[notebook.of]) for name, notebook in NOTEBOOKS.items()}
RULES |= {f"{name}_of_group": Run(name, group="{group}") for name, notebook in NOTEBOOKS.items() if notebook.grouped}
RULES |= {f"swept_{name}": Run(name, **KINDS["step"], point="{point}") for name in SUITE.sweep}

PYTHON = shlex.quote(sys.executable)
COMMITTED = [suite.tables for suite in (SUITE, *SUITE.included) if suite.tables]
LOCKS = []  # held until this process ends


# Not for a dry run, nor when there is nothing to do.
onstart:
    try:
        LOCKS.append(lock_sweep(Path(OUT)))
    except (RuntimeError, OSError) as error:
        sys.exit(f"error: {error}")
    logging.getLogger("snakemake.logging").addHandler(Progress(workflow.dag))


wildcard_constraints:
    model=r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*",
    step=r"-?\d+",
    point=r"[^/]+",
    group="|".join(suite.name for suite in SUITE.groups) or "none",


# On a cluster the book is made where the sweep was started.
localrules: all, sweep, committed, joined, book


rule all:
    input:
        PAGE,
        list(SUITE.joined),


rule sweep:
    input:
        PAGES,
        list(SUITE.joined),


rule committed:
    input:
        [f"{OUT}/{run.executed}" for run in SUITE.committed_runs],


def of_run(kind, what):
    """What depends on the run that the wildcards of this kind stand for."""
    def asked(wildcards):
        path = kind.executed.format(**dict(wildcards.items()))
        # A file that no rule makes: then the table is another rule's, or nobody's.
        return what(RUNS[path]) if path in RUNS else f"{path} is no run of suite {SUITE.name}"
    return asked


# One or several threads a process, never more than its share: torch processes fight over cores.
for NAME, KIND in RULES.items():

    rule:
        name:
            NAME
        input:
            template=KIND.template,
            code=CODE[KIND.notebook],
            read=of_run(KIND, SUITE.inputs),
        output:
            tables=[f"{OUT}/{path}" for path in KIND.tables],
            notebook=f"{OUT}/{KIND.executed}",
        params:
            # JSON is YAML, and Snakemake notices when it changes.
            parameters=of_run(KIND, lambda run: json.dumps(SUITE.given(run), sort_keys=True)),
            committed=[] if KIND.point else COMMITTED,
        log:
            f"{OUT}/{KIND.log}",
        resources:
            # What a run asks a cluster for; on one machine its GPU, which runs of a suite share one after another.
            **{name: of_run(KIND, lambda run, name=name: resources(SUITE, run)[name])
               for name in ("gpu", "mem_mb", "runtime")},
        threads: SUITE.threads
        shell:
            "OMP_NUM_THREADS={threads} PYTHONHASHSEED=0 {PYTHON} -S workflow/warm.py --module workflow.run "
            "{input.template:q} {output.notebook:q} --parameters {params.parameters:q} --log {log:q} --results {OUT:q} "
            "--inputs {input:q} --committed {params.committed:q} --tables {output.tables:q}"


# Snakemake looks at all inputs of a job once for each of its outputs: one job for each model.
COPIES = {}
for copy, original in SUITE.copied.items():
    COPIES.setdefault(Path(copy).relative_to(OUT).parts[1:-1], {})[copy] = original

for copies in COPIES.values():

    rule:
        input:
            list(copies.values()),
        output:
            list(copies),
        shell:
            "{PYTHON} -c 'import shutil, sys; n = len(sys.argv) // 2; "
            "[*map(shutil.copyfile, sys.argv[1 : n + 1], sys.argv[n + 1 :])]' {input:q} {output:q}"


rule joined:
    input:
        lambda wildcards: list(SUITE.joined[f"{OUT}/sweeps/{wildcards.table}.parquet"]),
    output:
        f"{OUT}/sweeps/{{table}}.parquet",
    params:
        parts=lambda wildcards, output: json.dumps(SUITE.joined[output[0]]),
    wildcard_constraints:
        table="[a-z_]+/[a-z]+",
    shell:
        "{PYTHON} -m workflow.sweep {output:q} {params.parts:q}"


rule book:
    input:
        notebooks=PAGES,
        settings=["_config.yml", "_toc.yml"],
        code=["workflow/book.py", "workflow/inert.py", "workflow/runs.py"],
        pages=sorted(str(p) for p in Path("book").rglob("*") if p.is_file() and "_build" not in p.parts),
    output:
        PAGE,
    log:
        f"{OUT}/logs/book.log",
    shell:
        "{PYTHON} -m workflow.book {OUT:q} --notebooks {input.notebooks:q} > /dev/null"
