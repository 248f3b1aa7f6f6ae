"""One notebook run by the workflow: what it leaves where it fails, and what stops it before it starts."""

import json

import nbformat
import pytest

from tests.project import write_template
from workflow.run import main as run_main


def run_scoring(parameters, capsys, *, table="out/t.parquet"):
    status = run_main(["notebooks/scoring.ipynb", "out/scoring.ipynb", "--parameters", json.dumps(parameters),
                       "--log", "out/logs/s.log", "--tables", table])
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
        ({"modle": "m"}, "unknown parameter of scoring.ipynb 'modle'"),
    ],
)
def test_bad_parameters_stop_before_anything_runs(project, capsys, parameters, message):
    status, error = run_scoring(parameters, capsys)
    assert status == 1 and message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (project / "out").exists()
