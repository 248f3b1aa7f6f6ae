"""FV scores against one full pass per head through plain transformers, over random shapes."""

import io

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from icl_lib import Prompt, TaskPrompts, fv_scores, load_model, measurements, permuted_mean_scores
from icl_lib.data.sources import read_tasks
from icl_lib.scores.function_vectors import derangement
from tests.conftest import ARCHITECTURES, projections_of, tiny_model

BOS = "<|endoftext|>"


words = st.sampled_from([" red", " a", "Q: ", "\n", " winter", "x", " Copper"])
texts = st.lists(words, max_size=12).map(lambda parts: BOS + "".join(parts))
# plain tuples: beartype samples lists with the random module, which strategies may not touch
ONE_TOKEN = ((BOS, " red"),)
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
    d_head=st.sampled_from([8, 12, 16]),
    clean=pairs,
    shuffled=pairs,
    batch_size=st.integers(1, 4),
)
@example(n_layers=1, heads=(1, 1), d_head=8, clean=ONE_TOKEN, shuffled=ONE_TOKEN, batch_size=1)
@example(n_layers=3, heads=(4, 2), d_head=8, clean=ONE_TOKEN, shuffled=ONE_TOKEN * 2, batch_size=2)
def test_equals_one_full_pass_per_head(architecture, n_layers, heads, d_head, clean, shuffled, batch_size):
    prompts = TaskPrompts([Prompt(*pair) for pair in clean], [Prompt(*pair) for pair in shuffled])
    n_heads, n_kv_heads = heads
    model, hf_model = tiny_model(architecture, n_layers, n_heads, d_head, n_kv_heads)
    scored = fv_scores(model, {"task": prompts}, batch_size=batch_size)
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
    scored = fv_scores(model, {"task": prompts})
    assert expected.abs().max() > 1e-4
    assert (scored.scores - expected).abs().max() <= 1e-6


@pytest.mark.parametrize("dtype, tolerance", [("float16", 6e-3), ("bfloat16", 4e-2)])
def test_half_precision_moves_scores_by_no_more_than_is_documented(dtype, tolerance):
    tasks = dict(list(measurements.in_split(read_tasks(), "scoring").items())[::9])
    scores = {}
    for name in ("float32", dtype):
        model = load_model("lab-40k", device="cpu", dtype=name)
        prompts = measurements.prompts_of(model, tasks, n_prompts=4, n_shots=10, seed=0)
        scores[name] = fv_scores(model, prompts).scores
    assert scores["float32"].abs().max() > 0.1
    assert 0 < (scores[dtype] - scores["float32"]).abs().max() < tolerance


def test_scores_do_not_depend_on_batch_size_or_on_the_other_tasks(neox):
    together = fv_scores(neox.model, neox.prompts)
    task = next(iter(neox.prompts))
    for batch_size in (1, 4):
        alone = fv_scores(neox.model, {task: neox.prompts[task]}, batch_size=batch_size)
        torch.testing.assert_close(alone.by_task[task], together.by_task[task], rtol=1e-4, atol=1e-9)


def test_by_prompt_values_give_the_means_and_standard_errors(neox):
    scored = fv_scores(neox.model, neox.prompts)
    for task, effects in scored.by_prompt.items():
        assert scored.n_prompts[task] == len(effects) == len(neox.prompts[task].shuffled)
        torch.testing.assert_close(scored.by_task[task], effects.mean(0))
        torch.testing.assert_close(scored.standard_error_by_task[task], effects.std(0) / len(effects) ** 0.5)
    torch.testing.assert_close(scored.scores, torch.stack(list(scored.by_task.values())).mean(0))


def test_out_of_memory_halves_the_batch_and_changes_no_score(neox, monkeypatch):
    import icl_lib.forward.run as module

    expected = fv_scores(neox.model, neox.prompts)
    sizes, read = [], module.run

    def scarce(model, batch, edits, targets, **options):
        sizes.append(len(batch.rows))
        if len(batch.rows) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return read(model, batch, edits, targets, **options)

    monkeypatch.setattr(module, "run", scarce)
    scored = fv_scores(neox.model, neox.prompts, batch_size=6)
    assert max(sizes) == 6
    torch.testing.assert_close(scored.scores, expected.scores, rtol=1e-4, atol=1e-9)


def test_results_of_batches_come_in_the_order_of_the_sequences():
    from icl_lib.forward.encoded import in_batches

    def firsts(batch):  # two sequences at once are too much
        if len(batch.rows) > 1:
            raise RuntimeError("not enough memory")
        return batch.tokens[:, 0]

    sequences = [[7], [5, 0, 0], [9, 0], [4, 0, 0, 0], [8, 0]]
    for run in (firsts, lambda batch: batch.tokens[:, 0]):
        assert in_batches(run, sequences, 3, torch.device("cpu")).tolist() == [7, 5, 9, 4, 8]


def test_out_of_memory_in_the_clean_pass_halves_too_and_other_errors_pass(neox, monkeypatch):
    import icl_lib.forward.run as engine
    from icl_lib.forward import passes
    from icl_lib.forward.means import clean_means

    expected = clean_means(neox.model, neox.prompts)
    sizes, feed = [], passes.feed

    def scarce(hf_model, tokens):
        sizes.append(len(tokens))
        if len(tokens) > 1:  # what a CPU says
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes.")
        return feed(hf_model, tokens)

    monkeypatch.setattr(passes, "feed", scarce)
    means = clean_means(neox.model, neox.prompts, batch_size=4)
    assert sizes[:3] == [4, 2, 1]
    for task, mean in means.items():
        torch.testing.assert_close(mean, expected[task], rtol=1e-4, atol=1e-6)

    def broken(*_, **__):
        raise RuntimeError("something else")

    monkeypatch.setattr(engine, "run", broken)
    with pytest.raises(RuntimeError, match="something else"):
        fv_scores(neox.model, neox.prompts, mean_z=means)


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_shows_in_a_terminal_only(neox, monkeypatch, terminal):
    class Screen(io.StringIO):
        def isatty(self):
            return terminal

    screen = Screen()
    monkeypatch.setattr("sys.stderr", screen)
    fv_scores(neox.model, neox.prompts)
    assert ("FV scores" in screen.getvalue() and "clean means" in screen.getvalue()) == terminal
    assert bool(screen.getvalue()) == terminal


def test_answers_in_context_have_the_tokens_that_follow_the_prompt(neox, monkeypatch):
    import icl_lib.scores.function_vectors as module

    alone = fv_scores(neox.model, neox.prompts)
    assert torch.equal(fv_scores(neox.model, neox.prompts, answer="in_context").scores, alone.scores)
    # the space belongs to the prompt: alone the answer is another token than behind it
    prompts = TaskPrompts([Prompt(BOS + "Q: red\nA:", " red")], [Prompt(BOS + "Q: red\nA:", "red")])
    encoded = module.encode_prompts(neox.model, prompts.shuffled, "colours")
    whole = neox.model.tokenizer(BOS + "Q: red\nA:red", add_special_tokens=False)["input_ids"]
    behind = module.answers_in_context(neox.model, encoded, prompts)
    assert behind[0].answer == whole[len(encoded[0].tokens) :]
    merged = TaskPrompts(prompts.clean, [Prompt(BOS + " wint", "er")])
    assert "task 'colours', prompt 0: the answer is tokenised together" in refused(
        neox.model, {"colours": merged}, answer="in_context")
    assert "valid are alone, in_context" in refused(neox.model, {"colours": prompts}, answer="context")


def test_given_means_are_used_and_permuted_ones_are_a_null(neox, monkeypatch):
    scored = fv_scores(neox.model, neox.prompts)
    again = fv_scores(neox.model, neox.prompts, mean_z=scored.mean_z)
    assert torch.equal(again.scores, scored.scores)
    null = permuted_mean_scores(neox.model, neox.prompts, scored.mean_z, n_draws=2)
    assert null.shape == (2, *scored.scores.shape)
    assert not torch.allclose(null[0], scored.scores)
    monkeypatch.setattr("icl_lib.scores.function_vectors._VALUE_BYTES", 1)  # one draw at a time
    alone = permuted_mean_scores(neox.model, neox.prompts, scored.mean_z, n_draws=2)
    assert torch.allclose(alone, null, atol=1e-9, rtol=0)


def test_a_derangement_leaves_nothing_in_place():
    generator = torch.Generator().manual_seed(0)
    for n in range(2, 8):
        order = derangement(n, generator)
        assert sorted(order) == list(range(n))
        assert all(i != place for place, i in enumerate(order))


def refused(model, prompts, **options) -> str:
    with pytest.raises(ValueError) as error:
        fv_scores(model, prompts, **options)
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
