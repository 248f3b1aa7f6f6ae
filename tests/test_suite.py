"""Suite files: what they stand for, and what is refused in one line."""

import pytest
import yaml

from tests.project import ROOT, suite
from workflow.notebooks import NOTEBOOKS, Run
from workflow.suite import check_suite, read_suite


def test_suite_fills_in_steps_and_parameters(project):
    found = check_suite(
        suite(models=[{"name": "models/tiny"}, {"name": "org/hub"}], parameters={"scoring": {"value": 2}})
    )
    assert found.steps == {"models/tiny": [0, 8, 64], "org/hub": [-1]}
    assert found.chosen["ablation"] == {"models/tiny": [64], "org/hub": [-1]}
    assert found.chosen["protocols"] == {}
    assert found.followed == ["models/tiny"]
    given = found.given(Run("scoring", "models/tiny", 8))
    assert given == {
        "suite": "lab", "seed": 1, "results": "results/lab", "model": "models/tiny", "step": 8, "value": 2,
    }  # fmt: skip
    assert found.given(Run("training_dynamics", "models/tiny"))["ablated_steps"] == {"models/tiny": [64]}
    assert "ablated_models" not in found.given(Run("model_scaling"))  # not declared there


def test_steps_before_the_last_have_parameters_of_their_own_over_all_others(project):
    found = check_suite(suite(
        models=[{"name": "models/tiny", "parameters": {"scoring": {"value": 3}}}, {"name": "org/hub"}],
        parameters={"scoring": {"value": 2}}, intermediate={"scoring": {"value": 4}}))
    values = [found.given(Run("scoring", name, step))["value"] for name, step in
              (("models/tiny", 0), ("models/tiny", 8), ("models/tiny", 64), ("org/hub", -1))]
    assert values == [4, 4, 3, 2]
    with pytest.raises(ValueError, match="'valeu'"):
        check_suite(suite(intermediate={"scoring": {"valeu": 4}})).check_templates()


def test_a_run_depends_on_own_tasks_and_documents_that_its_parameters_name(project):
    own = ["my.txt", "my_tasks/cards.json", "my_tasks/tasks/abstractive/a.json", "my_tasks/tasks/extractive/b.json"]
    for name in (*own, "my_tasks/tasks/notes.json", "cards.json", "lab/models/config.json"):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("{}")
    scoring = Run("scoring", "models/tiny", 8)
    of_weights = check_suite(suite()).inputs(scoring)
    for tasks in ("my_tasks/tasks", "my_tasks/tasks[a]"):
        mine = check_suite(suite(parameters={"scoring": {"task_files": tasks, "documents": "my.txt"}}))
        assert mine.inputs(scoring) == of_weights + own
        assert not {*own} & {*mine.inputs(Run("ablation", "models/tiny", 8))}, "it has parameters of its own"
    named = check_suite(suite(parameters={"scoring": {"task_files": "lab[a]", "documents": "lab"}}))
    assert named.inputs(scoring) == of_weights


def test_the_schema_names_all_parameters_that_a_suite_may_not_set(project, monkeypatch):
    class Everything(dict):
        """What a template that declares every name has."""

        def __contains__(self, name):
            return True

    monkeypatch.setattr("workflow.suite.template_parameters", lambda path: Everything())
    schema = yaml.safe_load((ROOT / "config/schema.yaml").read_text())
    assert set(schema["$defs"]["known"]["enum"]) == set(check_suite(suite()).given(Run("scoring", "models/tiny", 8)))


def model(**changes):
    return {"models": [{"name": "models/tiny"} | changes]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 1}, "unknown key of suite file 'seeds'; valid are suite, seed,.*nearest: seed"),
        ({"suite": "../up"}, "suite: '../up' does not match"),
        ({"suite": 7}, "suite: 7 is not of type 'string'"),
        ({"seed": -1}, "seed: -1 is less than the minimum"),
        ({"seed": True}, "seed: True is not of type 'integer'"),
        ({"seed": "1"}, "seed: '1' is not of type 'integer'"),
        ({"threads": 0}, "threads: 0 is less"),
        ({"models": []}, "models: .*"),
        ({"models": ["models/tiny"]}, "models.0: 'models/tiny' is not of type 'object'"),
        ({"models": [{}]}, "models.0 lacks the key 'name'"),
        (model(step=[1]), "unknown key of models.0 'step'; .*nearest: steps"),
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
        ({"intermediate": {"claims": {}}}, "unknown key of intermediate 'claims'"),
        ({"parameters": {"score": {}}}, "unknown key of parameters 'score'; nearest valid names: scoring"),
        ({"parameters": {"scoring": 3}}, "parameters.scoring: 3 is not of type 'object'"),
        ({"parameters": {"scoring": {"step": 3}}}, "step is set by the workflow"),
        ({"parameters": {"model_scaling": {"ablated_models": {}}}}, "ablated_models is set by the workflow"),
    ],
)
def test_bad_suites_are_refused_in_one_line(project, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        check_suite(suite(**changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "- a", "suite: [", "7", "suite: \x00"])
def test_files_that_are_no_suites_are_named_in_one_line(project, content):
    (project / "config" / "odd.yaml").write_text(content)
    with pytest.raises(ValueError, match="config/odd.yaml") as caught:
        read_suite("config/odd.yaml")
    assert "\n" not in str(caught.value)


def test_a_missing_suite_names_the_others(project):
    with pytest.raises(ValueError, match="config/labb.yaml does not exist; there are lab"):
        read_suite("config/labb.yaml")


def test_suites_that_include_each_other_are_read(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("workflow.suite.SCHEMA", tmp_path / "schema.yaml")
    for one, other, model in (("a", "b", "smollm2-135m"), ("b", "a", "gemma3-270m")):
        (tmp_path / f"{one}.yaml").write_text(yaml.safe_dump(suite(
            suite=one, include=[other], tables="pretrained", models=[{"name": model}])))
    found = read_suite(tmp_path / "a.yaml")
    assert [(other.name, other.included) for other in found.included] == [("b", ())]


@pytest.mark.parametrize("place", ["results", "results/lab"])
@pytest.mark.parametrize("odd", ["file", "dangling link"])
def test_what_is_no_folder_in_place_of_results_is_refused(project, place, odd):
    (project / place).parent.mkdir(exist_ok=True)
    (project / place).touch() if odd == "file" else (project / place).symlink_to("gone")
    with pytest.raises(ValueError, match=f"^{place} is no folder, expected the folder of results; move it away$"):
        check_suite(suite()).check_templates()


@pytest.mark.parametrize("name", ["try", "measure", "bench"])
def test_a_suite_is_not_called_as_the_folder_of_another_command(project, name):
    with pytest.raises(ValueError, match=f"^suite is '{name}', but results/{name} is the folder of .*; give it"):
        check_suite(suite(suite=name))


@pytest.mark.parametrize("overrides", [{"scoring": {"valu": 1.0}}, {"scoring": {"value": "1e-3"}}])
def test_overrides_are_checked_against_the_templates(project, overrides):
    with pytest.raises(ValueError, match="valu"):
        check_suite(suite(parameters=overrides)).check_templates()


def test_the_repository_has_suites_whose_keys_are_those_of_the_schema():
    for path in (ROOT / "config").glob("*.yaml"):
        config = yaml.safe_load(path.read_text())
        if path.stem != "schema":
            assert config["suite"] == path.stem
            assert set(config.get("parameters", {})) <= set(NOTEBOOKS)
