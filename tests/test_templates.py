"""Notebook templates read without running them: parameters and their types, the code they depend on."""

import json

import nbformat
import papermill
import pytest

from tests.project import ROOT, notebook, suite, write_template
from workflow.notebooks import NOTEBOOKS, Run
from workflow.suite import check_suite
from workflow.templates import check_parameters, library_files, template_parameters


def test_parameters_are_those_papermill_sees(project):
    templates = [*project.glob("notebooks/*.ipynb"), *ROOT.glob("notebooks/*.ipynb")]
    for path in templates:
        assert set(template_parameters(path)) == set(papermill.inspect_notebook(str(path))), path


def test_templates_of_the_repository_take_what_the_workflow_gives():
    of = {"step": {"model", "step"}, "model": {"model"}}
    for name, entry in NOTEBOOKS.items():
        given = {"suite", "seed", "results"} | of.get(entry.of, set())
        assert given <= set(template_parameters(ROOT / "notebooks" / f"{name}.ipynb")), name


def test_a_template_is_given_what_it_declares_and_has_to_declare_what_it_runs_on(project):
    for line, given in (("step: int = 0\nablated_steps: dict = {}", {"ablated_steps": {"models/tiny": [8]}}),
                        ("step: int = 0", {})):
        write_template(project, "scoring", f"model: str = ''\n{line}")
        content = nbformat.read("notebooks/scoring.ipynb", as_version=4)
        content.cells[1].source = content.cells[1].source.replace("step: int = 0  # optimiser step", line)
        nbformat.write(content, "notebooks/scoring.ipynb")
        found = check_suite(suite()).given(Run("scoring", "models/tiny", 8))
        assert {name: found[name] for name in found if name.startswith("abl")} == given
    content.cells[1].source = content.cells[1].source.replace("step: int = 0", "")
    nbformat.write(content, "notebooks/scoring.ipynb")
    with pytest.raises(ValueError, match="unknown parameter of scoring.ipynb 'step'"):
        check_suite(suite()).check_templates()


@pytest.mark.parametrize(
    ("declaration", "good", "bad"),
    [
        ("a: int = 1", [0, 3], [True, 1.0, "1", None, -1, float("nan")]),
        ("a: float = 1.0", [0, 2.5], [True, "1e-3", None]),
        ("a: bool = True", [False], [0, "yes"]),
        ("a: str = ''", ["007"], [7, None, "", " "]),
        ("a: list[int] = []", [[0], [1, 2]], [(1,), {}, "12", [], ["1"], [-1], [True], [1.5], [2, 2], [[1]]]),
        ("a: dict[str, list[int]] = {}", [{}, {"m": [0]}], [[], "m"]),
        ("a: list = []", [[1, "b"]], ["b", ["b", "b"]]),
        ("step: int = 0", [-1], [-5]),
        ("n_prompts: int = 1", [1], [0, -1]),
        ("n_shots: int = 1", [0], [-1]),
        ("protocols: list[str] = []", [[], ["paper"]], [["paper", "paper"], [7], ["single"]]),
        ("exclude_fraction: float = 0.1", [0, 1], [-0.1, 1.5]),
        ("top_fraction: float = 0.1", [0.001, 1], [0, 0.0, -0.1, 1.5, float("inf"), 10**400]),
        ("fractions: list[float] = [0.1]", [[0.3, 1]], [["0.3"], [0.3, 0], [1.1], [float("nan")]]),
        ("replacements: list[str] = ['mean']", [["zero", "mean"]], [["zero"], []]),
        ("positions: list[str] = ['all']", [["all"]], [["last"]]),
    ],
)
def test_types_of_parameters(tmp_path, declaration, good, bad):
    path = tmp_path / "t.ipynb"
    nbformat.write(notebook(declaration), path)
    name = declaration.partition(":")[0]
    for value in good:
        check_parameters(path, {name: value})
    for value in bad:
        with pytest.raises(ValueError, match=f"parameter {name} is") as caught:
            check_parameters(path, {name: value})
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("cells", "tagged", "message"),
    [
        (["a: int = 1"], None, "t.ipynb has 0 cells tagged parameters"),
        (
            ["model: str = ''\nsteps: list = []"],
            0,
            "unknown parameter of t.ipynb 'modle'; valid are model, steps; nearest: model",
        ),
        (["modle: int = max(1, 2)"], 0, "default of modle is no literal"),
        (["modle: int | None = 1"], 0, r"type int \| None of modle is none of"),
    ],
)
def test_bad_templates_and_unknown_parameters(tmp_path, cells, tagged, message):
    path = tmp_path / "t.ipynb"
    nbformat.write(notebook(*cells, parameters=tagged), path)
    with pytest.raises(ValueError, match=message) as caught:
        check_parameters(path, {"modle": 1})
    assert "\n" not in str(caught.value)


def test_files_that_are_no_templates(tmp_path):
    (tmp_path / "t.ipynb").write_text("hello")
    with pytest.raises(ValueError, match="is not a notebook"):
        template_parameters(tmp_path / "t.ipynb")
    with pytest.raises(ValueError, match="does not exist"):
        template_parameters(tmp_path / "u.ipynb")


LIBRARY = {
    "icl_lib/__init__.py": "from icl_lib.a import thing\nVERSION = 1\n",
    "icl_lib/a.py": "import numpy\nfrom icl_lib import c\n",
    "icl_lib/b.py": "def other():\n    from icl_lib.d import late\n",
    "icl_lib/c.py": "",
    "icl_lib/d.py": "from lab.world import words\n",
    "icl_lib/e.py": "",
    "lab/__init__.py": "",
    "lab/world/__init__.py": "words = []\n",
}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from icl_lib import thing", "__init__ a c"),
        ("from icl_lib.b import other as renamed", "b d lab/world/__init__"),
        ("import icl_lib.e as e, numpy", "e"),
        ("%matplotlib inline\nfrom icl_lib.c import x\n!ls", "c"),
        ("from icl_lib import a", "a c"),
        ("if True:\n    from icl_lib.d import late", "d lab/world/__init__"),
        ("import numpy.linalg", ""),
        ("import icl_lib", "__init__ a c"),
    ],
)
def test_dependencies_follow_imports_and_nothing_else(tmp_path, monkeypatch, source, expected):
    monkeypatch.chdir(tmp_path)
    for name, content in LIBRARY.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    nbformat.write(notebook("a = 1", source), tmp_path / "t.ipynb")
    names = {f"{n}.py" if "/" in n else f"icl_lib/{n}.py" for n in expected.split()}
    assert set(library_files("t.ipynb")) == names


def test_committed_templates_are_clean():
    """Each cell has an id, and none has outputs or was counted."""
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        for place, cell in enumerate(json.loads(path.read_text())["cells"]):
            assert cell.get("id"), f"{path.name}: cell {place} has no id"
            assert not cell.get("outputs") and cell.get("execution_count") is None, (
                f"{path.name}: cell {place} has outputs, clear them before committing")
