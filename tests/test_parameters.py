"""Parameters that a notebook is given: names, types and values are refused before anything is measured."""

import pytest

from icl_lib.names import WORDS
from icl_lib.notebook import check_given
from icl_lib.parameters import misfit
from icl_lib.tables import VALUES
from tests.project import ROOT
from workflow.templates import template_parameters


def cells(injected, **declared):
    """The globals of a notebook whose parameters cell declares names, and that papermill gave a cell."""
    namespace = {"__annotations__": {name: type(value) for name, value in declared.items()}, **declared, "In": [""]}
    if injected:
        namespace["In"].append("# Parameters\n" + injected)
        exec(injected, namespace)
    return namespace


def test_a_misspelled_parameter_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="unknown parameter 'n_promts'; valid are n_prompts; nearest: n_prompts"):
        check_given(cells("n_promts = 2\n", n_prompts=60))


def test_a_parameter_of_another_type_is_refused():
    with pytest.raises(ValueError, match="parameter shots is '\\[0, 10\\]' .str., expected list; papermill takes"):
        check_given(cells("shots = '[0, 10]'\n", shots=[1]))
    with pytest.raises(ValueError, match="parameter n is True .bool., expected int"):
        check_given(cells("n = True\n", n=1))


@pytest.mark.parametrize(("injected", "kind", "message"), [
    ("shots = [2, 2]", list[int], "holds 2 twice, expected different values; papermill takes"),
    ("shots = ['1']", list[int], "holds '1' .str., expected int"),
    ("fractions = []", list[float], "fractions is .., expected at least one value"),
    ("step = -5", int, "step is -5, expected int of at least -1"),
    ("seed = -1", int, "seed is -1, expected int of at least 0$"),
    ("results = ' '", str, "results is ' ', expected a text that is not empty$"),
    ("n_null_draws = 0", int, "n_null_draws is 0, expected int of at least 1"),
])  # fmt: skip
def test_values_that_nothing_can_be_made_of_are_refused(injected, kind, message):
    namespace = cells(injected, **{injected.split()[0]: 1})
    namespace["__annotations__"] = {injected.split()[0]: kind}
    with pytest.raises(ValueError, match=message) as caught:
        check_given(namespace)
    assert "\n" not in str(caught.value)


def test_a_results_folder_that_cannot_be_written_is_refused_before_a_measurement(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for results, known in (("new/x", ["model"]), (".", ["model"]), ("file", ["models"])):
        check_given(cells("", results=str(tmp_path / results), **dict.fromkeys(known, "m")))
    for results in ("file", "file/x"):
        with pytest.raises(ValueError, match=f"results '.*{results}': .*/file is not a folder, .*; give another"):
            check_given(cells("", results=str(tmp_path / results), model="m"))
    monkeypatch.setattr("os.access", lambda place, mode: place != tmp_path)  # the superuser may write all of it
    with pytest.raises(ValueError, match="is read-only, expected a folder to write to; give another results folder"):
        check_given(cells("", results=str(tmp_path / "new/x"), model="m"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_words_of_lists_are_those_of_the_code():
    from icl_lib.ablation.protocols import PROTOCOLS
    from icl_lib.figures.injection import PRESETS

    assert ("single", *WORDS["protocols"]) == tuple(PROTOCOLS) and WORDS["presets"] == tuple(PRESETS)
    assert all({"none", *WORDS[name]} == set(VALUES[column])
               for name, column in (("replacements", "replacement"), ("positions", "positions")))
    for notebook in ("ablation", "task_execution"):
        for name, declared in template_parameters(ROOT / "notebooks" / f"{notebook}.ipynb").items():
            assert not misfit(name, declared.default, declared.type), name
    assert not misfit("exclude_fraction", 0, "float") and not misfit("protocols", [], "list[str]")


@pytest.mark.parametrize("injected", ["", "n_prompts = 2\nshare = 1\nwords = ['a']\nyes = False\n"])
def test_good_parameters_pass_also_after_other_cells_have_run(injected):
    namespace = cells(injected, n_prompts=60, share=0.5, words=['b'], yes=True)
    namespace |= {"found": 3}
    namespace["In"].append("found = 3")
    check_given(namespace)


def test_a_model_s_folder_with_and_without_a_slash_at_its_end_is_one_model(tmp_path):
    for given in ("my_model/", "my_model", "owner/name//", "/"):
        namespace = cells(f"model = {given!r}\n", model="m", results=str(tmp_path))
        check_given(namespace)
        assert namespace["model"] == (given.rstrip("/") or "/")
