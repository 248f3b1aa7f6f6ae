"""The stand-in hub end to end: every architecture and revision through `load_model`, documents and tasks through it."""

import json
import subprocess
import sys

import pytest

from tests.conftest import GOLDEN
from tests.support.standin.__main__ import main
from tests.support.standin.data import ARCHITECTURES
from tests.support.standin.server import commit_of

ROOT = GOLDEN.parents[1]
USE = """
import json, torch
from icl_lib import induction_scores, load_model, repeated_random_tokens
from icl_lib.data.documents import read_documents
from icl_lib.models.locate import count_parameters
from icl_lib.measurements import made_by
from icl_lib.data.sources import read_tasks

found = {}
for name in ARCHITECTURES:
    for step in (1, 1000, None):
        model = load_model(f"standin/{name}", step=step, device="cpu")
        scores = induction_scores(model, repeated_random_tokens(model, n_sequences=2, length=8, seed=0))
        made = made_by(model, suite="s", seed=0, parameters={})
        found[f"{name}/{'main' if step is None else f'step{step}'}"] = made["revision"], scores.sum().item()
    assert count_parameters(f"standin/{name}") == count_parameters(f"standin/{name}", 1000) > 0
rows = read_documents("standin/documents@main", model.tokenizer, n_documents=3, length=512, seed=0)
try:
    read_documents("standin/documents@old", model.tokenizer, n_documents=3, length=512, seed=0)
except ValueError as error:
    refused = str(error)
n_tasks = len(read_tasks("upstream"))
print(json.dumps({"found": found, "rows": list(rows.shape), "refused": refused, "n_tasks": n_tasks}))
"""


@pytest.mark.end_to_end
def test_models_documents_and_tasks_come_through_the_real_clients(tmp_path):
    code = USE.replace("ARCHITECTURES", repr(ARCHITECTURES))
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.standin", str(tmp_path), sys.executable, "-c", code], cwd=ROOT,
        capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    got = json.loads(done.stdout.splitlines()[-1])
    models = tmp_path / "served" / "models" / "standin"
    for key, (revision, _) in got["found"].items():
        assert revision == f"{key.split('/')[1]} (commit {commit_of(models / key)})"
    values = [value for _, value in got["found"].values()]
    assert len(values) == 9 and len(set(values)) == 6  # main is step 1000 again
    assert got["rows"] == [3, 512] and got["n_tasks"] == 48
    assert "standin/documents@old" in got["refused"] and "\n" not in got["refused"]


def test_the_command_s_exit_status_is_passed_on(tmp_path, monkeypatch, capsys):
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "complete").touch()  # nothing to make
    code = "import os, sys; sys.exit(7 if os.environ['HF_ENDPOINT'] in os.environ['ICL_TASK_FILES_URL'] else 1)"
    monkeypatch.setattr("sys.argv", ["standin", str(tmp_path), sys.executable, "-c", code])
    assert main() == 7
    monkeypatch.setattr("sys.argv", ["standin", str(tmp_path)])
    assert main() == 2 and capsys.readouterr().err.count("\n") == 1
