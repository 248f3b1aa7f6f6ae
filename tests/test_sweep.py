"""Grids of a notebook's parameters: names, what is refused, and one table of all runs through the real workflow."""

import subprocess
import sys

import pandas as pd
import pytest

from tests.project import suite, write_suite
from workflow.suite import check_suite, points, read_suite
from workflow.verify import problems


def test_every_combination_has_a_name():
    assert points({"n_shots": [0, 4], "seed": [1, 2]}) == {
        "n_shots=0,seed=1": {"n_shots": 0, "seed": 1}, "n_shots=0,seed=2": {"n_shots": 0, "seed": 2},
        "n_shots=4,seed=1": {"n_shots": 4, "seed": 1}, "n_shots=4,seed=2": {"n_shots": 4, "seed": 2},
    }  # fmt: skip
    assert list(points({"shots": [[0, 1], [10]]})) == ["shots=_0_1_", "shots=_10_"]
    assert list(points({"path": ["../a b"]})) == ["path=.._a_b"]
    with pytest.raises(ValueError, match="two points are called path=a_b"):
        points({"path": ["a b", "a/b"]})


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"score": {"value": [1]}}, "unknown key of sweep 'score'; .*nearest: scoring"),
        ({"scoring": {}}, "sweep.scoring"),
        ({"scoring": {"value": []}}, "sweep.scoring.value"),
        ({"scoring": {"value": 1}}, "sweep.scoring.value: 1 is not of type 'array'"),
        ({"scoring": {"step": [1]}}, "sweep.scoring: step is set by the workflow"),
        ({"scoring": {"value": ["a b", "a/b"]}}, "two points are called value=a_b"),
    ],
)
def test_bad_grids_are_refused_in_one_line(project, sweep, message):
    with pytest.raises(ValueError, match=message) as error:
        check_suite(suite(sweep=sweep))
    assert "\n" not in str(error.value)


def test_grids_are_checked_against_the_templates(project):
    with pytest.raises(ValueError, match="unknown parameter of scoring.ipynb 'valu'"):
        check_suite(suite(sweep={"scoring": {"valu": [1.0]}})).check_templates()
    with pytest.raises(ValueError, match="sweep.protocols: the suite runs protocols on no model"):
        check_suite(suite(sweep={"protocols": {"seed": [1]}})).check_templates()


@pytest.mark.slow
def test_runs_over_a_grid_land_in_one_table_and_are_not_repeated(project):
    write_suite(project, sweep={"scoring": {"value": [0.5, 2.0]}, "ablation": {"seed": [5]}})
    command = [sys.executable, "-m", "snakemake", "--quiet", "--cores", "2", "--nolock", "results/lab/sweeps/scoring/"
               "scores.parquet", "results/lab/sweeps/ablation/ablations.parquet"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    table = pd.read_parquet("results/lab/sweeps/scoring/scores.parquet")
    assert list(table.columns[:2]) == ["swept_value", "model"]
    assert set(zip(table["swept_value"], table["value"], strict=True)) == {(0.5, 8.5), (2.0, 10.0)}  # value + step
    assert set(pd.read_parquet("results/lab/sweeps/ablation/ablations.parquet")["swept_seed"]) == {5}
    rest = [line for line in problems(read_suite("config/lab.yaml")) if "sweeps" in line]
    assert [line.split(":")[0] for line in rest] == [  # the tables that were not asked for
        f"results/lab/sweeps/{name}.parquet"
        for name in ("ablation/curves", "ablation/effects", "ablation/statistics", "scoring/accuracy",
                     "scoring/samples", "scoring/statistics", "scoring/tasks")]
    write_suite(project, sweep={"scoring": {"value": [0.5, 3.0]}, "ablation": {"seed": [5]}})
    text = "\n".join(problems(read_suite("config/lab.yaml")))
    assert "sweeps/scoring/value=2.0/scores/models/tiny/step8.parquet: foreign" in text
    assert "sweeps/scoring/value=3.0/notebooks/models/tiny/step8.ipynb: missing" in text
    assert "sweeps/scoring/scores.parquet: stale, table results/lab/sweeps/scoring/value=3.0" in text
    write_suite(project, sweep={"scoring": {"value": [0.5, 2.0]}, "ablation": {"seed": [5]}})
    again = subprocess.run([*command, "-n"], capture_output=True, text=True)
    assert again.returncode == 0 and "swept" not in again.stdout
