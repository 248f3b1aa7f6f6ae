"""Function vectors: what they are made of, that adding one acts as a plain hook does, items held out, bad input."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from icl_lib.data.sources import read_tasks
from icl_lib.data.tasks import Prompt, draw_prompts
from icl_lib.figures.injection import execution_by_layer, execution_points
from icl_lib.forward.encoded import TokenBatch
from icl_lib.forward.run import run_added
from icl_lib.heads import head_names
from icl_lib.injection import (
    execution_table,
    function_vector,
    head_sets,
    split_pairs,
    without_demonstrations,
)
from icl_lib.kinds import heads_of_kind
from icl_lib.pages.injection import execution_sentence
from tests.conftest import ARCHITECTURES, projections_of, tiny_model
from tests.test_ablation_effects import scores as scores_of


def layers_of(hf_model):
    return next(m for m in hf_model.modules() if isinstance(m, torch.nn.ModuleList))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_adding_a_vector_acts_and_equals_a_plain_hook(architecture):
    model, hf_model = tiny_model(architecture, 3, 4, n_kv_heads=2)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, 400, (2, 9), generator=generator)
    lengths = torch.tensor([9, 6])
    vectors = torch.randn(5, model.cfg.d_model, dtype=torch.float64, generator=generator)
    vectors[2] = 0
    at = torch.tensor([2, 0, 1, 1, 0])
    targets = torch.tensor([[7], [8]])
    quick = run_added(model, TokenBatch(tokens, lengths, [0, 1]), vectors, at, targets)
    for sequence in range(2):
        fed = tokens[sequence : sequence + 1, : lengths[sequence]]
        with torch.no_grad():
            plain = hf_model(fed).logits[0, -1].log_softmax(-1)
        for row, (vector, layer) in enumerate(zip(vectors, at.tolist(), strict=True)):

            def add(_layer, _args, output, vector=vector):
                hidden = output[0] if isinstance(output, tuple) else output
                hidden[:, -1] += vector

            handle = layers_of(hf_model)[layer].register_forward_hook(add)
            with torch.no_grad():
                slow = hf_model(fed).logits[0, -1].log_softmax(-1)
            handle.remove()
            assert torch.allclose(slow, plain) == (row == 2)  # a vector acts, a zero vector does not
            # the bridge computes parts of rotary models in float32, whatever the dtype
            target = int(targets[sequence])
            torch.testing.assert_close(quick.log_probability[sequence, row, 0], slow[target], rtol=1e-5, atol=1e-6)
            assert bool(quick.correct[sequence, row, 0]) == (int(slow.argmax()) == target)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_vector_is_what_the_heads_write(architecture):
    model, hf_model = tiny_model(architecture, 3, 4, n_kv_heads=2)
    with torch.no_grad():
        for projection in projections_of(hf_model) + [b.attn.o.original_component for b in model.blocks]:
            if getattr(projection, "bias", None) is not None:
                projection.bias.fill_(0.5)
    mean_z = torch.randn(3, 4, model.cfg.d_head, dtype=torch.float64)
    heads = np.zeros((3, 4), dtype=bool)
    heads[0, 1] = heads[2, 3] = heads[2, 0] = True
    expected, biases = 0, 0
    for layer, projection in enumerate(projections_of(hf_model)):
        weight = projection.weight if architecture != "gpt2" else projection.weight.T  # [d_model, head * d_head]
        by_head = weight.unflatten(1, (4, -1))
        for head in range(4):
            if heads[layer, head]:
                expected = expected + by_head[:, head] @ mean_z[layer, head]
                biases = biases + (0.5 if getattr(projection, "bias", None) is not None else 0.0)
    torch.testing.assert_close(function_vector(model, mean_z, heads), expected)
    torch.testing.assert_close(function_vector(model, mean_z, heads, bias_per_head=True), expected + biases)
    assert (function_vector(model, mean_z, np.zeros_like(heads)) == 0).all()


def test_test_pairs_are_in_no_mean_and_no_demonstration():
    for name, task in read_tasks().items():
        for_means, for_test = split_pairs(task, seed=1)
        test = for_test.query_pairs
        assert test and set(test) <= set(task.query_pairs)
        assert not set(test) & set(for_means.pairs), name
        assert not set(test) & set(for_test.training_pairs)
        assert for_means.query_pairs
    drawn = draw_prompts(for_test, n_prompts=5, n_shots=3, bos="<b>", seed=0)
    bare = [without_demonstrations(p, "<b>") for p in drawn.clean]
    assert [(p.answer, p.text.count("Q:"), p.text[:6]) for p in bare] == [(p.answer, 1, "<b>Q: ") for p in drawn.clean]
    assert without_demonstrations(Prompt("<b>Q: x\nA:", " y"), "<b>").text == "<b>Q: x\nA:"
    with pytest.raises(ValueError, match="leaves nothing to one side"):
        split_pairs(task, share=0.0)


def table(neox, tasks, **changes):
    model = neox.model
    shape = model.cfg.n_layers, model.cfg.n_heads
    scores = scores_of(*shape)
    options = {"fraction": 0.1, "layers": [0, 2], "n_prompts": 4, "n_shots": 3, "n_draws": 2, "name": "m", "step": 1,
               "seed": 0}
    return execution_table(model, tasks, scores, **(options | changes))


def test_the_table_has_every_kind_layer_and_draw(neox):
    tasks = {name: task for name, task in list(read_tasks().items())[:2]}
    found = table(neox, tasks)
    assert set(found["prompts"]) == {"clean", "zero_shot", "shuffled"}
    edited = found[(found["prompts"] == "shuffled") & (found["items"] == "all") & (found["heads"] != "none")]
    for task in tasks:
        kinds = edited[edited["task"] == task].groupby("heads").size().to_dict()
        assert kinds == {"fv": 2, "induction": 2, "random": 4, "random_layer_matched": 4}
    assert found["value"].between(0, 1).all() and (found[found["items"] == "all"]["n_prompts"] == 4).all()
    again = table(neox, tasks)
    assert found.equals(again)
    released = table(neox, tasks, preset_name="released")
    assert set(released["draw"]) == {0} and set(released["preset"]) == {"released"}


def test_the_released_vector_is_the_same_for_every_task(neox, monkeypatch):
    import icl_lib.injection as module

    tasks = {name: task for name, task in list(read_tasks().items())[:2]}
    seen = {}
    for name in ("task", "released"):
        vectors = []
        monkeypatch.setattr(module, "_of_task", lambda *a, vectors=vectors: vectors.append(a[4]) or _empty())
        table(neox, tasks, preset_name=name)
        seen[name] = vectors
    assert torch.equal(*seen["released"]) and not torch.equal(*seen["task"])


def _empty():
    import pandas as pd

    return pd.DataFrame({"task": []})


def test_head_sets_have_random_heads_of_neither_kind_or_none():
    scores = scores_of(4, 8, n_of_kind=3)
    sets = head_sets(scores, fraction=0.1, n_draws=3, seed=0)
    tops = {kind: heads for kind, _, heads in sets if kind in ("fv", "induction")}
    assert len(tops) == 2 and len(sets) == 2 + 6 and all(int(heads.sum()) == 4 for _, _, heads in sets)
    taken = np.any([*tops.values(), *heads_of_kind(scores).values()], axis=0)
    assert not any((heads & taken).any() for kind, _, heads in sets if kind.startswith("random"))
    assert {kind for kind, *_ in head_sets(scores, fraction=0.5, n_draws=3, seed=0)} == {"fv", "induction"}
    few = head_sets(scores_of(1, 4, n_of_kind=1), fraction=0.25, n_draws=30, seed=0)
    names = [(kind, *head_names(heads)) for kind, _, heads in few]
    assert 2 < len(names) <= 2 + 2 * 3 and len(set(names)) == len(names)


def test_intervals_of_the_sentence_hold_draws_that_differ():
    """One draw helps and one does harm, in every task alike: what random heads do is not known to a few hundredths."""
    draws = {("none", 0): 0.1, ("fv", 0): 0.3, ("random_layer_matched", 0): 0.02, ("random_layer_matched", 1): 0.42}
    rows = pd.DataFrame([
        {"preset": "task", "items": "all", "prompts": prompts, "task": f"t{i}", "heads": heads, "draw": draw,
         "layer": -1 if heads == "none" else layer, "value": value + 0.01 * (i % 2)}
        for prompts in ("clean", "zero_shot", "shuffled") for i in range(6) for layer in range(3)
        for (heads, draw), value in draws.items()]).drop_duplicates(["prompts", "task", "heads", "draw", "layer"])
    words = execution_sentence(rows, preset="task", items="all")
    gain, low, high = map(float, re.findall(
        r"([+-][\d.]+) against random heads of the same layers \(([+-][\d.]+) to ([+-][\d.]+)\)", words)[1])
    assert gain == pytest.approx(0.08) and low < -0.12 and high > 0.28
    assert "+0.20 against nothing added (+0.20 to +0.20)" in words


def test_without_random_heads_the_sentence_and_figure_say_so(neox):
    tasks = {name: task for name, task in list(read_tasks().items())[:2]}
    rows = table(neox, tasks, fraction=0.5, layers=[0, 1, 2])
    assert set(rows["heads"]) == {"none", "fv", "induction"}
    words = execution_sentence(rows, preset="task", items="all")
    assert "no random heads of neither kind are left to compare with" in words and "against nothing added" in words
    assert "nan" not in words and "random heads of the same layers" not in words
    assert "no random heads" in execution_points(rows, 0.5, seed=0).caption
    assert "no random heads" in execution_by_layer(rows, seed=0).caption
    plt.close("all")


def test_bad_input_is_refused_in_one_line(neox):
    tasks = {name: task for name, task in list(read_tasks().items())[:1]}
    with pytest.raises(ValueError, match="layer 9 is outside 0..3"):
        table(neox, tasks, layers=[9])
    with pytest.raises(ValueError, match="unknown preset 'realeased'; valid are task, released; nearest: released"):
        table(neox, tasks, preset_name="realeased")


def test_a_model_that_answers_nothing_is_shown_and_said(neox):
    tasks = {name: task for name, task in list(read_tasks().items())[:2]}
    rows = table(neox, tasks, preset_name="released")
    rows = rows[rows["items"] == "all"]
    axes = execution_points(rows, 0.5, seed=0).axes
    assert not axes[0, 0].collections, "points for items that are none"
    words = execution_sentence(rows, preset="released", items="answered")
    assert words == "**released** (answered items, layer 1): no item was answered after clean demonstrations."
