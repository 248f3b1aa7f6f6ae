"""Measuring and showing apart: tables are read where they are, put back where they were kept, never replaced."""

import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from icl_lib.data.sources import read_tasks
from icl_lib.measurements import made_by as measured_by
from icl_lib.measurements import task_table, write_measured
from icl_lib.notebook import asked_of, is_measured
from icl_lib.progress import progress
from icl_lib.provenance import provenance
from icl_lib.tables import KEYS, model_folder, read_table, run_path, write_table
from tests.conftest import GOLDEN
from tests.project import ROOT, make_project
from workflow import measure
from workflow.inputs import MADE_FROM, measured_from
from workflow.measure import largest_difference
from workflow.run import KEPT, put_back, run_notebook
from workflow.templates import library_files, measuring_parameters, measuring_source, template_parameters

ROW = {"model": "m", "step": 1, "score": "fv", "layer": 0, "head": 0, "task": "t", "value": 0.25,
       "standard_error": 0.1, "n_prompts": 4}

ACCURACY = {"model": "m", "step": 1, "n_shots": 2, "labels": "clean", "task": "t", "task_type": "abstractive",
            "split": "evaluation", "metric": "exact_match", "value": 0.25, "standard_error": 0.1, "n_prompts": 4}


def made_by(**parameters):
    return provenance(suite="s", seed=0, dtype="", device="", bos="", parameters=parameters)


def test_no_table_of_a_run_is_written_where_one_is_refused(tmp_path, neox):
    paths = {kind: tmp_path / kind for kind in ("scores", "tasks")}
    with pytest.raises(ValueError, match="table scores has 1 rows with a repeated key"):
        write_measured(
            {"tasks": task_table({}, name="m", step=0), "scores": pd.DataFrame([ROW, ROW])}, paths, neox.model,
            suite="s", seed=0, parameters={}, tasks={})
    assert not list(tmp_path.iterdir())


def test_a_table_of_the_same_measurement_is_read_and_one_of_another_refused(tmp_path):
    paths = {"scores": tmp_path / "a.parquet", "accuracy": tmp_path / "b.parquet"}
    assert not is_measured(paths, {"n_prompts": 4})
    write_table(pd.DataFrame([ROW]), paths["scores"], schema_name="scores", provenance=made_by(n_prompts=4))
    assert not is_measured(paths, {"n_prompts": 4})  # half of it: measured again
    with pytest.raises(ValueError, match="a.parquet was measured with n_prompts = 4, this run asks for 60; give"):
        is_measured(paths, {"n_prompts": 60})
    assert is_measured({"scores": paths["scores"]}, {"n_prompts": 4})
    with pytest.raises(ValueError, match="n_shots = 'not given'"):
        is_measured({"scores": paths["scores"]}, {"n_prompts": 4, "n_shots": 10})


@pytest.mark.parametrize("by_suite", [False, True])
def test_a_table_made_by_hand_before_the_model_or_its_scores_changed_is_refused(
    tmp_path, monkeypatch, neox, golden_copy, by_suite
):
    if by_suite:
        (tmp_path / "record").write_text('{"files": {}}')
        monkeypatch.setenv(MADE_FROM, str(tmp_path / "record"))
    parameters = {"model": golden_copy, "step": -1}
    kept = measured_by(neox.model, suite="s", seed=0, parameters=parameters, sums={"tasks": "1"})
    assert set(kept["sums"]) == ({"tasks"} if by_suite else {"tasks", "model"}) and kept["parameters"] == parameters
    kept["made_from"] = {}  # as committed tables have it, which a suite takes as they are
    paths = {kind: run_path(tmp_path / "r", kind, golden_copy, -1) for kind in ("accuracy", "scores")}
    write_table(pd.DataFrame([ACCURACY]), paths["accuracy"], schema_name="accuracy", provenance=kept)
    write_table(pd.DataFrame([ROW]), paths["scores"], schema_name="scores", provenance=kept)
    of_others = {"accuracy": paths["accuracy"]}
    assert is_measured(paths, parameters) and is_measured(of_others, parameters)
    later = kept | {"time": "2999-01-01T00:00:00+00:00"}
    write_table(pd.DataFrame([ROW]), paths["scores"], schema_name="scores", provenance=later)
    refused_by_hand(by_suite, of_others, parameters, "accuracy/.* was measured before the scores in .*/r/scores/.*; ")
    assert is_measured(paths, parameters), "all of one run"
    Path(golden_copy, "config.json").write_text(Path(golden_copy, "config.json").read_text() + " ")
    refused_by_hand(by_suite, paths, parameters, "was measured before the files of model '.*/mine' changed; give ")
    shutil.rmtree(golden_copy)
    assert is_measured(paths, parameters), "tables are read where the model is gone"


@pytest.mark.parametrize("by_suite", [False, True])
@pytest.mark.parametrize("change", [
    "tasks/abstractive/antonym.json", "cards.json", "text.txt", "tasks/extractive/new.json"])
def test_a_table_made_by_hand_before_the_user_s_own_tasks_or_documents_changed_is_refused(
    tmp_path, monkeypatch, neox, by_suite, change
):
    if by_suite:
        (tmp_path / "record").write_text('{"files": {}}')
        monkeypatch.setenv(MADE_FROM, str(tmp_path / "record"))
    for name in ("tasks/abstractive/antonym.json", "tasks/extractive/kept.json", "cards.json", "text.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    parameters = {"model": "a/b", "step": -1, "task_files": f"{tmp_path / 'tasks'}[antonym]",
                  "documents": str(tmp_path / "text.txt")}
    kept = measured_by(neox.model, suite="s", seed=0, parameters=parameters) | {"made_from": {}}
    paths = {"accuracy": run_path(tmp_path / "r", "accuracy", "a/b", -1)}
    write_table(pd.DataFrame([ACCURACY]), paths["accuracy"], schema_name="accuracy", provenance=kept)
    assert is_measured(paths, parameters)
    (tmp_path / change).write_text("another")
    refused_by_hand(by_suite, paths, parameters,
                    r"was measured before files of task_files '.*\[antonym\]' or documents '.*txt' changed; give ")
    shutil.rmtree(tmp_path / "tasks")
    (tmp_path / "text.txt").unlink()
    assert is_measured(paths, parameters), "tables are read where their tasks are gone"


def refused_by_hand(by_suite, paths, parameters, message):
    """A suite knows what its tables were made from."""
    if by_suite:
        assert is_measured(paths, parameters)
        return
    with pytest.raises(ValueError, match=message) as caught:
        is_measured(paths, parameters)
    assert "\n" not in str(caught.value)


@pytest.fixture
def golden_copy(tmp_path):
    return str(shutil.copytree(GOLDEN / "gpt_neox" / "model", tmp_path / "mine"))


def test_a_table_that_the_workflow_made_is_left_as_it_is_by_hand(tmp_path, capsys):
    path, by_suite = tmp_path / "a.parquet", made_by() | {"made_from": {"files": {}}}
    for made, value, expected in ((made_by(), 1, 1), (by_suite, 2, 2), (made_by(), 3, 2), (by_suite, 4, 4)):
        write_table(pd.DataFrame([ROW | {"value": float(value)}]), path, schema_name="scores", provenance=made)
        assert read_table(path)["value"].tolist() == [expected]
        said = capsys.readouterr().out
        assert said.count("\n") == (value == 3) and ("made by a suite and is left as it is" in said) == (value == 3)
    path.write_bytes(b"damaged")
    write_table(pd.DataFrame([ROW]), path, schema_name="scores", provenance=made_by())
    assert read_table(path)["value"].tolist() == [ROW["value"]]


@pytest.mark.parametrize("name", ["../../../mymodel", "/data/my model", "~/x", "a/../b", ".", "x/..", "a//b", "a/.b"])
def test_no_name_leads_out_of_the_results_folder(tmp_path, name):
    folder = model_folder(name)
    path = run_path(tmp_path, "partial", name, 8192)
    assert "/" not in folder and folder not in (".", "..") and path.resolve().is_relative_to(tmp_path / "partial")
    assert model_folder(name) == folder != model_folder(name + "z")


def test_kinds_of_tables_of_a_folder_outside_do_not_share_a_file(tmp_path):
    assert len({run_path(tmp_path, kind, "../mymodel", -1) for kind in ("scores", "accuracy")}) == 2
    assert model_folder("lab-7k") == "lab-7k" and model_folder("org/some.model_1") == "org/some.model_1"


# The workflow


MEASURING = '''
rows = pd.DataFrame([dict(model=model, step=step, score="fv", layer=0, head=0, task="", value=value, standard_error=0.1,
                          n_prompts=4)])
from icl_lib.heads import head_count
path = Path(results, "scores", model, f"step{step}.parquet")
if not path.is_file():
    Path(results, "measured.txt").open("a").write("x")
    write_table(rows, path, schema_name="scores", provenance=made_by)
'''


@pytest.fixture
def template(tmp_path, monkeypatch):
    """A project with one notebook that measures a value and shows a caption, and how to run it."""
    monkeypatch.chdir(make_project(tmp_path))
    project = tmp_path
    path = Path("notebooks/scoring.ipynb")

    def write(caption="one", measuring=MEASURING):
        import nbformat

        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        made = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
        of = nbformat.v4.new_code_cell
        made.cells = [
            of('model: str = "m"\nstep: int = 0\nvalue: float = 0.5\ntitle: str = "t"\nresults: str = "r"\n'
               'suite: str = "s"\nseed: int = 0', metadata={"tags": ["parameters"]}),
            of("from pathlib import Path\nimport pandas as pd\nfrom icl_lib.figures import common as figures\n"
               "from icl_lib.provenance import provenance\nfrom icl_lib.tables import read_table, write_table\n"
               'made_by = provenance(suite=suite, seed=seed, dtype="", device="", bos="", parameters={})'),
            of(measuring, metadata={"tags": ["measure"]}),
            of(f"print({caption!r}, title, read_table(path).value[0])")]
        nbformat.write(made, path)
        return path

    def run(**changes):
        results = Path("results/s")
        parameters = {"results": results.as_posix(), "model": "m", "step": 1, "value": 0.5, "title": "t"} | changes
        tables = [results / "scores/m/step1.parquet"]
        inputs = [path, *map(Path, library_files(path))]
        run_notebook(path, results / "notebooks/scoring/m/step1.ipynb", parameters, log=results / "logs/scoring.log",
                     tables=tables, inputs=inputs)
        return len(Path(results, "measured.txt").read_text()), float(read_table(tables[0])["value"].iloc[0])

    return write, run, project


@pytest.mark.slow
def test_an_edited_caption_measures_nothing_and_an_edited_measurement_does(template):
    write, run, _ = template
    write()
    assert run() == (1, 0.5)
    assert run() == (1, 0.5)  # the rule removed the table, and it was put back
    write(caption="two")
    assert run(title="new") == (1, 0.5)
    assert run(value=0.7) == (2, 0.7)  # a parameter of the measurement
    write(measuring=MEASURING.replace("value=value", "value=value + 1"))
    assert run(value=0.7) == (3, 1.7)


def test_what_a_measurement_depends_on(template):
    write, _, _ = template
    path = write()
    assert measuring_parameters(path) == {"model", "step", "value", "results"}
    assert "icl_lib/heads.py" in library_files(path, measuring=True)
    assert "icl_lib/figures/common.py" in set(library_files(path)) - set(library_files(path, measuring=True))
    inputs = [path, *map(Path, library_files(path))]
    record = measured_from(path, inputs, {"value": 0.5, "title": "t", "results": "r"}, Path("results/s"))
    assert record["parameters"] == {"value": 0.5} and "icl_lib/figures/common.py" not in record["files"]
    before = record["files"]["notebooks/scoring.ipynb#measure"]
    assert "notebooks/scoring.ipynb" not in record["files"] and measuring_source(write(caption="other")) in MEASURING
    after = measured_from(path, inputs, {"value": 0.5}, Path("results/s"))["files"]["notebooks/scoring.ipynb#measure"]
    assert before == after


def test_committed_tables_are_taken_and_damaged_ones_are_not(tmp_path):
    results, committed = tmp_path / "results", tmp_path / "pretrained"
    path = results / "scores/m/step1.parquet"
    kept = results / KEPT / "scores/m/step1.parquet"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"torn")
    put_back([path], results, {"files": {}}, [])
    assert not path.exists()
    write_table(pd.DataFrame([ROW]), committed / "scores/m/step1.parquet", schema_name="scores", provenance=made_by())
    put_back([path], results, {"files": {}}, [committed])
    assert read_table(path)["value"].tolist() == [0.25]


def test_the_largest_difference_of_two_tables(tmp_path):
    tables = []
    for i, value in enumerate((0.25, 0.25 + 3e-5)):
        write_table(pd.DataFrame([ROW | {"value": value}, ROW | {"head": 1}]), tmp_path / f"{i}.parquet",
                    schema_name="scores", provenance=made_by())
        tables.append(read_table(tmp_path / f"{i}.parquet"))
    assert np.isclose(largest_difference(*tables), 3e-5)
    other = tables[1].iloc[:1]
    other.attrs = tables[1].attrs
    assert largest_difference(tables[0], other) == np.inf and set(KEYS["scores"]) >= {"layer", "head"}


@pytest.mark.parametrize(("dtype", "change", "status"), [
    ("float32", {"value": 0.26}, 1), ("float32", {"value": 0.25 + 3e-5}, 0),
    ("mixed", {"value": 0.26}, 0), ("mixed", {"head": 1}, 1),
])  # fmt: skip
def test_measured_again_is_judged_by_values_and_in_mixed_precision_by_rows_alone(
    tmp_path, monkeypatch, capsys, dtype, change, status
):
    made = provenance(suite="s", seed=0, dtype=dtype, device="", bos="", parameters={})
    for name, row in (("committed", ROW), ("new", ROW | change)):
        write_table(pd.DataFrame([row]), tmp_path / name, schema_name="scores", provenance=made)
    monkeypatch.setattr(measure, "measure", lambda *_: [(tmp_path / "new", tmp_path / "committed")])
    assert measure.main([str(ROOT / "config/spot.yaml"), "smollm2-135m"]) == status
    told = capsys.readouterr()
    assert "largest difference" in told.out and ("not judged" in told.out) == (dtype == "mixed")
    assert ("error: the tables of smollm2-135m differ by" in told.err) == bool(status)


# Tasks and progress


def test_tasks_of_a_source_by_name():
    assert list(read_tasks("lab[antonym, country-capital]")) == ["antonym", "country-capital"]
    with pytest.raises(ValueError, match="unknown task 'antonim'; nearest valid names: antonym"):
        read_tasks("lab[antonim]")


@pytest.mark.parametrize("seconds", [0.02, 60])
def test_progress_in_a_notebook_is_shown_from_some_seconds_on_and_cleaned_up(monkeypatch, capsys, seconds):
    import icl_lib.progress as module

    cleared = []
    monkeypatch.setattr(module, "_in_kernel", lambda: True)
    monkeypatch.setattr(module, "_EVERY", seconds)
    monkeypatch.setattr("IPython.display.clear_output", lambda: cleared.append(True))
    assert [time.sleep(0.03) or item for item in progress(["a", "b", "c"], "FV scores")] == ["a", "b", "c"]
    shown = capsys.readouterr().err
    assert (cleared, shown) == ([], "") if seconds == 60 else cleared == [True] and "| 2/3 [" in shown


def test_progress_is_silent_without_a_terminal(capsys):
    assert list(progress(range(3), "x")) == [0, 1, 2] and capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("notebook", "kind", "shown"), [
    ("scoring", "scores", {"top_fraction"}), ("ablation", "effects", set()), ("example", "example", set())])
def test_committed_tables_were_measured_with_the_parameters_that_their_notebook_declares(notebook, kind, shown):
    declared = set(template_parameters(ROOT / "notebooks" / f"{notebook}.ipynb")) - {"suite", "results"} - shown
    tables = sorted((ROOT / "pretrained" / kind).rglob("*.parquet"))
    assert tables
    for path in tables:
        assert set(read_table(path).attrs["provenance"]["parameters"]) == declared, path


def test_what_a_run_asks_for_is_what_its_parameters_are_now():
    namespace = {"__annotations__": {"suite": str, "results": str, "n": int, "fraction": float, "task_files": str},
                 "suite": "s", "results": "r", "n": 2, "fraction": 0.5, "task_files": "lab", "other": 1}
    assert asked_of(namespace, "fraction") == {"n": 2, "task_files": "lab"}
