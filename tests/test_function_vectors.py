"""FV scores against one full pass per head through plain transformers, over random shapes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from icl_lib import Prompt, TaskPrompts, fv_scores, permuted_mean_scores
from icl_lib.function_vectors import derangement
from tests.conftest import ARCHITECTURES, projections_of, tiny_model

BOS = "<|endoftext|>"


words = st.sampled_from([" red", " a", "Q: ", "\n", " winter", "x", " Copper"])
texts = st.lists(words, max_size=12).map(lambda parts: BOS + "".join(parts))
# plain tuples: beartype samples lists with the random module, which strategies may not touch
pairs = st.lists(st.tuples(texts, st.sampled_from([" red", " W", " winter gentle"])), min_size=1, max_size=3)


def ids(model, text):
    return torch.tensor([model.tokenizer(text, add_special_tokens=False)["input_ids"]])


@torch.no_grad()
def brute_force(hf_model, model, prompts: TaskPrompts):
    """Mean over shuffled prompts of P(answer | one head replaced) - P(answer), a full pass for each head."""
    projections, n_heads = projections_of(hf_model), model.cfg.n_heads
    seen = []
    hooks = [p.register_forward_pre_hook(lambda _, args: seen.append(args[0][0, -1])) for p in projections]
    for prompt in prompts.clean:
        hf_model(ids(model, prompt.text))
    for hook in hooks:
        hook.remove()
    means = torch.stack(seen).unflatten(0, (-1, len(projections))).mean(0).unflatten(-1, (n_heads, -1))
    scores = torch.zeros(len(projections), n_heads, dtype=torch.float64)
    for prompt in prompts.shuffled:
        answer = ids(model, prompt.answer)[0, 0]
        unedited = hf_model(ids(model, prompt.text)).logits[0, -1].softmax(-1)[answer]
        for layer, head in torch.cartesian_prod(*map(torch.arange, scores.shape)).tolist():

            def replace(_, args, layer=layer, head=head):
                z = args[0].clone().unflatten(-1, (n_heads, -1))
                z[0, -1, head] = means[layer, head]
                return (z.flatten(-2),)

            hook = projections[layer].register_forward_pre_hook(replace)
            scores[layer, head] += (
                hf_model(ids(model, prompt.text)).logits[0, -1].softmax(-1)[answer] - unedited
            )
            hook.remove()
    return scores / len(prompts.shuffled), means


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    n_layers=st.integers(1, 3),
    heads=st.sampled_from([(1, 1), (2, 1), (2, 2), (4, 2), (6, 3)]),
    clean=pairs,
    shuffled=pairs,
    batch_size=st.integers(1, 4),
)
def test_equals_one_full_pass_per_head(architecture, n_layers, heads, clean, shuffled, batch_size):
    prompts = TaskPrompts([Prompt(*pair) for pair in clean], [Prompt(*pair) for pair in shuffled])
    n_heads, n_kv_heads = heads
    model, hf_model = tiny_model(architecture, n_layers, n_heads, n_kv_heads=n_kv_heads)
    scored = fv_scores(model, {"task": prompts}, batch_size=batch_size, progress=False)
    expected, means = brute_force(hf_model, model, prompts)
    assert (scored.scores - expected).abs().max() <= 1e-11
    assert (scored.mean_z["task"] - means).abs().max() <= 1e-11


def test_float32_is_exact_to_a_millionth_of_a_probability():
    model, hf_model = tiny_model("gpt_neox", 3, 4)
    prompts = TaskPrompts(
        *[[Prompt(f"{BOS}Q: {w}\nA:", " red") for w in words] for words in (("red", "a"), ("x", "y"))]
    )
    expected, _ = brute_force(hf_model, model, prompts)
    model.original_model.float()
    scored = fv_scores(model, {"task": prompts}, progress=False)
    assert expected.abs().max() > 1e-4
    assert (scored.scores - expected).abs().max() <= 1e-6


def test_scores_do_not_depend_on_batch_size_or_on_the_other_tasks(neox):
    together = fv_scores(neox.model, neox.prompts, progress=False)
    task = next(iter(neox.prompts))
    for batch_size in (1, 4):
        alone = fv_scores(neox.model, {task: neox.prompts[task]}, batch_size=batch_size, progress=False)
        torch.testing.assert_close(alone.by_task[task], together.by_task[task], rtol=1e-4, atol=1e-9)


def test_by_prompt_values_give_the_means_and_standard_errors(neox):
    scored = fv_scores(neox.model, neox.prompts, progress=False)
    for task, effects in scored.by_prompt.items():
        assert scored.n_prompts[task] == len(effects) == len(neox.prompts[task].shuffled)
        torch.testing.assert_close(scored.by_task[task], effects.mean(0))
        torch.testing.assert_close(scored.standard_error_by_task[task], effects.std(0) / len(effects) ** 0.5)
    torch.testing.assert_close(scored.scores, torch.stack(list(scored.by_task.values())).mean(0))


def test_out_of_memory_halves_the_batch_and_changes_no_score(neox, monkeypatch):
    import icl_lib.function_vectors as module

    expected = fv_scores(neox.model, neox.prompts, progress=False)
    sizes, read = [], module.read_edited_rows

    def scarce(model, batch, edits, targets):
        sizes.append(len(batch.rows))
        if len(batch.rows) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return read(model, batch, edits, targets)

    monkeypatch.setattr(module, "read_edited_rows", scarce)
    scored = fv_scores(neox.model, neox.prompts, batch_size=6, progress=False)
    assert max(sizes) == 6
    torch.testing.assert_close(scored.scores, expected.scores, rtol=1e-4, atol=1e-9)


def test_given_means_are_used_and_permuted_ones_are_a_null(neox):
    scored = fv_scores(neox.model, neox.prompts, progress=False)
    again = fv_scores(neox.model, neox.prompts, mean_z=scored.mean_z, progress=False)
    assert torch.equal(again.scores, scored.scores)
    null = permuted_mean_scores(neox.model, neox.prompts, scored.mean_z, n_draws=2, progress=False)
    assert null.shape == (2, *scored.scores.shape)
    assert not torch.allclose(null[0], scored.scores)


def test_a_derangement_leaves_nothing_in_place():
    generator = torch.Generator().manual_seed(0)
    for n in range(2, 8):
        order = derangement(n, generator)
        assert sorted(order) == list(range(n))
        assert all(i != place for place, i in enumerate(order))


def refused(model, prompts, **options) -> str:
    with pytest.raises(ValueError) as error:
        fv_scores(model, prompts, progress=False, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_bad_prompts_are_refused_naming_task_and_prompt(neox):
    good = Prompt(BOS + "Q: red\nA:", " Red")
    bad = {
        "exceed": Prompt(BOS + " red" * 2000, " Red"),
        "answer '' tokenises to nothing": Prompt(good.text, ""),
        "prompt '' tokenises to nothing": Prompt("", " Red"),
    }
    for message, prompt in bad.items():
        for task in (TaskPrompts([good, prompt], [good]), TaskPrompts([good], [good, prompt])):
            text = refused(neox.model, {"colours": task})
            assert message in text and "task 'colours', prompt 1" in text
    assert "'colours' has no prompts" in refused(neox.model, {"colours": TaskPrompts([good], [])})
    assert "'colours' has no prompts" in refused(neox.model, {"colours": TaskPrompts([], [good])})
    assert "no tasks" in refused(neox.model, {})
    assert "no means for task 'colours'" in refused(
        neox.model, {"colours": TaskPrompts([good], [good])}, mean_z={}
    )


def test_nan_is_refused_naming_task_and_prompt():
    model, _ = tiny_model("gpt2", 2, 2)
    good, bad = Prompt(BOS + " a", " red"), Prompt(BOS + " winter", " red")
    token = model.tokenizer(" winter", add_special_tokens=False)["input_ids"][0]
    assert token not in model.tokenizer(good.text, add_special_tokens=False)["input_ids"]
    model.original_model.get_input_embeddings().original_component.weight.data[token] = float("nan")
    for prompts in (TaskPrompts([good, bad], [good]), TaskPrompts([good], [good, bad])):
        text = refused(model, {"seasons": prompts})
        assert "NaN" in text and "task 'seasons', prompt" in text
