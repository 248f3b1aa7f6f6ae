"""The same numbers whatever the order and the grouping of the work, and a seed that reaches everything.

Whole sweeps are compared by tests/support/determinism.py; these are the parts.
"""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from icl_lib import fv_scores, induction_scores, permuted_mean_scores, repeated_random_tokens
from icl_lib.data.sources import read_tasks
from icl_lib.data.tasks import draw_prompts
from icl_lib.forward.edits import Edit
from icl_lib.forward.replacements import replacement_values
from icl_lib.heads import layer_matched_random_heads, nested_random_heads, random_heads, top_heads
from icl_lib.metrics.evaluate import answer_metrics, token_losses
from lab.text import lab_documents
from tests.project import make_project, suite
from workflow.notebooks import Run
from workflow.suite import check_suite

TOLERANCE = 1e-6


def test_the_order_of_tasks_does_not_matter(neox):
    orders = (neox.prompts, dict(reversed(neox.prompts.items())))
    forwards, backwards = (fv_scores(neox.model, prompts) for prompts in orders)
    for task in neox.prompts:
        assert torch.equal(forwards.by_task[task], backwards.by_task[task])
        assert torch.equal(forwards.mean_z[task], backwards.mean_z[task])
    assert_close(forwards.scores, backwards.scores, rtol=0, atol=1e-12)
    tasks = read_tasks()
    name = next(iter(tasks))
    draw = dict(n_prompts=3, n_shots=5, bos="", seed=0)
    alone = draw_prompts(tasks[name], **draw)
    draw_prompts(tasks["months_next"], **draw)
    assert draw_prompts(tasks[name], **draw) == alone


def test_the_order_of_conditions_and_of_other_edits_does_not_matter(neox):
    prompts = {task: p.clean for task, p in neox.prompts.items()}
    values = replacement_values(neox.model, neox.prompts, "mean")
    masks = [torch.from_numpy(random_heads((4, 4), 2, seed=0, draw=i)) for i in range(3)]
    edits = {f"draw {i}": {t: Edit(mask, v, "all") for t, v in values.items()} for i, mask in enumerate(masks)}
    edits["none"] = None
    columns = ["edit", "task", "prompt"]
    tables = [answer_metrics(neox.model, prompts, e).sort_values(columns, ignore_index=True)
              for e in (edits, dict(reversed(edits.items())), {"draw 1": edits["draw 1"]})]
    alone = tables[0][tables[0]["edit"] == "draw 1"].reset_index(drop=True)
    for found, expected in ((tables[1], tables[0]), (tables[2], alone)):
        gap = (found["first_token_probability"] - expected["first_token_probability"]).abs().max()
        assert gap < TOLERANCE and found[columns].equals(expected[columns])


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_batch_size_changes_nothing_beyond_rounding(neox, batch_size):
    model, prompts = neox.model, neox.prompts
    usual, other = (fv_scores(model, prompts, **o) for o in ({}, {"batch_size": batch_size}))
    assert_close(other.scores, usual.scores, rtol=0, atol=TOLERANCE)
    tokens = repeated_random_tokens(model, n_sequences=5, length=10, seed=0)
    assert_close(token_losses(model, tokens, None, batch_size=batch_size), token_losses(model, tokens, None),
                 rtol=0, atol=TOLERANCE)


def test_heads_of_equal_scores_are_taken_in_one_order_whatever_the_others():
    scores = np.zeros((3, 4))
    assert np.array_equal(np.flatnonzero(top_heads(scores, n_heads=5)), np.arange(5))
    assert np.array_equal(top_heads(-scores, n_heads=5), top_heads(scores, n_heads=5))  # minus zero


SEEDED = {
    "prompts": lambda neox, seed: draw_prompts(read_tasks()["months_next"], n_prompts=4, n_shots=5, bos="", seed=seed),
    "sequences": lambda neox, seed: repeated_random_tokens(neox.model, n_sequences=2, length=10, seed=seed).tolist(),
    "documents": lambda neox, seed: lab_documents(lab_tokenizer(), n_documents=1, length=64, seed=seed).tolist(),
    "random heads": lambda neox, seed: random_heads((8, 8), 9, seed=seed, draw=0).tolist(),
    "nested heads": lambda neox, seed: nested_random_heads((8, 8), 9, seed=seed, draw=0).tolist(),
    "matched heads": lambda neox, seed: layer_matched_random_heads(
        np.eye(8) > 0, seed=seed, draw=0).tolist(),
    "resampled values": lambda neox, seed: [
        values.tolist() for values in replacement_values(neox.model, neox.prompts, "resample", seed=seed).values()],
    "null scores": lambda neox, seed: permuted_mean_scores(
        neox.model, neox.prompts, clean(neox), n_draws=3, seed=seed).tolist(),
}  # fmt: skip


def lab_tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained("lab/models/lab-7k/seed0/step0")


def clean(neox):
    from icl_lib.forward.means import clean_means

    return clean_means(neox.model, neox.prompts)


@pytest.mark.parametrize("name", SEEDED)
def test_seeds_reach_everything_random_and_nothing_else_does(neox, name):
    first = SEEDED[name](neox, 0)
    torch.manual_seed(99)  # the state that other code leaves
    np.random.seed(99)  # noqa: NPY002
    assert SEEDED[name](neox, 0) == first
    assert SEEDED[name](neox, 1) != first


def test_the_order_of_models_in_a_suite_changes_no_parameter_of_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(make_project(tmp_path))
    (tmp_path / "models" / "other").symlink_to(tmp_path / "models" / "tiny")
    models = [{"name": "models/tiny", "steps": [8, 0]}, {"name": "models/other"}]
    suites = [check_suite(suite(models=m)) for m in (models, models[::-1])]
    for run in (Run("scoring", "models/tiny", 8), Run("model_scaling"), Run("claims"),
                Run("training_dynamics", "models/other")):
        assert suites[0].given(run) == suites[1].given(run)
    assert {path.as_posix() for path in suites[0].notebooks} == {path.as_posix() for path in suites[1].notebooks}


def test_induction_scores_of_sequences_in_another_order(neox):
    tokens = repeated_random_tokens(neox.model, n_sequences=6, length=10, seed=0)
    assert_close(induction_scores(neox.model, tokens.flip(0)), induction_scores(neox.model, tokens), rtol=0,
                 atol=TOLERANCE)
