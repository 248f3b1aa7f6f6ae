"""What `make verify` says about results that were made by the present code, and about every kind that was not."""

import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest

from icl_lib.provenance import provenance
from icl_lib.tables import SCHEMAS, write_table
from tests.project import make_project, write_suite, write_template
from workflow.inputs import MADE_FROM, made_from
from workflow.suite import dependencies, read_suite, weights
from workflow.verify import main, problems

SCORES = "results/lab/scores/models/tiny/step8.parquet"


@pytest.fixture
def results(tmp_path, monkeypatch):
    """The results of a suite as the workflow leaves them, but for the numbers: all tables are empty."""
    monkeypatch.chdir(make_project(tmp_path))
    own = read_suite("config/lab.yaml")
    folder = tmp_path / own.results
    for run in own.runs:
        inputs = [f"notebooks/{run.notebook}.ipynb", *dependencies(run.notebook)]
        if run.step is not None:
            inputs += weights(run.model, run.step)
        if run.notebook == "ablation":
            inputs.append(SCORES)
        finish(folder.relative_to(tmp_path), own, run, [Path(name) for name in inputs], monkeypatch)
    return folder.relative_to(tmp_path)


def finish(folder, own, run, inputs, monkeypatch):
    record = made_from(inputs, own.given(run), folder)
    (folder / run.executed).parent.mkdir(parents=True, exist_ok=True)
    (folder / run.executed).write_text(json.dumps({"metadata": {"made_from": record}}))
    Path("record.json").write_text(json.dumps(record))
    monkeypatch.setenv(MADE_FROM, str(Path("record.json").resolve()))
    made_by = provenance(suite="lab", seed=1, dtype="", device="", bos="", parameters={})
    for name, kind in run.tables.items():
        write_table(pd.DataFrame(columns=list(SCHEMAS[kind])), folder / name, schema_name=kind, provenance=made_by)
    monkeypatch.delenv(MADE_FROM)


def found():
    lines = problems(read_suite("config/lab.yaml"))
    assert all("\n" not in line for line in lines)
    return lines


def test_results_of_the_present_code_agree(results, capsys):
    assert found() == []
    assert main(["config/lab.yaml"]) == 0
    assert capsys.readouterr().out == "results/lab: 12 runs and their tables agree with the code\n"


def test_all_problems_are_listed_and_the_exit_status_says_so(results, capsys):
    os.truncate(SCORES, 100)
    (results / "scores" / "odd.parquet").touch()
    assert main(["config/lab.yaml"]) == 1
    lines = capsys.readouterr().out.splitlines()
    # the ablation was made from the table that is no longer readable
    assert [line.split(":")[0] for line in lines] == [
        "results/lab/ablations/models/tiny/step8.parquet", "results/lab/curves/models/tiny/step8.parquet",
        "results/lab/effects/models/tiny/step8.parquet",
        "results/lab/notebooks/ablation/models/tiny/step8.ipynb", "results/lab/scores/models/tiny/step8.parquet",
        "results/lab/scores/odd.parquet", "results/lab/statistics/ablation/models/tiny/step8.parquet", "results/lab",
    ]  # fmt: skip
    assert lines[-1] == "results/lab: 7 problems"


def edit_template(results):
    write_template(".", "scoring", "print('changed')")


def edit_library(results):
    with open("icl_lib/heads.py", "a") as file:
        file.write("\n")


def train_again(results):
    with open("models/tiny/step8/model.safetensors", "ab") as file:
        file.write(b"!")


def empty_config(results):
    Path("models/tiny/step8/config.json").write_text("")


def change_parameter(results):
    write_suite(".", parameters={"scoring": {"value": 0.75}})


def change_seed(results):
    write_suite(".", seed=2)


def rewrite(**changes):
    def change(results):
        made_by = provenance(suite="lab", seed=1, dtype="", device="", bos="", parameters={}) | changes
        Path(SCORES).unlink()  # or it would be left as it is
        write_table(pd.DataFrame(columns=list(SCHEMAS["scores"])), SCORES, schema_name="scores", provenance=made_by)

    return change


def older_versions(results):
    import pyarrow.parquet as pq

    table = pq.read_table(SCORES, partitioning=None)
    metadata = json.loads(table.schema.metadata[b"icl_lib"])
    metadata["provenance"]["versions"]["torch"] = "1.0"
    pq.write_table(table.replace_schema_metadata({b"icl_lib": json.dumps(metadata).encode()}), SCORES)


@pytest.mark.parametrize(
    ("change", "path", "message"),
    [
        (edit_template, SCORES, "stale, notebooks/scoring.ipynb has changed; run the suite again"),
        (edit_template, "results/lab/notebooks/scoring/models/tiny/step8.ipynb", "stale, notebooks/scoring.ipynb has"),
        (edit_template, "results/lab/ablations/models/tiny/step8.parquet",
         "stale, scores/models/tiny/step8.parquet is stale"),
        (edit_template, "results/lab/notebooks/ablation/models/tiny/step8.ipynb", "stale, scores/models/tiny/step8.p"),
        (edit_library, SCORES, "stale, icl_lib/heads.py has changed"),
        (train_again, SCORES, "stale, models/tiny/step8/model.safetensors has changed"),
        (empty_config, SCORES, "stale, models/tiny/step8/config.json has changed"),
        (change_parameter, SCORES, 'stale, parameter value was "not given", is 0.75'),
        (change_seed, SCORES, "stale, parameter seed was 1, is 2"),
        (older_versions, SCORES, "stale, torch was 1.0, is "),
        (rewrite(), SCORES, "stale, it does not say what it was made from"),
        (rewrite(suite="other"), SCORES, "foreign, made by suite 'other'"),
        (rewrite(), "results/lab/ablations/models/tiny/step8.parquet",
         "stale, scores/models/tiny/step8.parquet has changed"),
        (lambda r: os.truncate(SCORES, 0), SCORES, "unreadable, it is truncated or not a parquet file"),
        (lambda r: shutil.copy(r / "accuracy/models/tiny/step8.parquet", SCORES), SCORES,
         "unreadable, it holds the table 'accuracy', expected 'scores'"),
        (lambda r: pd.DataFrame({"a": [1]}).to_parquet(SCORES), SCORES,
         "not one of icl_lib: it has no provenance; remove it and run the suite again"),
        (lambda r: os.unlink(SCORES), SCORES, "missing, though notebooks/scoring/models/tiny/step8.ipynb is there"),
        (lambda r: os.unlink(r / "notebooks/lab.ipynb"), "results/lab/notebooks/lab.ipynb", "missing"),
        (lambda r: os.unlink(r / "notebooks/model_scaling.ipynb"), "results/lab/notebooks/model_scaling.ipynb",
         "missing, though statistics/model_scaling.parquet is there"),
        (lambda r: (r / "notebooks/lab.ipynb").write_text("{"), "results/lab/notebooks/lab.ipynb",
         "stale, it does not say what it was made from"),
        (lambda r: (r / "notebooks/lab.ipynb").write_text('{"metadata": {}}'), "results/lab/notebooks/lab.ipynb",
         "stale, it does not say what it was made from"),
        (lambda r: shutil.copy(SCORES, r / "scores/models/tiny/step64.parquet"),
         "results/lab/scores/models/tiny/step64.parquet", "foreign, no notebook of suite lab makes it"),
        (lambda r: (r / "scores/.step8.parquet.7.tmp").touch(), "results/lab/scores/.step8.parquet.7.tmp",
         "temporary file left by a run that was killed"),
        (lambda r: Path(f"{SCORES}.damaged").touch(), f"{SCORES}.damaged", "set aside because it could not be read"),
        (lambda r: (r / "notebooks/.x.7.tmp").touch(), "results/lab/notebooks/.x.7.tmp", "temporary file left"),
    ],
)  # fmt: skip
def test_what_does_not_agree_is_named(results, change, path, message):
    change(results)
    lines = [line for line in found() if line.startswith(f"{path}: ")]
    assert len(lines) == 1 and message in lines[0], found()


def test_copies_that_the_points_of_a_sweep_keep_are_no_problem(results):
    for name in ("measured/scores/m/step8.parquet", "scores/m/step8.parquet"):
        path = results / "sweeps/scoring/value=1" / name
        path.parent.mkdir(parents=True)
        shutil.copy(SCORES, path)
    (line,) = found()
    assert line.startswith("results/lab/sweeps/scoring/value=1/scores/m/step8.parquet: foreign")


def test_logs_locks_and_unfinished_work_are_no_problem(results):
    for name in ("logs/scoring.log", ".sweep.lock", ".runs.lock", "partial/m/step0/abc.safetensors", "book/x.html"):
        (results / name).parent.mkdir(parents=True, exist_ok=True)
        (results / name).touch()
    assert found() == []


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["config/labb.yaml"]])
def test_bad_arguments_are_one_line(results, capsys, arguments):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


def test_a_suite_without_results_misses_everything(tmp_path, monkeypatch):
    monkeypatch.chdir(make_project(tmp_path))
    assert len(found()) == 12 and all(line.endswith(": missing") for line in found())
