"""That torture and determinism would see what they look for, and what they write down."""

import base64
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from icl_lib.provenance import provenance
from icl_lib.tables import SCHEMAS, write_table
from tests.support import trial
from tests.support.torture import Kill, Torture, incomplete, working, write_report
from tests.support.trial import record_tests, record_trial, unequal_tables

MADE_BY = provenance(suite="s", seed=0, dtype="", device="", bos="", parameters={})


def write(path, value):
    row = {"notebook": "n", "model": "m", "name": "x", "value": value, "low": 0.0, "high": 1.0, "p_value": 0.5,
           "smallest_p": 0.1, "n": 1}
    write_table(pd.DataFrame([row])[list(SCHEMAS["statistics"])], path, schema_name="statistics", provenance=MADE_BY)


def test_tables_that_differ_or_are_missing_are_named(tmp_path):
    for folder in ("a", "b"):
        write(tmp_path / folder / "same.parquet", 0.5)
    write(tmp_path / "a" / "only.parquet", 0.5)
    write(tmp_path / "a" / "deep" / "bit.parquet", 0.5)
    write(tmp_path / "b" / "deep" / "bit.parquet", float(np.nextafter(0.5, 1)))
    assert list(unequal_tables(tmp_path / "a", tmp_path / "b")) == ["deep/bit.parquet", "only.parquet"]


@pytest.fixture
def torture(tmp_path):
    """A finished book beside its undisturbed one."""
    made = Torture(tmp_path, "s", 1, np.random.default_rng(0))
    for results in (made.results, made.undisturbed):
        write(results / "statistics" / "t.parquet", 0.5)
    for name in ("notebooks/n.ipynb", "book/_build/html/index.html"):
        (made.results / name).parent.mkdir(parents=True)
        (made.results / name).write_text("first")
    return made


def problems(torture, monkeypatch, status=0, verified=""):
    done = subprocess.CompletedProcess([], int(bool(verified)), verified, "")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: done)
    torture.check(status)
    return torture.problems


def spoil_table(torture):
    write(torture.results / "statistics" / "t.parquet", 0.25)


def lose_table(torture):
    os.unlink(torture.results / "statistics" / "t.parquet")


def leave_temporary(torture):
    (torture.results / "statistics" / ".t.parquet.1.tmp").touch()


def lose_book(torture):
    os.unlink(torture.results / "book/_build/html/index.html")


def repeat_run(torture):
    path = torture.results / "notebooks/n.ipynb"
    os.replace(path, path.with_suffix(".old"))
    path.write_text("first")


def test_a_book_as_it_should_be_has_no_problems(torture, monkeypatch):
    torture._note("any time", 1.0, "planning")
    assert torture.kills == [Kill(1, 1, "any time", 1.0, "planning", 1, 0)]
    assert problems(torture, monkeypatch) == []


@pytest.mark.parametrize(("spoil", "message"), [
    (spoil_table, "table statistics/t.parquet is not the undisturbed one"),
    (lose_table, "table statistics/t.parquet is not the undisturbed one"),
    (leave_temporary, "temporary file .t.parquet.1.tmp is left"),
    (lose_book, "there is no book"),
    (repeat_run, "finished run results/s/notebooks/n.ipynb was lost or made again"),
])  # fmt: skip
def test_each_thing_that_is_lost_is_seen(torture, monkeypatch, spoil, message):
    torture._note("any time", 1.0, "planning")
    spoil(torture)
    assert problems(torture, monkeypatch) == [f"book 1: {message}"]


def test_a_failing_resume_and_stale_results_are_seen(torture, monkeypatch):
    assert problems(torture, monkeypatch, status=2, verified="a: stale\n") == [
        "book 1: make book ended with 2", "book 1: a: stale"]


def test_runs_that_snakemake_has_not_recorded_do_not_count_as_finished(torture):
    folder = torture.copy / ".snakemake" / "incomplete"
    folder.mkdir(parents=True)
    (folder / base64.urlsafe_b64encode(b"results/s/notebooks/n.ipynb").decode()).touch()
    assert incomplete(torture.copy) == {"results/s/notebooks/n.ipynb"}
    torture._note("any time", 1.0, "planning")
    assert torture.kills[0].finished_runs == 0


def test_what_was_at_work_is_read_from_the_processes_of_a_group():
    code = "import time; time.sleep(60)"
    arguments = ["workflow.run", "notebooks/scoring.ipynb"]
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], start_new_session=True)
    try:
        for _ in range(100):
            if working(process.pid) == "scoring":
                break
            time.sleep(0.05)
        assert working(process.pid) == "scoring"
        assert working(os.getpgid(0)) == "planning"
    finally:
        process.kill()
        process.wait()


def test_the_report_counts(torture, tmp_path):
    torture._note("any time", 2.0, "scoring")
    torture.problems.append("book 1: there is no book")
    write_report(torture, tmp_path, 1.0)
    text = (tmp_path / "report.md").read_text()
    assert "1 kills over 1 books of suite s" in text and "- book 1: there is no book" in text
    assert "| scoring | 1 |" in text
    assert (tmp_path / "report.csv").read_text().splitlines()[1] == "1,1,any time,2.0,scoring,1,0"


def test_trials_are_kept_a_line_each(tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "TRIALS", tmp_path / "trials.csv")
    record_trial("kills", "torture --kills 9", tried=9, passed=9)
    record_trial("faults", "python -m tests.support.trial", tried=4, passed=4)
    record_trial("kills", "torture --kills 3", tried=3, passed=3)  # a short form that went well
    assert trial.TRIALS.read_text() == (
        "trial,command,tried,passed\nfaults,python -m tests.support.trial,4,4\nkills,torture --kills 9,9,9\n")
    record_trial("kills", "torture --kills 3", tried=3, passed=2)  # one that did not
    assert "kills,torture --kills 3,3,2" in trial.TRIALS.read_text()
    report = tmp_path / "r.xml"
    report.write_text("<testsuites><testsuite><testcase/><testcase><failure/></testcase><testcase><skipped/></testcase>"
                      "</testsuite></testsuites>")
    record_tests("faults", "python -m tests.support.trial", report)
    assert "faults,python -m tests.support.trial,2,1" in trial.TRIALS.read_text()
    assert [p.name for p in Path(tmp_path).iterdir() if p.suffix == ".tmp"] == []
