"""pyproject.toml, requirements.lock and environment.yml describe one environment, and it is this one."""

import importlib.metadata
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent


def locked():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    for requirement in requirements:
        assert [s.operator for s in requirement.specifier] == ["=="], (
            f"{requirement} is not one exact version"
        )
        assert requirement.url is None
    found = {canonicalize_name(r.name): Version(next(iter(r.specifier)).version) for r in requirements}
    assert len(found) == len(requirements), "a package is locked twice"
    return found


def wanted():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    return [Requirement(line) for line in project["dependencies"] + extras]


def test_every_dependency_is_locked_within_its_range():
    versions = locked()
    for requirement in wanted():
        name = canonicalize_name(requirement.name)
        assert name in versions, f"{name} is not locked"
        assert versions[name] in requirement.specifier, f"{name} {versions[name]} is outside {requirement}"


def test_the_lock_is_closed():
    versions = locked()
    for name in versions:
        for line in importlib.metadata.requires(name) or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                needed = canonicalize_name(requirement.name)
                assert needed in versions, f"{name} needs {needed}, which is not locked"
                assert requirement.specifier.contains(versions[needed], prereleases=True), f"{name}: {line}"


def test_installed_versions_are_the_locked_ones():
    for name, version in locked().items():
        installed = Version(importlib.metadata.version(name))
        # Builds of one version for other hardware (2.13.0+cpu) count as that version.
        assert installed.public == version.public, f"{name} {installed} is installed, {version} is locked"


def test_nothing_is_locked_that_names_a_place_or_a_build():
    text = (ROOT / "requirements.lock").read_text()
    for part in ("://", "+cpu", "+cu", "file:", "-e ", "--", " @ "):
        assert part not in text.replace("#", ""), part


def test_conda_installs_the_same_lock_and_package():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    plain = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert pip == ["-r requirements.lock", "-e ."]
    # Everything but Python itself and the tools to start with comes from the lock.
    assert {entry.split("=")[0] for entry in plain} == {"python", "pip", "make"}
    python = next(entry for entry in plain if entry.startswith("python=")).removeprefix("python=")
    assert Requirement(f"python{project['requires-python']}").specifier.contains(f"{python}.0")


def make(*arguments, **environment):
    return subprocess.run(
        ["make", "-C", str(ROOT), *arguments], capture_output=True, text=True, env=os.environ | environment
    )


def test_an_old_python_is_named(tmp_path):
    old = tmp_path / "python3"
    old.write_text(
        f'#!/bin/sh\nshift\nexec {sys.executable} -c "import sys; sys.version_info = (3, 9); $1"\n'
    )
    old.chmod(0o755)
    done = make(f"PYTHON={old}", f"VENV={tmp_path / 'venv'}", "env")
    assert done.returncode != 0
    assert f"{old} is Python 3.9, but 3.11 or newer is needed" in done.stderr
    assert not (tmp_path / "venv").exists()
