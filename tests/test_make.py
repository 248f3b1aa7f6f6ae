"""Every target of the Makefile is run: what it calls is there, reaches it with the variables given, and may fail."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.front_door import FrontDoor
from tests.project import ROOT

MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.M)[1].split()
CALLS_NOTHING = ("help", "env", "clean")


@pytest.fixture
def door(tmp_path):
    return FrontDoor(tmp_path)


def listed(done):
    """Targets that `make help` lists, each with a line of its own."""
    return dict(re.findall(r"^make ([a-z-]+) +(\S.*)$", done.stdout, re.M))


def test_help_lists_every_target_but_the_steps_of_others(door):
    assert set(listed(door.make("help"))) == set(TARGETS) - {"suite"} and len(TARGETS) <= 15
    assert door.make().stdout == door.make("help").stdout


def programs(call):
    """Modules and files of the repository that a command names."""
    return (re.findall(r"python -m (?!pytest)([\w.]+)", call),
            re.findall(r"(?<!\S)(?:config|tests|notebooks|lab)/[^\s;]+", call))


def test_what_the_rarer_commands_call_is_there():
    """Those that are no targets stand in one place."""
    page = (ROOT / "book" / "reproduce.md").read_text().split("## Rarer commands")[1].split("\n## ")[0]
    commands = re.findall(r"^\| .*`([^`]+)` \|$", page, re.M)
    assert len(commands) == page.count("\n| ") - 1 >= 9
    for command in commands:
        modules, paths = programs(command)
        assert modules or paths, command
        assert all(map(importlib.util.find_spec, modules)) and all((ROOT / path).exists() for path in paths), command


@pytest.mark.parametrize("target", TARGETS)
def test_what_a_target_calls_is_there(door, target):
    done = door.make(target)
    assert done.returncode == 0, done.stderr
    assert bool(door.calls) != (target in CALLS_NOTHING)
    for call in door.calls:
        for module in re.findall(r"^python -m (\S+)", call):
            assert importlib.util.find_spec(module), call
        for path in re.findall(r"(?<!/)(?:config|tests|notebooks|lab)/\S+", call):
            assert (ROOT / path).exists(), call


@pytest.mark.parametrize("target", [t for t in TARGETS if t not in CALLS_NOTHING])
def test_a_target_fails_where_what_it_calls_fails(door, target):
    door.make(target)
    for call in door.calls:
        if "--unfinished" in call:  # a first look before the rest, which goes on without it
            continue
        failed = door.make(target, fails=call.split(" --")[0])
        assert failed.returncode != 0, call


def test_variables_reach_the_programs(door):
    (door.folder / "config" / "my_suite.yaml").write_text("")
    door.make("book", "SUITE=my_suite", "CORES=3")
    assert door.calls[0] == "python -m workflow.suite config/my_suite.yaml"
    assert "--cores 3 " in door.calls[1] and "--configfile config/my_suite.yaml " in door.calls[1]
    door.make("sweep", "PROFILE=profiles/slurm")
    assert "--workflow-profile profiles/slurm " in door.calls[1] and door.calls[1].endswith(" sweep")
    door.make("lab", "RUNG=lab-7k", "SEED=4")
    assert door.calls == ["python -m lab.retrain lab-7k --seed 4"]
    door.make("plan")
    assert "--quiet host rules --cores" in door.calls[1] and door.calls[1].endswith(" -n")


@pytest.mark.parametrize("cores", ["0", "-1", "1.5", "two", ""])
def test_cores_that_are_no_positive_whole_number_start_nothing(door, cores):
    done = door.make("sweep", f"CORES={cores}")
    assert done.returncode and f"CORES is '{cores}', expected a positive whole number" in done.stderr
    assert done.stderr.count("\n") == 1 and not door.calls


def test_a_book_is_made_of_what_has_finished_where_the_sweep_fails(door):
    assert "Open results/lab/book/_build/html/index.html" in door.make("book").stdout
    done = door.make("book", fails="snakemake")
    assert done.returncode != 0 and "Open " not in done.stdout
    assert door.calls[-1] == "python -m workflow.book --unfinished config/lab.yaml"


def test_a_wrong_suite_stops_everything_before_it_runs(door):
    for target in ("book", "sweep", "plan", "verify"):
        assert door.make(target, fails="workflow.suite").returncode != 0
        assert door.calls == ["python -m workflow.suite config/lab.yaml"]


def test_clean_removes_results_and_nothing_else(door):
    for name in ("results/lab", ".snakemake/log", "lab/models"):
        (door.folder / name).mkdir(parents=True)
    before = {path.name for path in door.folder.iterdir()}
    assert door.make("clean").returncode == 0
    assert before - {path.name for path in door.folder.iterdir()} == {"results", ".snakemake"}


def test_an_environment_is_made_once(door):
    (door.folder / ".venv" / ".installed").unlink()
    door.make("env")
    assert [call.split()[:4] for call in door.calls[1:]] == [
        ["python", "-m", "venv", ".venv"], *[["python", "-m", "pip", "install"]] * 2]
    door.make("env")
    assert not door.calls
    os.utime(door.folder / ".venv" / ".installed", (0, 0))  # older than the lock
    assert door.make("env").returncode == 0 and len(door.calls) == 4


@pytest.mark.parametrize(("arguments", "status", "says"), [
    (["check"], 0, "All checks passed"),
    (["suite"], 0, ""),
    (["suite", "SUITE=labs"], 2, "error: suite file config/labs.yaml does not exist"),
])  # fmt: skip
def test_in_the_repository_itself(arguments, status, says):
    """The programs that are quick, for real; the environment is taken as it is."""
    environment = Path(sys.prefix)
    done = subprocess.run(
        ["make", "-C", str(ROOT), "-o", f"{environment}/.installed", f"VENV={environment}", *arguments],
        capture_output=True, text=True)
    assert done.returncode == status and says in done.stdout + done.stderr, done.stderr
