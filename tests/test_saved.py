"""Scoring that is killed goes on where it stopped, and only files that are its own are believed."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import icl_lib.scores.function_vectors as module
from icl_lib import fv_scores, permuted_mean_scores
from icl_lib.ablation import measure as grid
from icl_lib.ablation.conditions import Condition
from icl_lib.forward import replacements
from icl_lib.forward.means import clean_means
from icl_lib.saved import SavedResults, fingerprint
from tests.conftest import golden_case, tiny_model

ROOT = Path(__file__).resolve().parent.parent
FIELDS = ("by_task", "mean_z", "standard_error_by_task", "by_prompt", "shuffled_probability")


def same(first, second) -> bool:
    """Whether all numbers of two FVScores are equal bit for bit."""
    return torch.equal(first.scores, second.scores) and first.n_prompts == second.n_prompts and all(
        torch.equal(getattr(first, name)[task], value)
        for name in FIELDS for task, value in getattr(second, name).items())


def run(folder, target, deadly):
    """In a fork of the warm process where the tests run under one."""
    env = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-S", "workflow/warm.py", "--module", "tests.support.killed_scoring"]
    command += [str(folder), target, str(deadly)]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("target, fraction", [("effects", 0.5), ("files", 0.75)])
def test_killed_scoring_goes_on_where_it_stopped(tmp_path, target, fraction):
    whole = run(tmp_path / "whole", target, 0)
    n_calls = int(whole.stdout)
    killed = run(tmp_path / "killed", target, int(n_calls * fraction) + 1)
    assert killed.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), killed.stderr
    finished = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("*.safetensors")}
    n_tasks = len(golden_case("gpt_neox").prompts)
    assert n_tasks <= len(finished) < 2 * n_tasks  # all means, some effects

    again = run(tmp_path / "killed", target, 0)
    assert 0 < int(again.stdout) < n_calls
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("*.safetensors")}
    assert len(kept) == 2 * n_tasks and finished.items() <= kept.items()
    for path in (tmp_path / "whole").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "killed" / path.name).read_bytes()

    golden = golden_case("gpt_neox")
    undisturbed = fv_scores(golden.model, golden.prompts, batch_size=2)
    assert same(fv_scores(golden.model, golden.prompts, save_to=tmp_path / "killed"), undisturbed)


@pytest.fixture
def computed(monkeypatch):
    """The tasks whose effects were really computed, in order."""
    tasks, effects = [], module._task_effects

    def counted(model, encoded, mean_z, batch_size):
        tasks.append(encoded[0].task)
        return effects(model, encoded, mean_z, batch_size)

    monkeypatch.setattr(module, "_task_effects", counted)
    return tasks


def test_finished_tasks_are_read_and_null_draws_saved_too(neox, tmp_path, computed):
    first = fv_scores(neox.model, neox.prompts, save_to=tmp_path)
    null = permuted_mean_scores(neox.model, neox.prompts, first.mean_z, n_draws=2, save_to=tmp_path)
    n_computed = len(computed)
    again = fv_scores(neox.model, neox.prompts, save_to=tmp_path)
    assert same(first, again)
    null_again = permuted_mean_scores(
        neox.model, neox.prompts, first.mean_z, n_draws=2, save_to=tmp_path)
    assert torch.equal(null, null_again) and len(computed) == n_computed
    means = clean_means(neox.model, neox.prompts, saved=SavedResults(tmp_path, neox.model))
    assert all(torch.equal(means[task], first.mean_z[task]) for task in means)
    assert not list(tmp_path.glob(".*"))


def test_other_weights_prompts_or_means_are_not_read(neox, tmp_path, computed):
    task, prompts = next(iter(neox.prompts.items()))
    fv_scores(neox.model, {task: prompts}, save_to=tmp_path)
    one_less = {task: type(prompts)(prompts.clean[1:], prompts.shuffled)}
    fv_scores(neox.model, one_less, save_to=tmp_path)  # other means
    one_less = {task: type(prompts)(prompts.clean, prompts.shuffled[1:])}
    fv_scores(neox.model, one_less, save_to=tmp_path)
    assert computed == [task] * 3
    for seed in (0, 1):
        model, _ = tiny_model("gpt_neox", 2, 2, seed=seed)
        for _ in range(2):
            fv_scores(model, {task: prompts}, save_to=tmp_path)
    model.original_model.float()
    fv_scores(model, {task: prompts}, save_to=tmp_path)
    assert len(computed) == 6


def test_truncated_altered_and_foreign_files_are_computed_anew(neox, tmp_path, computed):
    tasks = dict(list(neox.prompts.items())[:2])
    expected = fv_scores(neox.model, tasks, save_to=tmp_path)
    originals = {path: path.read_bytes() for path in sorted(tmp_path.iterdir())}
    paths = list(originals)

    def spoil(kind, path):
        content = originals[path]
        if kind == "truncated":
            path.write_bytes(content[:-10])
        elif kind == "altered":
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        elif kind == "foreign":
            other = next(p for p in paths if p != path and len(originals[p]) == len(content))
            path.write_bytes(originals[other])
        else:
            path.write_text(json.dumps({"not": "safetensors"}))

    for kind in ("truncated", "altered", "foreign", "text"):
        computed.clear()
        for path in paths:
            spoil(kind, path)
        scored = fv_scores(neox.model, tasks, save_to=tmp_path)
        assert same(scored, expected) and len(computed) == len(tasks), kind
        assert {path: path.read_bytes() for path in sorted(tmp_path.iterdir())} == originals


def test_a_file_as_folder_is_refused(neox, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file, expected a folder"):
        fv_scores(neox.model, neox.prompts, save_to=tmp_path / "file")


def test_without_a_folder_nothing_is_saved(neox):
    results = SavedResults(None, neox.model)
    assert results.recall(lambda: {"x": torch.ones(1)}, "x")["x"] == 1


def test_fingerprints_tell_types_bits_and_places_apart():
    ones = torch.ones(4)
    parts = [(), ("1",), (1,), ("1", "2"), ("12",), (ones,), (ones.double(),), (ones.view(2, 2),), (-ones,),
             (torch.zeros(4),), (-torch.zeros(4),), (ones.bfloat16(),), ([1, 2],), ([[1], 2],)]  # fmt: skip
    assert len({fingerprint(*p) for p in parts}) == len(parts)
    assert fingerprint("a", ones) == fingerprint("a", ones.clone())


def test_fingerprints_take_tensors_of_any_stride():
    values = torch.arange(10.0, dtype=torch.float64).reshape(2, 5)
    assert fingerprint(values.T[:1, :1]) == fingerprint(torch.zeros(1, 1, dtype=torch.float64))
    assert fingerprint(values.T) == fingerprint(values.T.contiguous()) != fingerprint(values.reshape(5, 2))
    assert fingerprint(torch.tensor(1.0)) != fingerprint(torch.tensor([1.0]))


def test_the_mean_of_all_interventions_is_computed_once(neox, tmp_path, monkeypatch):
    calls, real = [], replacements.mean_over_tasks
    monkeypatch.setattr(replacements, "mean_over_tasks", lambda means: calls.append("mean") or real(means))
    shape = neox.model.cfg.n_layers, neox.model.cfg.n_heads
    clean = Condition("none", "", "", 0.0, 0, np.zeros(shape, dtype=bool))
    top = replace(clean, ranking="fv", fraction=0.5, heads=np.ones_like(clean.heads))
    prompts = dict(list(neox.prompts.items())[:2])
    found = {}
    for saved in (None, SavedResults(tmp_path, neox.model), SavedResults(tmp_path, neox.model)):
        found[saved] = [grid.measure(neox.model, [clean, top], prompts, neox.prompts, None, replacement="mean",
                                     positions=where, seed=0, saved=saved) for where in ("all", "last")]
    assert calls == ["mean"] * 3  # twice without a folder, once with it
    first, *others = found.values()
    for other in others:
        assert all(np.array_equal(a.values, b.values) for one, two in zip(first, other, strict=True)
                   for a, b in zip(one, two, strict=True))
