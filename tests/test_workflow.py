import base64
import os
import re
import shutil
import subprocess
import sys
import time
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pandas as pd
import papermill
import pytest
import yaml

from icl_lib.tables import read_table, table_fingerprint
from tests.project import ROOT, make_project, notebook, suite, write_suite, write_template
from workflow.book import FIGURE, _smaller, build_unfinished, stage
from workflow.lock import lock_sweep
from workflow.notebooks import NOTEBOOKS
from workflow.run import main as run_main
from workflow.suite import SuiteError, check_suite, read_suite
from workflow.templates import (
    ParameterError,
    check_parameters,
    library_files,
    template_parameters,
    unclean_templates,
)
from workflow.verify import main as verify


@pytest.fixture
def project(tmp_path, monkeypatch):
    folder = make_project(tmp_path)
    monkeypatch.chdir(folder)
    return folder


# Suite files


def test_suite_fills_in_steps_and_parameters(project):
    found = check_suite(
        suite(models=[{"name": "models/tiny"}, {"name": "org/hub"}], parameters={"scoring": {"value": 2}})
    )
    assert found.steps == {"models/tiny": [0, 8, 64], "org/hub": [-1]}
    assert found.ablated == {"models/tiny": [64], "org/hub": [-1]}
    assert found.chosen["protocols"] == {"models/tiny": [], "org/hub": []}
    assert found.followed == ["models/tiny"]
    given = found.parameters("scoring", model="models/tiny", step=8)
    assert given == {
        "suite": "fake", "seed": 1, "results": "results/fake", "model": "models/tiny", "step": 8, "value": 2,
    }  # fmt: skip
    assert found.parameters("training_dynamics", model="models/tiny")["ablated_steps"] == [64]
    assert "ablated_models" not in found.parameters("model_scaling")  # not declared there


def model(**changes):
    return {"models": [{"name": "models/tiny"} | changes]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 1}, "unknown key 'seeds' in suite file, expected one of suite, seed,.*nearest: seed"),
        ({"suite": "../up"}, "suite: '../up' does not match"),
        ({"suite": 7}, "suite: 7 is not of type 'string'"),
        ({"seed": -1}, "seed: -1 is less than the minimum"),
        ({"seed": True}, "seed: True is not of type 'integer'"),
        ({"seed": "1"}, "seed: '1' is not of type 'integer'"),
        ({"threads": 0}, "threads: 0 is less"),
        ({"models": []}, "models: .*"),
        ({"models": ["models/tiny"]}, "models.0: 'models/tiny' is not of type 'object'"),
        ({"models": [{}]}, "models.0 lacks the key 'name'"),
        (model(step=[1]), "unknown key 'step' in models.0.*nearest: steps"),
        (model(steps="first"), "models.0.steps is 'first', expected all, last or a list"),
        (model(steps=[8, 8]), r"models.0.steps is \[8, 8\], expected"),
        (model(steps=[0.5]), "models.0.steps is"),
        (model(steps=[9]), "no step 9; nearest steps: 0, 8, 64"),
        (model(steps=[0, 8], ablate=[64]), "step 64 is not among its scored steps"),
        (model(execute="some"), "models.0.execute is .some., expected none, all, last or a list"),
        (model(name="models/../etc"), "models.0.name: .* does not match"),
        (model(name="/etc"), "does not match"),
        (model(name="a; rm -rf b"), "does not match"),
        (model(name="tiny"), "unknown model 'tiny'"),
        ({"models": [{"name": "models/tiny"}] * 2}, "models/tiny is listed twice"),
        ({"parameters": {"score": {}}}, "unknown key 'score' in parameters.*nearest: scoring"),
        ({"parameters": {"scoring": 3}}, "parameters.scoring: 3 is not of type 'object'"),
        ({"parameters": {"scoring": {"step": 3}}}, "step is set by the workflow"),
        ({"parameters": {"model_scaling": {"ablated_models": {}}}}, "ablated_models is set by the workflow"),
    ],
)
def test_bad_suites_are_refused_in_one_line(project, changes, message):
    with pytest.raises(SuiteError, match=message) as caught:
        check_suite(suite(**changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "- a", "suite: [", "7", "suite: \x00"])
def test_files_that_are_no_suites_are_named_in_one_line(project, content):
    (project / "config" / "odd.yaml").write_text(content)
    with pytest.raises(SuiteError, match="config/odd.yaml") as caught:
        read_suite("config/odd.yaml")
    assert "\n" not in str(caught.value)


def test_a_missing_suite_names_the_others(project):
    with pytest.raises(SuiteError, match="config/labb.yaml does not exist; there are lab"):
        read_suite("config/labb.yaml")


@pytest.mark.parametrize("overrides", [{"scoring": {"valu": 1.0}}, {"scoring": {"value": "1e-3"}}])
def test_overrides_are_checked_against_the_templates(project, overrides):
    with pytest.raises(ParameterError, match="valu"):
        check_suite(suite(parameters=overrides)).check_templates()


def test_the_repository_has_suites_whose_keys_are_those_of_the_schema():
    for path in (ROOT / "config").glob("*.yaml"):
        config = yaml.safe_load(path.read_text())
        if path.stem != "schema":
            assert config["suite"] == path.stem
            assert set(config.get("parameters", {})) <= set(NOTEBOOKS)


# Templates


def test_parameters_are_those_papermill_sees(project):
    templates = [*project.glob("notebooks/*.ipynb"), *ROOT.glob("notebooks/*.ipynb")]
    for path in templates:
        assert set(template_parameters(path)) == set(papermill.inspect_notebook(str(path))), path


def test_templates_of_the_repository_take_what_the_workflow_gives():
    of = {"step": {"model", "step"}, "model": {"model"}}
    for name, entry in NOTEBOOKS.items():
        given = {"suite", "seed", "results"} | of.get(entry.of, set())
        assert given <= set(template_parameters(ROOT / "notebooks" / f"{name}.ipynb")), name


def test_a_template_is_given_what_it_declares_and_has_to_declare_what_it_runs_on(project):
    for line, given in (("step: int = 0\nablated_steps: list = []", {"ablated_steps": [8]}), ("step: int = 0", {})):
        write_template(project, "scoring", f"model: str = ''\n{line}")
        content = nbformat.read("notebooks/scoring.ipynb", as_version=4)
        content.cells[1].source = content.cells[1].source.replace("step: int = 0  # optimiser step", line)
        nbformat.write(content, "notebooks/scoring.ipynb")
        found = check_suite(suite()).parameters("scoring", model="models/tiny", step=8)
        assert {name: found[name] for name in found if name.startswith("abl")} == given
    content.cells[1].source = content.cells[1].source.replace("step: int = 0", "")
    nbformat.write(content, "notebooks/scoring.ipynb")
    with pytest.raises(ParameterError, match="scoring.ipynb has no parameter 'step'"):
        check_suite(suite()).check_templates()


@pytest.mark.parametrize(
    ("declaration", "good", "bad"),
    [
        ("a: int = 1", [0, -3], [True, 1.0, "1", None]),
        ("a: float = 1.0", [0, 2.5], [True, "1e-3", None]),
        ("a: bool = True", [False], [0, "yes"]),
        ("a: str = ''", ["007"], [7, None]),
        ("a: list[int] = []", [[], [1, 2]], [[1, "2"], (1,), {}, "12"]),
        ("a: dict[str, list[int]] = {}", [{}, {"m": [0]}], [{1: [0]}, {"m": 0}, []]),
        ("a: list = []", [[1, "b"]], ["b"]),
        ('a: "int" = 1', [2], ["2"]),
        ("a = 2", [3], ["3"]),
    ],
)
def test_types_of_parameters(tmp_path, declaration, good, bad):
    path = tmp_path / "t.ipynb"
    nbformat.write(notebook(declaration), path)
    for value in good:
        check_parameters(path, {"a": value})
    for value in bad:
        with pytest.raises(ParameterError, match="parameter a is") as caught:
            check_parameters(path, {"a": value})
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("cells", "tagged", "message"),
    [
        (["a: int = 1"], None, "t.ipynb has 0 cells tagged parameters"),
        (
            ["model: str = ''\nsteps: list = []"],
            0,
            "no parameter 'modle', it has model, steps; nearest: model",
        ),
        (["modle: int = max(1, 2)"], 0, "default of modle is no literal"),
        (["modle: int | None = 1"], 0, r"type int \| None is none of"),
    ],
)
def test_bad_templates_and_unknown_parameters(tmp_path, cells, tagged, message):
    path = tmp_path / "t.ipynb"
    nbformat.write(notebook(*cells, parameters=tagged), path)
    with pytest.raises(ParameterError, match=message) as caught:
        check_parameters(path, {"modle": 1})
    assert "\n" not in str(caught.value)


def test_files_that_are_no_templates(tmp_path):
    (tmp_path / "t.ipynb").write_text("hello")
    with pytest.raises(ParameterError, match="is not a notebook"):
        template_parameters(tmp_path / "t.ipynb")
    with pytest.raises(ParameterError, match="does not exist"):
        template_parameters(tmp_path / "u.ipynb")


LIBRARY = {
    "icl_lib/__init__.py": "from icl_lib.a import thing\nfrom .b import other as renamed\nVERSION = 1\n",
    "icl_lib/a.py": "import numpy\nfrom icl_lib import c\n",
    "icl_lib/b.py": "def other():\n    from .d import late\n",
    "icl_lib/c.py": "",
    "icl_lib/d.py": "from lab.world import words\n",
    "icl_lib/e.py": "",
    "lab/__init__.py": "",
    "lab/world/__init__.py": "words = []\n",
}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from icl_lib import thing", "a c"),
        ("from icl_lib import renamed", "b d lab/world/__init__"),
        ("import icl_lib.e as e, numpy", "e"),
        ("%matplotlib inline\nfrom icl_lib.c import x\n!ls", "c"),
        ("from icl_lib import a", "a c"),
        ("if True:\n    from icl_lib.d import late", "d lab/world/__init__"),
        ("import numpy.linalg", ""),
        ("import icl_lib", "__init__ a b c d e lab/world/__init__"),
    ],
)
def test_dependencies_follow_imports_and_nothing_else(tmp_path, source, expected):
    for name, content in LIBRARY.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    nbformat.write(notebook("a = 1", source), tmp_path / "t.ipynb")
    names = {f"{n}.py" if "/" in n else f"icl_lib/{n}.py" for n in expected.split()}
    assert set(library_files(tmp_path / "t.ipynb", tmp_path)) == names


def test_outputs_in_templates_are_found(project):
    assert unclean_templates("notebooks") == []
    content = nbformat.read("notebooks/scoring.ipynb", as_version=4)
    content.cells[1].execution_count = 3
    nbformat.write(content, "notebooks/scoring.ipynb")
    assert unclean_templates("notebooks") == [
        "notebooks/scoring.ipynb: cell 1 has outputs, clear them before committing"
    ]


# One notebook


def run_scoring(parameters, capsys, *, table="out/t.parquet"):
    status = run_main(["notebooks/scoring.ipynb", "out/scoring.ipynb", "-y", yaml.safe_dump(parameters), "--log",
                       "out/logs/s.log", "--tables", table])
    return status, capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_failing_notebook_leaves_log_and_traceback_and_no_table(project, capsys):
    body = "open(f'{results}', 'w').write('half a table')\nraise OSError('the disk\\nis full')"
    write_template(project, "scoring", body)
    (project / "out").mkdir()
    (project / "out" / "scoring.ipynb").write_text("of an earlier run")
    status, error = run_scoring({"results": "out/t.parquet"}, capsys)
    assert status == 1
    assert error == (
        "error: scoring.ipynb failed: OSError: the disk (log out/logs/s.log, notebook out/logs/s.ipynb)\n"
    )
    assert sorted(p.name for p in (project / "out").rglob("*") if p.is_file()) == ["s.ipynb", "s.log"]
    assert "is full" in (project / "out/logs/s.log").read_text()
    outputs = [o for c in nbformat.read("out/logs/s.ipynb", as_version=4).cells for o in c.get("outputs", [])]
    assert any(o.output_type == "error" and o.ename == "OSError" for o in outputs)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("pass", "ended without writing out/t.parquet"),
        ("import os; os._exit(3)", "DeadKernelError: Kernel died"),
    ],
)
def test_runs_that_end_without_a_table_fail(project, capsys, body, message):
    write_template(project, "scoring", body)
    status, error = run_scoring({}, capsys)
    assert status == 1 and message in error and error.count("\n") == 1
    assert not (project / "out" / "scoring.ipynb").exists()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"value": "high"}, "parameter value is 'high' (str), expected float"),
        ({"modle": "m"}, "no parameter 'modle'"),
        (["model"], "the parameters are list, expected names with values"),
    ],
)
def test_bad_parameters_stop_before_anything_runs(project, capsys, parameters, message):
    status, error = run_scoring(parameters, capsys)
    assert status == 1 and message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (project / "out").exists()


# The workflow


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
    page = build_unfinished(read_suite("config/lab.yaml"), Path("log"))
    assert "Not finished" in page.with_name("scoring.html").read_text()
    assert (project / "results/fake/notebooks/causal_test.ipynb").is_file()
    left = planned(project)
    assert left["book"] == 1 and left["scoring"] == 2 and not {"causal_test", "ablation_ladder"} & set(left)


@pytest.mark.slow
def test_the_whole_workflow(project):
    everything = dict.fromkeys(
        ["ablation", "training_dynamics", "model_scaling", "claims", "lab", "paper_figures", "index", "book"], 1)
    everything |= {"scoring": 2, "ablation_ladder": 1, "causal_test": 1}
    assert planned(project) == everything
    assert not (project / "results").exists()
    status, output = snakemake(project)
    assert verify(["config/lab.yaml"]) == 0
    assert status == 0, output
    results = project / "results" / "fake"
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
        "tasks/models/tiny/step0.parquet", "tasks/models/tiny/step8.parquet", "curves/models/tiny/step8.parquet",
        "ablations/models/tiny/step8.parquet", "effects/models/tiny/step8.parquet",
        "statistics/scoring/models/tiny/step0.parquet", "statistics/scoring/models/tiny/step8.parquet",
        "statistics/ablation/models/tiny/step8.parquet", "statistics/training_dynamics/models/tiny.parquet",
        "statistics/model_scaling.parquet", "statistics/claims.parquet", "statistics/causal_test.parquet",
        "statistics/ablation_ladder.parquet",
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
        "error: config/lab.yaml: unknown key 'sed' in suite file, expected one of suite, seed, threads, include, "
        "tables, models, parameters, sweep; nearest: seed\n",
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
    assert planned(project, "results/fake/statistics/added.parquet") == {"scoring": 2, "added": 1}
    write_suite(project, parameters={"added": {"shares": 0.2}})
    status, output = snakemake(project, "-n")
    assert status == 1 and output.startswith("error: added.ipynb has no parameter 'shares'")


@pytest.mark.slow
def test_a_second_sweep_on_the_same_results_is_refused_and_changes_nothing(project):
    with lock_sweep(project / "results" / "fake"):
        status, output = snakemake(project, "--nolock", "sweep")
        assert status == 1 and output.splitlines()[-1].startswith(
            f"error: another sweep is at work on results/fake (process {os.getpid()} on "
        )
        assert [p.name for p in (project / "results" / "fake").iterdir() if p.suffix != ".lock"] == []
        assert planned(project)["scoring"] == 2  # a plan needs no lock


@pytest.mark.slow
def test_failures_are_named_others_finish_and_a_later_run_heals(project):
    write_template(project, "ablation", "raise ValueError('bad heads')")
    status, output = snakemake(project, "sweep")
    results = project / "results" / "fake"
    assert status != 0
    assert "error: ablation.ipynb failed: ValueError: bad heads (log results/fake/logs/ablation/" in output
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


def test_staging_fills_in_the_runs(project):
    results = project / "results" / "fake"
    names = ["scoring/models/a/step0", "scoring/models/a/step8", "scoring/models/b/step8", "model_scaling"]
    paths = [results / "notebooks" / f"{name}.ipynb" for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook(f"# {path.stem}", parameters=None), path)
    (project / "book" / "model_scaling.md").write_text("by hand")
    source = stage(results, paths, [results / "notebooks" / "training_dynamics" / "models" / "c.ipynb"])
    found = {p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file()}
    assert found >= {
        "_config.yml", "_toc.yml", "method.md", "scoring.ipynb", "model_scaling.md", "runs.md", "claims.md",
        "notebooks/scoring/models/a/step0.ipynb", "notebooks/scoring/models/a/step8.ipynb",
        "notebooks/model_scaling.ipynb",
    }  # fmt: skip
    assert "scoring.md" not in found
    chapters = yaml.safe_load((source / "_toc.yml").read_text())["parts"][0]["chapters"]
    assert [chapter["file"] for chapter in chapters] == ["scoring", "model_scaling", "training_dynamics", "runs"]
    assert [chapter.get("title") for chapter in chapters] == ["scoring", "model_scaling", None, None]
    assert chapters.pop()["sections"] == [
        {"file": "notebooks/scoring/models/a/step0", "title": "scoring: models/a, step0"},
        {"file": "notebooks/scoring/models/a/step8", "title": "scoring: models/a, step8"},
        {"file": "notebooks/model_scaling", "title": "model_scaling"},
    ]
    assert not any("sections" in chapter for chapter in chapters)
    # A chapter without a run says so, whether nothing was asked for or a run is missing, and so does the page of runs.
    assert (source / "claims.md").read_text().startswith("# claims\n\nNo model of this suite")
    assert "Not finished: `training_dynamics/models/c`" in (source / "training_dynamics.md").read_text()
    assert "**Missing:** `training_dynamics/models/c`" in (source / "runs.md").read_text()


def test_figures_of_pages_are_the_same_drawings_in_fewer_bytes():
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg">\n <path d="M 1.234567 2.5&#38;"/>\n  '
        '<g transform="scale(0.015625)"/>'
        '<text>a &amp; "b" #1 50%</text>\n</svg>')
    page = f'<img src="data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"/>'
    smaller = FIGURE.sub(_smaller, page)
    found = unescape(re.search(r'src="data:image/svg\+xml,([^"]*)"', smaller)[1])  # as a browser reads it
    assert unquote(found) == '<svg xmlns="http://www.w3.org/2000/svg"> <path d="M 1.23 2.5&#38;"/> ' \
        '<g transform="scale(0.015625)"/><text>a &amp; "b" #1 50%</text> </svg>'


@pytest.mark.slow
def test_a_warning_fails_the_book_in_one_line(project):
    (project / "book" / "index.md").write_text("# Stand-in\n\n[nowhere](missing.md)\n")  # no index notebook
    (project / "_toc.yml").write_text("format: jb-book\nroot: index\n")
    command = [sys.executable, "-m", "workflow.book", "results/fake", "--log", "results/fake/logs/book.log"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: the book has") and "missing" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (project / "results/fake/book/_build/html/index.html").exists()
