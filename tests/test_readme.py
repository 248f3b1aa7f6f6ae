"""What the README says is run: its commands, with less to measure where they measure, and its snippet as it stands."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import nbformat
import numpy as np
import pandas as pd
import pytest

from icl_lib.provenance import provenance
from icl_lib.tables import model_folder, read_table, write_table
from tests.drawn import figures_in, points_drawn
from tests.front_door import FrontDoor
from tests.project import ROOT
from tests.support.standin.__main__ import environment
from tests.support.standin.data import make
from tests.support.standin.server import serve

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.S)
PROGRAM = re.compile(r"(?:make|python|\S*/papermill)\b(?! and)")
LESS = {
    "scoring": shlex.split("-p n_prompts 1 -p n_sequences 4 -p n_null_draws 1 -p n_documents 2 -y 'shots: [10]'"),
    "ablation": shlex.split("-p n_prompts 1 -p n_documents 2 -p n_draws 1 -y 'fractions: [0.2]' -y 'protocols: []' "
                            "-y 'grid_fractions: [0.2]' -y 'replacements: [mean]' -p n_curve_documents 0"),
}


def commands():
    """Every command in a block without a language or in a line of text, once, without comments."""
    lines = [line.split(" #")[0].strip() for language, text in BLOCKS if not language for line in text.splitlines()]
    text = re.sub(r"```.*?```", "", README, flags=re.S)
    lines += [" ".join(inline.split()) for inline in re.findall(r"`([^`]+)`", text)]
    return list(dict.fromkeys(line for line in lines if PROGRAM.match(line)))


def pairs():
    """The commands that score a model and then ablate its heads, by model."""
    of_notebooks = [command for command in commands() if "/papermill" in command]
    ablated = [command.split("-p model ")[1] for command in of_notebooks if "notebooks/ablation.ipynb" in command]
    return {model: [command for command in of_notebooks if command.endswith(f"-p model {model}")] for model in ablated}


def test_the_readme_has_the_commands_that_are_looked_for():
    assert {"make book", "make test", "make help", "make book SUITE=my_suite", "make sweep SUITE=grid"} <= set(
        commands())
    assert len(commands()) >= 15 and len(BLOCKS) == 6


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("make ")])
def test_make_knows_what_the_readme_asks_of_it(tmp_path, command):
    """Programs are noted, not run, but for the suite that a target reads."""
    door = FrontDoor(tmp_path)
    if "Copy `config/lab.yaml` to `config/my_suite.yaml`" in README:
        shutil.copy(tmp_path / "config/lab.yaml", tmp_path / "config/my_suite.yaml")
    target, *variables = shlex.split(command)[1:]
    assert f"\nmake {target} " in door.make("help").stdout, "a target of the README has a line of help"
    for variable in variables:
        name, value = variable.split("=")
        assert re.search(rf"^(export )?{name} \?=|\$\({name}\)", (ROOT / "Makefile").read_text(), re.M), name
        assert name != "SUITE" or (tmp_path / "config" / f"{value}.yaml").is_file()
    done = door.make(target, *variables)
    assert done.returncode == 0, done.stderr
    assert door.calls or target == "help"
    suites = [variable.split("=")[1] for variable in variables if variable.startswith("SUITE=")]
    assert all(any(f"config/{suite}.yaml" in call for call in door.calls) for suite in suites)


def run(*command, folder=ROOT, **environment):
    """In an environment of its own, but for where kernels start warm, which know no other hub."""
    warm = {name: os.environ[name] for name in ("ICL_WARM", "JUPYTER_PATH")
            if name in os.environ and "HF_ENDPOINT" not in environment}
    environment = {"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **warm, **environment}
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, timeout=300,
                          env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def notebook(command, tmp_path):
    """The papermill command from the repository's root, with its output and its tables elsewhere."""
    template, executed, *given = shlex.split(command)[1:]
    run("-m", "papermill", template, str(tmp_path / executed), *given, "-p", "results", str(tmp_path / "results"),
        *LESS["scoring"], HOME=str(tmp_path))
    named = dict(zip(given[1::3], given[2::3], strict=True))
    table = tmp_path / "results" / "scores" / named["model"] / f"step{named['step']}.parquet"
    scores = read_table(table, schema_name="scores")
    parameters = scores.attrs["provenance"]["parameters"]
    assert (parameters["model"], parameters["step"]) == (named["model"], int(named["step"]))
    heads = scores[scores["score"] == "induction_prefix_matching"]
    assert heads.groupby("layer")["head"].nunique().tolist() == [4, 4, 4]
    assert heads["value"].between(0, 1).all() and heads["value"].max() > 0.5, "it has induction heads"
    outputs = [output for cell in nbformat.read(tmp_path / executed, as_version=4).cells
               for output in cell.get("outputs", [])]
    figures = figures_in("".join(output.get("data", {}).get("text/html", "") for output in outputs))
    assert figures and all(sum(points_drawn(svg)) > 0 for svg in figures)


def headline(command, tmp_path):
    """The figure from a table of the suite that it names."""
    module, results, model = shlex.split(command)[2:]
    rows = [(metric, ranking, "fv" if "matched" in ranking else "", excluded, fraction, task)
            for metric in ("first_token_accuracy", "token_loss_difference")
            for ranking in ("none", "fv", "induction", "random", "random_layer_matched")
            for excluded in (("", "top 0.1") if ranking in ("fv", "induction") else ("",))
            for fraction in ((0.0,) if ranking == "none" else (0.1, 0.2)) for task in "ab"]
    table = pd.DataFrame(rows, columns=["metric", "ranking", "matched", "excluded", "fraction", "task"])
    edited = table["ranking"] != "none"
    table = table.assign(
        model=model, step=4096, replacement=np.where(edited, "mean", "none"), positions=np.where(edited, "all", "none"),
        n_heads=1, draw=0, value=1 - table["fraction"], standard_error=0.1, n_prompts=4)
    write_table(table, tmp_path / results / "ablations" / model / "step4096.parquet", schema_name="ablations",
                provenance=provenance(suite="s", seed=0, dtype="", device="", bos="", parameters={}))
    (tmp_path / "book/_static").mkdir(parents=True)
    printed = run("-m", module, results, model, folder=tmp_path, PYTHONPATH=str(ROOT), HOME=str(tmp_path)).strip()
    assert f"]({printed})" in README, "it draws the figure that the README shows"
    assert min(points_drawn((tmp_path / printed).read_text())) > 0


RUN = {".venv/bin/papermill notebooks/scoring.ipynb": notebook, "python -m workflow.headline": headline}


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [c for c in commands() if not c.startswith("make ") and c not in sum(pairs().values(), [])])
def test_other_commands_run(tmp_path, command):
    runner = next((runner for start, runner in RUN.items() if command.startswith(start)), None)
    assert runner, f"no test runs {command!r}"
    runner(command, tmp_path)


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    """A user's folder: the repository, her model beside it, and a hub that has the README's; with the environment."""
    folder = tmp_path_factory.mktemp("user")
    served, hub_id = make(folder / "served"), next(model for model in pairs() if not model.startswith("."))
    shutil.copytree(served / "models/standin/gpt-neox-tiny/main", served / "models" / hub_id / "main")
    shutil.copytree(served / "models/standin/llama-tiny/main", folder / "my_model")
    (folder / "repository").mkdir()
    (folder / "repository" / "notebooks").symlink_to(ROOT / "notebooks")
    with serve(served) as address:
        variables = {k: v for k, v in environment(address, folder).items() if k.startswith(("HF_", "ICL_"))}
        yield folder, variables | {"HOME": str(folder), "PYTHONPATH": str(ROOT)}


@pytest.mark.end_to_end
@pytest.mark.parametrize("model", pairs())
def test_scoring_and_ablation_of_any_model_need_its_name_alone(user, model):
    """The two commands as they stand, with less to measure and their tables elsewhere; `../my_model` is her folder."""
    folder, variables = user
    assert [re.search(r"notebooks/(\w+)", command)[1] for command in pairs()[model]] == ["scoring", "ablation"]
    results = folder / "results"
    for command, less in zip(pairs()[model], LESS.values(), strict=True):
        run("-m", "papermill", *shlex.split(command)[1:], "-p", "results", str(results), *less,
            folder=folder / "repository", **variables)
    assert {path.name for path in (folder / "my_model").iterdir()} >= {"config.json", "model.safetensors"}
    (effects,) = results.glob(f"effects/**/{'my_model-*' if model.startswith('.') else model_folder(model)}/*.parquet")
    assert effects.name == "step-1.parquet"
    made_by = read_table(effects, schema_name="effects").attrs["provenance"]
    assert made_by["parameters"]["task_files"] == "upstream"
    assert made_by["parameters"]["documents"] == "python-reference" and all(made_by["sums"].values())
    assert made_by["revision"].startswith("main (commit ") or model.startswith(".")


@pytest.mark.end_to_end
def test_the_snippet_scores_every_head(tmp_path):
    """As it stands, from the repository's root; its comment says which axes come out."""
    (snippet,) = [text for language, text in BLOCKS if language == "python"]
    assert len(snippet.splitlines()) == 5 and "## Library in five lines" in README
    assert snippet.count("# [layer, head]") == 2
    out = tmp_path / "scores.npz"
    run("-c", f"{snippet}\nimport numpy as np\n"
        f"np.savez({str(out)!r}, induction=induction, fv=fv, shape=[model.cfg.n_layers, model.cfg.n_heads])",
        HOME=str(tmp_path))
    scores = np.load(out)
    assert scores["induction"].shape == scores["fv"].shape == tuple(scores["shape"]) == (6, 4)
    assert 0 <= scores["induction"].min() and 0.5 < scores["induction"].max() <= 1, "the last step has induction heads"
    assert np.abs(scores["fv"]).max() <= 1 and np.ptp(scores["fv"]) > 0


def of_page(title):
    """The code blocks of a section of the page on reproduction."""
    page = (ROOT / "book/reproduce.md").read_text(encoding="utf-8")
    return re.findall(r"```\w*\n(.*?)```", page.split(f"\n## {title}\n")[1].split("\n## ")[0], re.S)


@pytest.mark.end_to_end
def test_the_pages_snippet_ablates(tmp_path):
    (snippet,) = of_page("An ablation in Python")
    printed = run("-c", snippet, HOME=str(tmp_path))
    found = dict(re.findall(r"^(none|FV heads) +([\d.]+)$", printed, re.M))
    assert float(found["FV heads"]) < float(found["none"]), printed


@pytest.mark.end_to_end
def test_own_tasks_are_measured_and_then_ablated_again_with_the_same_scores(tmp_path):
    """Cards and commands as they stand, with less to measure; pairs are those of the lab's tasks of these names."""
    pairs, cards, commands = of_page("Tasks and documents of your own")
    folder, results = tmp_path / "my_tasks/tasks/abstractive", tmp_path / "results"
    folder.mkdir(parents=True)
    (tmp_path / "my_tasks/cards.json").write_text(cards)
    for name in json.loads(cards):
        shutil.copy(ROOT / f"lab/world/tasks/abstractive/{name}.json", folder)
    assert json.loads(pairs) == json.loads((folder / "antonym.json").read_text())[:2]
    (tmp_path / "notebooks").symlink_to(ROOT / "notebooks")
    (again,) = [block for block in of_page("A model of your own") if "cp -r" in block]
    copy, other = again.splitlines()
    for command, less in zip((*commands.splitlines(), other), [*LESS.values(), LESS["ablation"]], strict=True):
        if command == other:
            command = command.replace("../my_model", "lab-7k -p task_files my_tasks/tasks")
            for part in copy.replace("results/try", "results/my_tasks").split(" && "):
                subprocess.run(shlex.split(part), cwd=tmp_path, check=True)
        given = shlex.split(command.replace("results results/", f"results {results}/"))[1:]
        run("-m", "papermill", *given, *less, folder=tmp_path, PYTHONPATH=str(ROOT), HOME=str(tmp_path))
    made = {path.relative_to(results).parts[:2] for path in results.rglob("*.parquet")}
    assert {("my_tasks", "scores"), ("my_tasks", "effects"), ("second", "effects")} <= made
    assert ("second", "accuracy") not in made
    for place, n_shots in (("my_tasks", 10), ("second", 5)):
        table = read_table(results / place / "ablations/lab-7k/step-1.parquet", schema_name="ablations")
        assert table.attrs["provenance"]["parameters"]["n_shots"] == n_shots and {*table["task"]} >= {"antonym"}


def test_the_folders_and_files_that_it_names_are_there():
    (tree,) = [text for language, text in BLOCKS if language == "text"]
    named, words = set(), {}
    for line in tree.splitlines():
        parts = re.split(r" {2,}", line.strip())
        names = [part for part in parts if re.fullmatch(r"[\w.]+/?", part)]
        named |= {("icl_lib/" if line[0] == " " else "") + name.rstrip("/") for name in names}
        words[names[0]] = parts[-1]
    assert all((ROOT / name).exists() for name in named), named
    rooms = {f"icl_lib/{path.stem if path.is_dir() else path.name}" for path in (ROOT / "icl_lib").iterdir()
             if path.is_dir() and path.name != "__pycache__" or path.suffix == ".py" and path.stem[0] != "_"}
    assert rooms - named == {f"icl_lib/{name}.py" for name in ("notebook", "parameters", "progress", "saved")}
    assert {"icl_lib", "notebooks", "lab", "pretrained", "config", "workflow", "book", "tests", "benchmarks"} <= named
    suites = words["config/"].removeprefix("suites: ").replace(" (default)", "").split(", ")
    assert all((ROOT / "config" / f"{name}.yaml").is_file() for name in suites)
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert all((ROOT / link).exists() for link in links if not link.startswith("http"))
