"""What the repository carries: few megabytes, and of the lab's checkpoints those that a suite reads."""

import subprocess

import pytest

from icl_lib.models.locate import steps_of
from tests.project import ROOT
from workflow.suite import read_suite

LIMIT = 45 * 2**20


def tracked():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [path for name in names.split("\0") if name and (path := ROOT / name).is_file()]


def test_a_checkout_stays_small():
    assert sum(path.stat().st_size for path in tracked()) <= LIMIT


def test_every_checkpoint_of_the_lab_is_read_by_a_suite():
    suites = [read_suite(ROOT / f"config/{name}.yaml") for name in ("lab", "smoke", "grid", "torture")]
    for folder in sorted({step.parent for step in ROOT.glob("lab/models/*/seed*/step*")}):
        seed = folder.name.removeprefix("seed")
        model = folder.parent.name + (f"-seed{seed}" if seed != "0" else "")
        read = {step for suite in suites for step in suite.steps.get(model, [])
                if f"{suite.results}/scores/{model}/step{step}.parquet" not in suite.copied}
        assert set(steps_of(model)) == read, model
