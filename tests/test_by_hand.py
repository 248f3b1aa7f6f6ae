"""Notebooks by hand: nothing of the user's or of a finished suite is lost, and the defaults fit any model."""

import hashlib
import json
import re
import shlex
import shutil
from pathlib import Path

import papermill
import pytest
from papermill.exceptions import PapermillExecutionError

from icl_lib.data.sources import SOME_TASKS, documents_for, read_tasks, tasks_for
from icl_lib.measurements import in_split
from icl_lib.notebook import read_scored
from icl_lib.tables import model_folder, read_table, run_path
from tests.conftest import GOLDEN
from tests.project import ROOT
from workflow.inputs import MADE_FROM
from workflow.templates import template_parameters

STEP = 8192
TINY = {"n_prompts": 1, "n_sequences": 2, "n_null_draws": 1, "n_documents": 2, "shots": [0, 2]}
OUTSIDE, PLAIN = "../../../mymodel", "mymodel"


def sums(folder):
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two models of the user's, one above a suite's notebooks and one in a folder `a`, and their sums before a run."""
    folder = tmp_path_factory.mktemp("place")
    for at, rung in ((folder, "lab-7k"), (folder / "a", "lab-20k")):
        shutil.copytree(ROOT / f"lab/models/{rung}/seed0/step{STEP}", at / "mymodel" / f"step{STEP}")
    (folder / "results/lab/notebooks").mkdir(parents=True)
    return folder, {at: sums(folder / at) for at in ("mymodel", "a/mymodel")}


def score(place, at, model, **changes):
    """Run the notebook in a folder of the place; its tables go to the suite's results there."""
    given = TINY | {"model": model, "step": STEP, "results": str(place[0] / "results/lab")} | changes
    papermill.execute_notebook(
        ROOT / "notebooks/scoring.ipynb", place[0] / "executed.ipynb", given, cwd=place[0] / at,
        kernel_name="python3", progress_bar=False)


@pytest.fixture(scope="module")
def finished(place):
    """The tables of a suite's run from its folder of notebooks, of a model that it names by a path that climbs out."""
    record = place[0] / "record.json"
    record.write_text(json.dumps({"files": {}, "tables": {}, "parameters": {}}))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv(MADE_FROM, str(record))  # as the workflow does
        score(place, "results/lab/notebooks", OUTSIDE)
    return sums(place[0] / "results")


def table_of(place, kind, at):
    return run_path(place[0] / "results/lab", kind, str(place[0] / at), STEP)


@pytest.mark.slow
def test_a_model_outside_is_left_as_it_is(place, finished):
    folder, before = place
    assert {at: sums(folder / at) for at in before} == before
    beside = {path.name for path in folder.iterdir()}
    assert beside == {"mymodel", "a", "results", "record.json", "executed.ipynb"}
    written = [path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet")]
    assert len(written) == 5 and all(name.startswith("results/lab/") for name in written)
    for kind in ("tasks", "accuracy", "scores", "samples"):
        made_by = read_table(table_of(place, kind, "mymodel"), schema_name=kind).attrs["provenance"]
        assert made_by["parameters"] | TINY == made_by["parameters"] and made_by["parameters"]["model"] == OUTSIDE
        assert made_by["parameters"]["task_files"] == made_by["parameters"]["documents"] == "lab", "a lab model's copy"


@pytest.mark.slow
def test_two_models_of_one_name_do_not_share_a_table(place, finished):
    score(place, "a", PLAIN)
    assert {at: sums(place[0] / at) for at in place[1]} == place[1]
    now = sums(place[0] / "results")
    assert now | finished == now, "the first model's tables are as they were"
    values = [read_table(table_of(place, "scores", at), schema_name="scores") for at in ("mymodel", "a/mymodel")]
    assert [set(table["model"]) for table in values] == [{OUTSIDE}, {PLAIN}]
    assert not values[0]["value"].equals(values[1]["value"])


@pytest.mark.slow
def test_a_finished_suite_is_not_measured_over(place, finished):
    before = sums(place[0] / "results")
    with pytest.raises(PapermillExecutionError) as refused:
        score(place, "results/lab/notebooks", OUTSIDE, n_prompts=2)
    line = refused.value.evalue
    assert line.endswith("was measured with n_prompts = 1, this run asks for 2; give another results folder, the same "
                         "value, or remove it") and "\n" not in line and ".parquet" in line
    assert sums(place[0] / "results") == before


def test_a_plain_name_from_two_folders_is_two_models(tmp_path, monkeypatch):
    found = []
    for at in ("a", "b"):
        (tmp_path / at / "mymodel").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / at)
        found.append(model_folder("mymodel"))
        assert found[-1] == model_folder(str(tmp_path / at / "mymodel"))
    assert len(set(found)) == 2 and model_folder("lab-7k") == "lab-7k"
    monkeypatch.chdir(ROOT)
    assert model_folder("tests/golden/llama/model") == "tests/golden/llama/model"  # as a suite has it


# Defaults that fit any model


@pytest.fixture
def copied(tmp_path):
    """A lab model's checkpoints in a folder of the user's."""
    shutil.copytree(ROOT / "lab/models/lab-7k/seed0", tmp_path / "mine")
    return str(tmp_path / "mine")


def test_lab_models_and_their_copies_get_the_lab_s_tasks_and_others_the_paper_s(copied):
    for model in ("lab-450k", "lab-40k-seed1", copied, f"{copied}/step{STEP}", "lab-nowhere", "./gone"):
        assert (tasks_for(model), documents_for(model)) == ("lab", "lab"), model
    for model in ("smollm2-135m", "EleutherAI/pythia-70m-deduped", "labml/x", str(GOLDEN / "llama" / "model")):
        assert (tasks_for(model), documents_for(model)) == ("upstream", "python-reference"), model
        for given in ("upstream:released", "lab[antonym,capital-country]", "my/tasks"):
            assert tasks_for(model, given) == given
        for given in ("python-reference", "owner/name@main", str(GOLDEN / "gpt_neox" / "prompts.json")):
            assert documents_for(model, given) == given


@pytest.mark.parametrize(("choose", "line"), [
    (tasks_for, "task_files 'lab' has .* model 'owner/name' has another one; give upstream, a folder of tasks"),
    (documents_for, "documents 'lab' has .* model 'owner/name' has another one; give python-reference, a text file or"),
])
def test_the_lab_s_words_on_a_model_without_them_are_refused(choose, line):
    with pytest.raises(ValueError, match=line):
        choose("owner/name", "lab")
    assert choose("lab-7k", "lab") == "lab"


def test_tasks_that_errors_name_are_enough_for_every_notebook():
    tasks = read_tasks(SOME_TASKS)
    assert len(in_split(tasks, "scoring")) == 2 and list(in_split(tasks, "evaluation")) == ["antonym"]
    with pytest.raises(ValueError, match=re.escape(SOME_TASKS)):
        tasks_for("owner/name", "lab")


def test_per_model_notebooks_name_no_step_tasks_or_documents_of_their_own():
    for notebook in ("scoring", "ablation", "task_execution", "patterns", "protocols"):
        declared = template_parameters(ROOT / "notebooks" / f"{notebook}.ipynb")
        fitting = {"step": -1, "task_files": "auto", "documents": "auto", "suite": "try", "results": "results/try"}
        assert {name: declared[name].default for name in fitting if name in declared} == {
            name: value for name, value in fitting.items() if name in declared}


def test_without_scoring_s_table_the_command_that_makes_it_is_said(monkeypatch):
    monkeypatch.chdir(ROOT / "notebooks")
    with pytest.raises(FileNotFoundError) as missing:
        read_scored(ROOT / "results/no one's", "a/b", -1, "scores", "tasks", task_files="lab[antonym]")
    line = str(missing.value)
    words = shlex.split(re.fullmatch(r".*step-1.parquet does not exist; the scoring notebook makes it: (.*)", line)[1])
    given = dict(part.split("=") for part in "model=a/b step=-1 task_files=lab[antonym]".split())
    assert words[1] == "scoring.ipynb" and words[0].endswith("/papermill")
    assert Path(words[2]).parent.is_dir() and not Path(words[2]).resolve().is_relative_to(ROOT), "not over a template"
    assert dict(zip(words[4::3], words[5::3], strict=True)) == given | {"results": "results/no one's"}
    assert set(words[3::3]) == {"-p"}
