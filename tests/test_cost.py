"""What `make plan` says: passes against what was measured, and what a cluster is asked for."""

import pandas as pd
import pytest

from benchmarks import cost
from icl_lib.data.sources import read_tasks
from icl_lib.models.paper_models import family, paper_models
from tests.conftest import GOLDEN
from workflow.notebooks import Run
from workflow.suite import Suite, check_suite, read_suite

ROOT = GOLDEN.parents[1]


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def paper(**changes) -> Suite:
    models = [{"name": "EleutherAI/pythia-70m-deduped", "steps": [1000, 143000], **changes}]
    return check_suite({"suite": "trial", "models": models, "parameters": {"scoring": {"task_files": "upstream"}}})


@pytest.mark.parametrize("size", ["70m", "160m", "410m"])
def test_scores_of_all_heads_cost_what_was_measured(size):
    measured = pd.read_csv(ROOT / "book" / "fv_scores.csv").set_index(["shape", "method"])
    expected = measured.loc[(f"pythia-{size}", "fv_scores"), "forward equivalents"]
    assert cost.fv_ratio(paper_models()[f"EleutherAI/pythia-{size}-deduped"]) == pytest.approx(expected, rel=0.1)


def test_passes_of_a_scoring_run_are_counted_by_hand():
    model = paper_models()["EleutherAI/pythia-70m-deduped"]
    given = dict(n_prompts=10, n_shots=10, shots=[0, 10], n_null_draws=3, n_sequences=7, n_documents=5)
    passes = cost.run_cost("scoring", model, given | {"task_files": "upstream"})[0]
    scoring = 29 * 10 * cost.fv_ratio(model)
    nulls = 29 * 10 * (1 + 3 * (cost.fv_ratio(model) - 2))
    assert passes == pytest.approx(3 * 48 * 10 + scoring + nulls + 4 * 7 + 5)
    less, more = (cost.run_cost("ablation", model, {"task_files": "upstream", "n_draws": n})[0] for n in (20, 40))
    assert more > 1.5 * less


def test_passes_of_a_run_on_patterns_are_counted_by_hand():
    """Two shares of 20 conditions each by prefix matching, one of 10 more by the paper's score, and the clean model."""
    model = paper_models()["EleutherAI/pythia-70m-deduped"]
    given = dict(task_files="upstream", shots=[0, 10], n_seeds=3, n_check=20, n_prompts=5, n_prompts_paper=2,
                 n_prompts_mean=4, fractions=[0.01, 0.03])
    few, most = (cost.grid_shares()["all"] * n for n in (21, 21 + 11))
    expected = 29 * 4 + 2 * 6 * 3 * 20 + (6 * 3 * 5 + 19 * 2) * (few + most)
    assert cost.run_cost("patterns", model, given)[0] == pytest.approx(expected)
    assert cost.N_PATTERNS == sum(task.split == "evaluation" for task in read_tasks("patterns").values())


def test_a_suite_s_costs_leave_out_what_is_done(tmp_path, monkeypatch):
    for name in ("notebooks", "lab"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    before = cost.suite_costs(paper(), flops=1e12)
    done = tmp_path / "results" / "trial" / "notebooks" / "scoring" / "EleutherAI" / "pythia-70m-deduped"
    done.mkdir(parents=True)
    (done / "step1000.ipynb").touch()
    after = cost.suite_costs(paper(), flops=1e12)
    assert (before["runs"] - before["done"]).tolist() == [3] and (after["runs"] - after["done"]).tolist() == [2]
    assert 0 < after["passes"][0] < before["passes"][0]
    assert before["disk_gib"][0] == pytest.approx(2 * 70426624 * 2 / 2**30)
    assert "3 notebook runs on models, 1 done, 2 to go" in cost.summary(after, "here")


def test_unknown_shapes_are_named_and_not_counted():
    suite = check_suite({"suite": "trial", "models": [{"name": "owner/model"}, {"name": "lab-7k", "steps": "last"}]})
    table = cost.suite_costs(suite, flops=1e12)
    assert pd.isna(table["passes"][0]) and table["passes"][1] > 0 and table["disk_gib"].tolist() == [0, 0]
    assert "not known before they are loaded: owner/model" in cost.summary(table, "here")


def test_the_paper_suite_holds_the_paper():
    suite = read_suite("config/paper.yaml")
    suite.check_templates()
    table = {name: model for name, model in paper_models().items() if not model.extra}
    assert set(suite.steps) == set(table)
    followed = [1, 64, 256, 1000, 4000, 16000, 64000, 143000]
    assert all(suite.steps[name] == (followed if family(name) == "pythia" else [-1]) for name in table)
    assert suite.chosen["ablation"].keys() == suite.chosen["task_execution"].keys() == suite.steps.keys()
    shown = pd.read_csv("book/paper_cost.csv")
    assert shown["model"].tolist() == list(suite.steps)
    again = cost.suite_costs(suite, flops=cost.GPU_TFLOPS * 1e12)
    assert shown["hours"].tolist() == pytest.approx(again["hours"].tolist(), abs=0.06), "the page's table is old"


def test_a_cluster_is_asked_for_more_by_larger_models():
    suite = read_suite("config/paper.yaml")
    small, large = (cost.resources(suite, Run("ablation", f"EleutherAI/pythia-{size}-deduped", 143000))
                    for size in ("70m", "6.9b"))
    assert small["gpu"] == large["gpu"] == 1
    assert large["mem_mb"] > 20000 > small["mem_mb"] and large["runtime"] > small["runtime"] >= 60
    assert cost.resources(suite, Run("ablation", "lab-7k", 8192))["gpu"] == 0


def test_the_command_says_what_is_wrong_in_one_line(capsys, monkeypatch, tmp_path):
    assert cost.main(["config/nothing.yaml"]) == 1 and "config/nothing.yaml does not exist" in capsys.readouterr().err
    monkeypatch.setenv("TFLOPS", "many")
    assert cost.main(["config/paper.yaml"]) == 1 and capsys.readouterr().err.count("\n") == 1
    monkeypatch.setenv("TFLOPS", "100")
    assert cost.main(["config/paper.yaml", "--table", str(tmp_path / "t.csv")]) == 0
    assert "forward passes" in capsys.readouterr().out and len(pd.read_csv(tmp_path / "t.csv")) == 12
