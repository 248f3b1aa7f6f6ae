"""Committed tables of steps along training: shown without weights and without a page for each."""

import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.project import suite, write_suite
from workflow import measure
from workflow.notebooks import Run
from workflow.suite import check_suite, read_suite
from workflow.verify import problems

STEPS = {"models": [{"name": "models/tiny", "steps": [0, 8, 64]}]}
SWEEP = [sys.executable, "-m", "snakemake", "--quiet", "--cores", "2", "--nolock", "sweep"]


@pytest.mark.slow
def test_committed_steps_need_no_weights_and_have_no_page(project):
    write_suite(project, **STEPS)
    subprocess.run(SWEEP, check=True, capture_output=True)
    dynamics = Path("results/lab/statistics/training_dynamics/models/tiny.parquet")
    rise = pd.read_parquet(dynamics)["value"].tolist()
    for kind in ("scores", "accuracy", "tasks", "samples"):
        shutil.copytree(f"results/lab/{kind}", f"kept/{kind}", ignore=shutil.ignore_patterns("step64*"))
    for folder in ("results", ".snakemake", "models/tiny/step0", "models/tiny/step8"):
        shutil.rmtree(folder)
    write_suite(project, **STEPS, tables="kept")
    subprocess.run(SWEEP, check=True, capture_output=True)
    assert pd.read_parquet(dynamics)["value"].tolist() == rise
    assert sorted(path.name for path in Path("results/lab/notebooks/scoring").rglob("*.ipynb")) == ["step64.ipynb"]
    found = read_suite("config/lab.yaml")
    assert not [line for line in problems(found) if "/step0" in line or "/step8" in line]
    shutil.copy("kept/scores/models/tiny/step0.parquet", "results/lab/scores/models/tiny/step8.parquet")
    Path("results/lab/accuracy/models/tiny/step0.parquet").unlink()
    assert [line.split("; ")[0] for line in problems(found) if "tiny/step" in line.split(": ")[0]] == [
        "results/lab/accuracy/models/tiny/step0.parquet: missing",
        "results/lab/scores/models/tiny/step8.parquet: stale, kept/scores/models/tiny/step8.parquet is another"]


def test_a_step_without_weights_and_without_tables_is_refused(project):
    shutil.rmtree("models/tiny/step8")
    for tables in ({}, {"tables": "kept"}):
        with pytest.raises(ValueError, match="no step 8; nearest steps: 0, 64"):
            check_suite(suite(**STEPS, **tables))
    Path("kept/scores/models/tiny").mkdir(parents=True)
    Path("kept/scores/models/tiny/step8.parquet").touch()
    found = check_suite(suite(**STEPS, tables="kept"))
    assert list(found.copied) == ["results/lab/scores/models/tiny/step8.parquet"]
    assert Run("scoring", "models/tiny", 8) not in found.runs and Run("scoring", "models/tiny", 0) in found.runs


@pytest.mark.usefixtures("project")
def test_further_seeds_are_tables_without_weights_and_pages():
    """They stand beside the first seed on its page."""
    models = [*STEPS["models"], {"name": "models/tiny-seed1", "steps": [0, 8], "ablate": "none"}]
    for step in (0, 8):
        path = Path(f"kept/scores/models/tiny-seed1/step{step}.parquet")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = check_suite(suite(models=models, tables="kept"))
    assert list(found.copied) == [f"results/lab/scores/models/tiny-seed1/step{step}.parquet" for step in (0, 8)]
    assert not [run for run in found.runs if run.model == "models/tiny-seed1"]
    assert found.seeds_of("models/tiny") == {"models/tiny": [0, 8, 64], "models/tiny-seed1": [0, 8]}
    assert set(found.copied) <= set(found.inputs(Run("training_dynamics", "models/tiny")))


@pytest.mark.usefixtures("project")
def test_of_a_step_without_a_page_is_kept_what_others_read(monkeypatch):
    monkeypatch.setattr(measure, "run_notebook", lambda *_, **__: None)
    kept = [path for _, path in measure.measure(check_suite(suite(**STEPS, tables="kept")), "models/tiny")]
    kinds = {step: {path.parts[1] for path in kept if path.stem == f"step{step}"} for step in (0, 64)}
    assert kinds[0] == {"scores", "accuracy", "tasks"}
    assert kinds[64] == kinds[0] | {"samples", "ablations", "effects", "curves"}
