"""One intervention: what an edit changes and leaves alone, and that the quick way equals the plain one."""

import numpy as np
import pytest
import torch

from icl_lib import (
    Edit,
    Prompt,
    TaskPrompts,
    answer_metrics,
    edited_heads,
    replacement_values,
    token_loss_differences,
    token_losses,
)
from icl_lib.forward.encoded import encode_prompts
from icl_lib.forward.passes import layers, plain_transformers
from icl_lib.heads import top_heads
from icl_lib.metrics.evaluate import answer_readouts
from tests.conftest import ARCHITECTURES, ablated_answer_probabilities, golden_case, projections_of, tiny_model

REPLACEMENTS = ("mean", "task_mean", "zero", "resample", "bos_value")


def heads_of(model, *chosen) -> torch.Tensor:
    mask = torch.zeros(model.cfg.n_layers, model.cfg.n_heads, dtype=torch.bool)
    for layer, head in chosen:
        mask[layer, head] = True
    return mask


def zeros(model, heads, positions) -> Edit:
    return Edit(heads, torch.zeros(1, *heads.shape, model.cfg.d_head), positions)


def ones(model, heads, positions) -> Edit:
    return Edit(heads, torch.ones(1, *heads.shape, model.cfg.d_head), positions)


@torch.no_grad()
def logits(model, tokens, edit=None, **inputs):
    with edited_heads(model, edit):
        return model(tokens, **inputs)


TOKENS = torch.arange(5, 17)[None]


@pytest.mark.parametrize("positions", ["last", "all"])
def test_ablating_nothing_changes_nothing(golden, positions):
    none = heads_of(golden.model)
    assert torch.equal(
        logits(golden.model, TOKENS, ones(golden.model, none, positions)), logits(golden.model, TOKENS)
    )
    for task, prompts in golden.prompts.items():
        edits = {"none": None, "empty": ones(golden.model, none, positions)}
        table = answer_metrics(golden.model, {task: prompts.clean}, edits).set_index(["edit", "prompt"])
        gap = table.loc["none", "first_token_probability"] - table.loc["empty", "first_token_probability"]
        assert gap.abs().max() < 1e-6


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_zeroing_all_heads_of_a_layer_everywhere_removes_its_attention(architecture):
    model, hf_model = tiny_model(architecture, 3, 4, n_kv_heads=2)
    for layer in range(3):
        edited = logits(model, TOKENS, zeros(model, heads_of(model, *[(layer, h) for h in range(4)]), "all"))
        projection = projections_of(hf_model)[layer]
        bias = getattr(projection, "bias", None)  # the projection's own bias is no head's output

        def without_attention(_module, _args, output, bias=bias):
            return torch.zeros_like(output) + (0 if bias is None else bias)

        hook = projection.register_forward_hook(without_attention)
        with torch.no_grad():
            # the bridge computes parts of rotary models in float32, whatever the dtype
            torch.testing.assert_close(edited, hf_model(TOKENS).logits, rtol=1e-4, atol=1e-5)
        hook.remove()


def test_an_edit_at_any_head_changes_the_logits_and_nothing_stays_behind(golden):
    model = golden.model
    before = logits(model, TOKENS)
    for layer in range(model.cfg.n_layers):
        for head in range(model.cfg.n_heads):
            for positions in ("last", "all"):
                edit = ones(model, heads_of(model, (layer, head)), positions)
                edited = logits(model, TOKENS, edit)
                assert not torch.allclose(edited[0, -1], before[0, -1], atol=1e-5)
                same_before = torch.equal(edited[0, :-1], before[0, :-1])
                assert same_before == (positions == "last")
                with torch.no_grad(), edited_heads(model, edit), plain_transformers(model) as hf_model:
                    torch.testing.assert_close(hf_model(TOKENS).logits, edited, rtol=1e-4, atol=1e-5)
    assert torch.equal(logits(model, TOKENS), before)


def test_a_mask_of_the_library_s_head_sets_is_an_edit_s(neox):
    model, clean = neox.model, {task: prompts.clean for task, prompts in neox.prompts.items()}
    found = top_heads(np.arange(16.0).reshape(4, 4), n_heads=2)
    by_hand = heads_of(model, (3, 2), (3, 3))
    tables = [answer_metrics(model, clean, {"edit": zeros(model, heads, "last")}) for heads in (found, by_hand)]
    assert tables[0].equals(tables[1])
    edits = [zeros(model, heads, "all") for heads in (found, by_hand)]
    assert torch.equal(*(logits(model, TOKENS, edit) for edit in edits))


def test_an_edit_equals_writing_to_hook_z(golden):
    model = golden.model
    edit = ones(model, heads_of(model, (1, 0), (1, 2)), "all")

    def write(z, hook):
        z[:, :, [0, 2]] = 1
        return z

    with torch.no_grad():
        by_hook = model.run_with_hooks(TOKENS, fwd_hooks=[("blocks.1.attn.hook_z", write)])
    torch.testing.assert_close(logits(model, TOKENS, edit), by_hook)


@pytest.mark.parametrize("positions", ["last", "all"])
def test_padding_on_either_side_does_not_move_the_edit(golden, positions):
    model = golden.model
    edit = ones(model, heads_of(model, (0, 1), (2, 0)), positions)
    alone = logits(model, TOKENS, edit)[0, -1]
    pad = torch.zeros(1, 3, dtype=torch.long)
    real, padded = torch.ones_like(TOKENS), torch.zeros_like(pad)
    right = logits(model, torch.cat([TOKENS, pad], 1), edit, attention_mask=torch.cat([real, padded], 1))
    torch.testing.assert_close(right[0, TOKENS.shape[1] - 1], alone, rtol=1e-4, atol=1e-5)
    mask = torch.cat([padded, real], 1)
    position_ids = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad(), edited_heads(model, edit), plain_transformers(model) as hf_model:
        left = hf_model(torch.cat([pad, TOKENS], 1), attention_mask=mask, position_ids=position_ids).logits
    torch.testing.assert_close(left[0, -1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("positions", ["last", "all"])
@pytest.mark.parametrize("replacement", REPLACEMENTS)
def test_shared_passes_equal_a_plain_pass_for_every_replacement(golden, replacement, positions):
    model = golden.model
    heads = heads_of(model, (1, 2), (2, 1))  # layer 0 is shared
    quick = ablated_answer_probabilities(
        model, golden.prompts, heads, replacement=replacement, positions=positions, seed=3
    )
    values = replacement_values(model, golden.prompts, replacement, seed=3)
    for task, prompts in golden.prompts.items():
        encoded = encode_prompts(model, prompts.clean, task)
        for i, prompt in enumerate(encoded):
            edit = Edit(heads, values[task][i : i + 1] if len(values[task]) > 1 else values[task], positions)
            plain = logits(model, torch.tensor([prompt.tokens]), edit)[0, -1].softmax(-1)[prompt.answer[0]]
            assert abs(quick[task][i] - plain) < 1e-6


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_many_edits_at_once_equal_generation_token_by_token(architecture):
    model, _ = tiny_model(architecture, 3, 4, n_kv_heads=2)
    prompts = [
        Prompt("<|endoftext|>Q: red\nA:", " winter gentle"),
        Prompt("<|endoftext|> x", " Red blue sea"),
        Prompt("<|endoftext|>Q: blue\nA: red", " gentle winter"),
    ]
    edits = [
        None,
        *(
            ones(model, heads_of(model, *chosen), p)
            for chosen in ([(0, 1)], [(2, 3), (1, 0)], [(2, 1)], [(1, 0), (1, 2)])
            for p in ("last", "all")
        ),
    ]
    encoded = encode_prompts(model, prompts, "task")
    readouts = answer_readouts(model, encoded, edits)
    for prompt, readout in zip(encoded, readouts, strict=True):
        assert len(prompt.answer) > 1
        for edit, quick in zip(edits, readout.log_probability, strict=True):
            fed, past, slow = torch.tensor([prompt.tokens]), None, []
            with torch.no_grad(), edited_heads(model, edit), plain_transformers(model) as hf_model:
                for token in prompt.answer:
                    out = hf_model(fed, past_key_values=past, use_cache=True)
                    slow.append(out.logits[0, -1].log_softmax(-1)[token])
                    fed, past = torch.tensor([[token]]), out.past_key_values
            torch.testing.assert_close(quick, torch.stack(slow))


def test_layers_below_the_first_edited_one_run_once(neox, monkeypatch):
    model = neox.model
    prompts = {"capitalize": neox.prompts["capitalize"].clean}
    edits = {str(i): ones(model, heads_of(model, (layer, 0)), "all") for i, layer in enumerate((2, 3, 2, 3, 2))}
    fed = [0] * model.cfg.n_layers
    handles = []
    for i, layer in enumerate(layers(model)):

        def count(_layer, args, kwargs, i=i):
            fed[i] += (args[0] if args else kwargs["hidden_states"]).shape[:2].numel()

        handles.append(layer.register_forward_pre_hook(count, with_kwargs=True))
    answer_metrics(model, prompts, edits, batch_size=100)
    for handle in handles:
        handle.remove()
    assert fed[0] == fed[1] and fed[2] == 4 * fed[0]  # one unedited pass, then the three copies edited in layer 2
    assert fed[3] < 6 * fed[0]  # the last layer gives keys and values, and outputs where they are read


@pytest.mark.parametrize("positions", ["last", "all"])
def test_numbers_do_not_depend_on_the_batch(golden, positions):
    model = golden.model
    prompts = {task: p.clean for task, p in golden.prompts.items()}
    values = replacement_values(model, golden.prompts, "resample", seed=1)
    heads = heads_of(model, (1, 0), (2, 1))
    edits = {"edit": {task: Edit(heads, v, positions) for task, v in values.items()}, "none": None}
    tables = [answer_metrics(model, prompts, edits, batch_size=n) for n in (1, 2, 50)]
    for table in tables[1:]:
        gap = (table["first_token_probability"] - tables[0]["first_token_probability"]).abs().max()
        assert gap < 1e-6 and table["exact_match"].equals(tables[0]["exact_match"])


def test_exact_match_is_greedy_decoding(golden):
    model = golden.model
    encode = model.tokenizer

    def greedy(text: str) -> str:
        tokens = encode(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        options = {"attention_mask": torch.ones_like(tokens), "max_new_tokens": 2, "do_sample": False}
        return encode.decode(model.original_model.generate(tokens, pad_token_id=0, **options)[0, tokens.shape[1] :])

    texts = [prompt.text for prompts in golden.prompts.values() for prompt in prompts.clean]
    answers = [greedy(text) for text in texts]
    # of random models some answers do not survive decoding and encoding, which is not what is tested
    whole = [
        (t, a)
        for t, a in zip(texts, answers, strict=True)
        if len(encode(a, add_special_tokens=False)["input_ids"]) == 2
    ]
    right = answer_metrics(model, {"task": [Prompt(text, answer) for text, answer in whole]})
    assert len(right) > 2 and right.exact_match.mean() > 0.5
    wrong = answer_metrics(model, {"task": [Prompt(text, answer + " sea") for text, answer in whole]})
    assert (wrong.first_token_correct == right.first_token_correct).all()
    assert wrong.exact_match.mean() < right.exact_match.mean()


def test_replacements_are_what_they_say(neox):
    model, prompts = neox.model, neox.prompts
    mean, by_task = (replacement_values(model, prompts, r) for r in ("mean", "task_mean"))
    for task in prompts:
        torch.testing.assert_close(mean[task], torch.stack(list(by_task.values())).mean(0))
        assert (replacement_values(model, prompts, "zero")[task] == 0).all()
    drawn = replacement_values(model, prompts, "resample", seed=1)
    task = next(iter(prompts))
    assert len(drawn[task]) == len(prompts[task].clean)
    assert torch.equal(drawn[task], replacement_values(model, prompts, "resample", seed=1)[task])
    assert not torch.equal(drawn[task], replacement_values(model, prompts, "resample", seed=2)[task])
    alone = {task: TaskPrompts(prompts[task].clean[:1], [])}
    with pytest.raises(ValueError, match="needs another prompt"):
        replacement_values(model, alone, "resample")
    bos = replacement_values(model, prompts, "bos_value")[task][0]
    with torch.no_grad():
        _, cache = model.run_with_cache(torch.tensor([[model.tokenizer.bos_token_id, 30, 40]]))
    for layer in range(model.cfg.n_layers):
        torch.testing.assert_close(bos[layer], cache[f"blocks.{layer}.attn.hook_z"][0, 0])


def test_token_losses_are_the_losses_by_position_with_and_without_edits(golden):
    model = golden.model
    tokens = torch.tensor(golden.expected["token_loss"]["tokens"])[:, :60]
    rows = torch.arange(len(tokens)).float()[:, None, None, None]
    heads = heads_of(model, (0, 0), (1, 1))
    by_row = Edit(heads, rows.expand(-1, *heads.shape, model.cfg.d_head), "all")
    for edit in (None, ones(model, heads, "all"), by_row):
        expected = -logits(model, tokens, edit).log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
        for batch_size in (1, 2, None):
            actual = token_losses(model, tokens, edit, batch_size=batch_size)
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_bad_input_is_refused_in_one_line(neox):
    model, prompts = neox.model, neox.prompts
    heads = heads_of(model, (0, 0))
    values = torch.zeros(1, 4, 4, 12)
    calls = {
        "unknown replacement 'median'": lambda: ablated_answer_probabilities(
            model, prompts, heads, replacement="median"
        ),
        "unknown positions 'first'": lambda: ablated_answer_probabilities(
            model, prompts, heads, positions="first"
        ),
        "mask is (3, 4)": lambda: logits(model, TOKENS, Edit(heads[:3], values[:, :3])),
        "3 sequences, 1 were fed": lambda: logits(
            model, TOKENS, Edit(heads, values.expand(3, -1, -1, -1), "all")
        ),
        "values for 2 prompts": lambda: answer_metrics(
            model, {"t": prompts["capitalize"].clean}, {"edit": Edit(heads, values.expand(2, -1, -1, -1))}
        ),
        "needs 502 tokens": lambda: token_loss_differences(
            model, torch.zeros(2, 500, dtype=torch.long), [None]),
        "2 to the context": lambda: token_losses(model, torch.zeros(1, 1, dtype=torch.long)),
        "nothing for task": lambda: answer_metrics(model, {"new": prompts["capitalize"].clean}, {"edit": {}}),
    }
    for message, call in calls.items():
        with pytest.raises(ValueError) as error:
            call()
        assert message in str(error.value) and "\n" not in str(error.value)


def test_the_bridge_is_whole_again_after_a_plain_pass_that_fails(neox):
    before = logits(neox.model, TOKENS)
    blocks = [type(block) for block in neox.model.blocks]
    with pytest.raises(RuntimeError, match="inside"), plain_transformers(neox.model):
        raise RuntimeError("inside")
    assert [type(block) for block in neox.model.blocks] == blocks
    assert len(layers(neox.model)) == neox.model.cfg.n_layers
    assert torch.equal(logits(neox.model, TOKENS), before)
    assert golden_case("gpt_neox") is neox
