"""The workflow as Snakemake sees it: what runs, what runs again, and what a failure leaves."""

import os
import shutil
import subprocess
import sys
import time

import nbformat
import pandas as pd
import pytest

from icl_lib.tables import read_table, table_fingerprint
from tests.project import notebook, write_suite, write_template
from workflow.book import build_unfinished
from workflow.lock import lock_sweep
from workflow.suite import read_suite
from workflow.verify import main as verify


def snakemake(project, *arguments):
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--keep-going", *arguments]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=300, env=environment)
    return done.returncode, done.stdout + done.stderr


def planned(project, *arguments):
    """How many jobs of each rule a dry run lists."""
    status, output = snakemake(project, "-n", *arguments)
    assert status == 0, output
    if "Nothing to be done" in output:
        return {}
    rows = output.split("Job stats:")[1].split("\n\n")[0].splitlines()[3:]
    counts = {row.split()[0]: int(row.split()[1]) for row in rows}
    return {rule: n for rule, n in counts.items() if rule not in ("total", "all", "sweep")}


def touch(path, text):
    time.sleep(0.02)
    path.write_text(path.read_text() + text)


@pytest.mark.slow
def test_the_book_of_committed_tables_comes_first_and_does_not_pass_for_the_whole_one(project):
    status, output = snakemake(project, "committed")
    assert status == 0, output
    page = build_unfinished(read_suite("config/lab.yaml"))
    assert "Not finished" in page.with_name("scoring.html").read_text()
    assert (project / "results/lab/notebooks/causal_test.ipynb").is_file()
    left = planned(project)
    assert left["book"] == 1 and left["scoring"] == 2 and not {"causal_test", "ablation_ladder"} & set(left)


@pytest.mark.end_to_end
def test_the_whole_workflow(project):
    everything = dict.fromkeys(
        ["ablation", "training_dynamics", "model_scaling", "claims", "lab", "paper_figures", "index", "book"], 1)
    everything |= {"scoring": 2, "ablation_ladder": 1, "causal_test": 1, "two_papers": 1}
    assert planned(project) == everything
    assert not (project / "results").exists()
    status, output = snakemake(project)
    assert verify(["config/lab.yaml"]) == 0
    assert status == 0, output
    results = project / "results" / "lab"
    assert (results / "book/_build/html/index.html").is_file()
    html = results / "book/_build/html"
    assert "scoring" in (html / "scoring.html").read_text()  # the last step of the last model
    assert "models/tiny, step0" in (html / "index.html").read_text()
    assert (html / "notebooks/scoring/models/tiny/step0.html").is_file()
    assert not (html / "notebooks/scoring/models/tiny/step8.html").exists()
    # The page asks nothing of the network, and every table is there as CSV.
    text = (html / "index.html").read_text()
    assert "unpkg.com" not in text and (html / "_static/plotly.min.js").is_file()
    scores = pd.read_csv(html / "tables/scores/models/tiny/step8.csv")
    assert scores["value"].tolist() == [8.5]
    found = {p.relative_to(results).as_posix() for p in results.rglob("*.parquet")}
    assert found == {
        "scores/models/tiny/step0.parquet", "scores/models/tiny/step8.parquet",
        "accuracy/models/tiny/step0.parquet", "accuracy/models/tiny/step8.parquet",
        "samples/models/tiny/step0.parquet", "samples/models/tiny/step8.parquet",
        "tasks/models/tiny/step0.parquet", "tasks/models/tiny/step8.parquet", "curves/models/tiny/step8.parquet",
        "ablations/models/tiny/step8.parquet", "effects/models/tiny/step8.parquet",
        "statistics/scoring/models/tiny/step0.parquet", "statistics/scoring/models/tiny/step8.parquet",
        "statistics/ablation/models/tiny/step8.parquet", "statistics/training_dynamics/models/tiny.parquet",
        "statistics/model_scaling.parquet", "statistics/claims.parquet", "statistics/causal_test.parquet",
        "statistics/ablation_ladder.parquet", "statistics/two_papers.parquet",
    }  # fmt: skip
    assert read_table(results / "scores/models/tiny/step8.parquet").value[0] == 8.5
    assert not list((results / "logs").rglob("*.ipynb"))

    assert planned(project) == {}
    # What depends on an edited file runs again, and no more.
    library = project / "icl_lib"
    original = (library / "stats/intervals.py").read_text()
    touch(library / "figures/common.py", "\n# edited\n")  # nobody uses it
    touch(library / "stats/intervals.py", "\n# edited\n")
    assert planned(project) == {"model_scaling": 1, "index": 1, "book": 1}
    (library / "stats/intervals.py").write_text(original)
    touch(project / "book" / "method.md", "\nMore.\n")
    assert planned(project) == {"book": 1}
    touch(project / "models/tiny/step8/config.json", " ")
    reads_no_model = {"ablation_ladder": 1, "causal_test": 1}
    assert planned(project) | reads_no_model == everything | {"scoring": 1}
    assert not reads_no_model.keys() & planned(project).keys()
    assert planned(project, "--config", "seed=2") == everything
    entry = {"name": "models/tiny", "steps": [0, 8], "ablate": "none", "protocols": "last", "execute": [8],
             "example": "last"}
    write_suite(project, models=[entry])
    chosen = planned(project)
    assert chosen["protocols"] == chosen["task_execution"] == chosen["example"] == 1 and "ablation" not in chosen
    write_suite(project)
    assert snakemake(project, "-n", "--config", "sed=2") == (
        1,
        "error: config/lab.yaml: unknown key of suite file 'sed'; valid are suite, seed, threads, include, "
        "tables, models, parameters, intermediate, sweep; nearest: seed\n",
    )


@pytest.mark.slow
def test_a_notebook_is_added_by_its_template_and_one_entry(project):
    """And a line of the table of contents, for its place in the book."""
    entries = project / "workflow" / "notebooks.py"
    entries.write_text(entries.read_text().replace(
        '    "lab": Notebook(', '    "added": Notebook(reads=("scores",)),\n    "lab": Notebook('))
    declared = 'suite: str = "s"\nseed: int = 0\nresults: str = "r"\nmodels: dict = {}\nshare: float = 0.1'
    nbformat.write(notebook(declared), project / "notebooks" / "added.ipynb")
    write_suite(project, parameters={"added": {"share": 0.2}})
    assert planned(project, "results/lab/statistics/added.parquet") == {"scoring": 2, "added": 1}
    write_suite(project, parameters={"added": {"shares": 0.2}})
    status, output = snakemake(project, "-n")
    assert status == 1 and output.startswith("error: unknown parameter of added.ipynb 'shares'")


@pytest.mark.slow
def test_a_second_sweep_on_the_same_results_is_refused_and_changes_nothing(project):
    with lock_sweep(project / "results" / "lab"):
        status, output = snakemake(project, "--nolock", "sweep")
        assert status == 1 and output.splitlines()[-1].startswith(
            f"error: another sweep is at work on results/lab (process {os.getpid()} on "
        )
        assert [p.name for p in (project / "results" / "lab").iterdir() if p.suffix != ".lock"] == []
        assert planned(project)["scoring"] == 2  # a plan needs no lock


@pytest.mark.end_to_end
def test_failures_are_named_others_finish_and_a_later_run_heals(project):
    write_template(project, "ablation", "raise ValueError('bad heads')")
    status, output = snakemake(project, "sweep")
    results = project / "results" / "lab"
    assert status != 0
    assert "error: ablation.ipynb failed: ValueError: bad heads (log results/lab/logs/ablation/" in output
    assert (results / "logs/ablation/models/tiny/step8.ipynb").is_file()
    assert not (results / "ablations/models/tiny/step8.parquet").exists()
    assert (results / "scores/models/tiny/step8.parquet").is_file()
    shutil.copytree(results / "scores", project / "before")
    write_template(project, "ablation")
    status, output = snakemake(project, "sweep")
    assert status == 0, output
    assert "localrule ablation" in output and "localrule scoring" not in output
    assert not (results / "logs/ablation/models/tiny/step8.ipynb").exists()
    for table in (project / "before").rglob("*.parquet"):
        assert table_fingerprint(table) == table_fingerprint(results / "scores" / table.relative_to(project / "before"))
