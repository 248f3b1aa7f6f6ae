"""Models that used to give wrong numbers silently are right or refused in one line, and unclear errors are clear."""

import copy
from dataclasses import replace

import pandas as pd
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers

import icl_lib.forward.run
import icl_lib.forward.shared_prefix
import icl_lib.forward.whole_prompts
from icl_lib import fv_scores, load_model, token_losses, wrap_model
from icl_lib.data.sources import read_pairs
from icl_lib.data.tasks import Prompt, Task, TaskPrompts, bos_text, draw_prompts
from icl_lib.forward.encoded import encode_prompts
from icl_lib.forward.means import clean_means
from icl_lib.injection import function_vector
from icl_lib.measurements import made_by
from icl_lib.models.locate import locate, steps_of
from icl_lib.pages.dynamics import steps_sentence
from tests.architectures import TOKENIZER
from tests.conftest import ablated_answer_probabilities

TEXT = "<|endoftext|>Q: red\nA: Red\n\nQ: blue\nA:"
PROMPTS = {"t": TaskPrompts([Prompt(TEXT, " Blue"), Prompt(TEXT.replace("red", "tin"), " Blue")],
                            [Prompt(TEXT.replace("Red", "Sea"), " Blue")])}
MODERN = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2,
          "intermediate_size": 64, "max_position_embeddings": 256}
COMMON = {"vocab_size": 420, "bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.4}
CONFIGURATIONS = {
    "GPTJ": {"n_embd": 48, "n_layer": 2, "n_head": 6, "rotary_dim": 4, "n_positions": 256},
    "Bloom": {"hidden_size": 48, "n_layer": 2, "n_head": 6},
    "Granite": MODERN | {"logits_scaling": 8.0, "num_key_value_heads": 6},
    "GptOss": MODERN | {"num_local_experts": 3, "num_experts_per_tok": 2, "head_dim": 8},
    "Cohere": MODERN,
    "Olmo2": MODERN,
    "Mistral": MODERN | {"sliding_window": 64},
}


def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(TOKENIZER)


def tiny(kind, **changes):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**(COMMON | CONFIGURATIONS[kind] | changes))
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def wrapped(kind, **changes):
    """A model in a bridge beside an untouched eager copy."""
    plain = tiny(kind, **changes)
    plain.set_attn_implementation("eager")
    return wrap_model(tiny(kind, **changes), tokenizer()), plain


def refused(call, *arguments, words):
    with pytest.raises(ValueError) as error:
        call(*arguments)
    assert "\n" not in str(error.value) and len(str(error.value)) < 450, str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


def log_probabilities(plain, ids):
    with torch.no_grad():
        return plain(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)


# the losses of the last token with plain transformers, as the report of these faults gives them
@pytest.mark.parametrize(("kind", "right"), [("GPTJ", 9.7553), ("Bloom", 6.4608), ("Granite", 5.9982)])
def test_the_reported_losses_are_those_of_plain_transformers(tmp_path, kind, right):
    tiny(kind).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    ids = tokenizer()(TEXT, add_special_tokens=False)["input_ids"]
    model = load_model(tmp_path, device="cpu")
    assert token_losses(model, torch.tensor([ids]))[0, -1].item() == pytest.approx(right, abs=2e-4)


def test_fv_scores_of_gpt_j_are_those_of_whole_passes():
    model, plain = wrapped("GPTJ")
    result = fv_scores(model, PROMPTS)
    prompt = encode_prompts(model, PROMPTS["t"].shuffled, "t")[0]
    for layer in range(2):
        for head in range(6):
            def replace(_module, args, layer=layer, head=head):
                z = args[0].clone()
                z[:, -1, 8 * head : 8 * head + 8] = result.mean_z["t"][layer, head]
                return (z,)

            handle = plain.transformer.h[layer].attn.out_proj.register_forward_pre_hook(replace)
            edited = log_probabilities(plain, prompt.tokens)[-1, prompt.answer[0]].exp()
            handle.remove()
            expected = edited - log_probabilities(plain, prompt.tokens)[-1, prompt.answer[0]].exp()
            assert result.scores[layer, head].item() == pytest.approx(expected.item(), abs=1e-6)
    assert result.scores.abs().max() > 1e-4


def test_attention_sinks_are_in_every_measure():
    model, plain = wrapped("GptOss")
    assert model.checked.attention == "own"
    encoded = encode_prompts(model, PROMPTS["t"].clean, "t")
    seen = []
    for layer in plain.model.layers:
        layer.self_attn.o_proj.register_forward_pre_hook(lambda _m, args: seen.append(args[0][0, -1].view(6, 8)))
    for prompt in encoded:
        log_probabilities(plain, prompt.tokens)
    mean = torch.stack(seen).view(2, 2, 6, 8).mean(0)
    assert torch.allclose(clean_means(model, PROMPTS)["t"], mean, atol=1e-5)
    heads = torch.zeros(2, 6, dtype=torch.bool)
    heads[0, 1] = heads[1, 4] = True
    found = ablated_answer_probabilities(model, PROMPTS, heads, positions="all")["t"]
    for layer, block in enumerate(plain.model.layers):
        def replace(_module, args, layer=layer):
            z = args[0].unflatten(-1, (6, 8)).clone()
            z[:, :, heads[layer]] = mean[layer, heads[layer]]
            return (z.flatten(-2),)

        block.self_attn.o_proj.register_forward_pre_hook(replace)
    expected = [log_probabilities(plain, p.tokens)[-1, p.answer[0]].exp().item() for p in encoded]
    assert found.tolist() == pytest.approx(expected, rel=1e-4)


def test_a_head_writes_past_a_norm_after_attention_with_the_scale_of_all_heads():
    model, plain = wrapped("Olmo2")
    mean_z = 0.1 * torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    heads = torch.zeros(2, 6, dtype=torch.bool)
    heads[0, 3] = heads[1, 1] = heads[1, 2] = True
    expected = 0
    for layer, block in enumerate(plain.model.layers):
        weight, norm = block.self_attn.o_proj.weight.data, block.post_attention_layernorm
        whole = weight @ mean_z[layer].flatten()
        part = weight @ (mean_z[layer] * heads[layer, :, None]).flatten()
        expected = expected + norm.weight.data * part / (whole.square().mean() + norm.variance_epsilon).sqrt()
    assert torch.allclose(function_vector(model, mean_z, heads.numpy()), expected, atol=1e-4)
    alone = torch.zeros_like(mean_z)
    alone[0, 3] = mean_z[0, 3]
    heads[1] = False
    assert function_vector(model, alone, heads.numpy()).norm() == pytest.approx(48**0.5, rel=1e-2)


def test_what_a_head_writes_is_multiplied_as_the_architecture_does():
    model, plain = wrapped("Granite", residual_multiplier=0.25)
    mean_z = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    heads = torch.ones(2, 6, dtype=torch.bool)
    expected = sum(0.25 * block.self_attn.o_proj.weight.data @ mean_z[i].flatten()
                   for i, block in enumerate(plain.model.layers))
    assert torch.allclose(function_vector(model, mean_z, heads.numpy()), expected, atol=1e-5)


@pytest.mark.parametrize("sweep", ["shared_prefix._Sweep", "shared_layers._LayerSweep"])
def test_a_shared_sweep_that_edits_nothing_falls_back(monkeypatch, sweep):
    def silent(self, *args):
        self.z = args[-1][0]  # what the sweep over layers notes

    monkeypatch.setattr(f"icl_lib.forward.{sweep}._replace", silent)
    assert wrap_model(tiny("Cohere"), tokenizer()).checked.attention == "own"


def test_where_whole_prompts_are_not_edited_either_a_model_is_refused(monkeypatch):
    monkeypatch.setattr(icl_lib.forward.shared_prefix._Sweep, "_replace", lambda *_: None)
    real = icl_lib.forward.whole_prompts.edited_residuals

    def silent(model, tokens, edits, *args, **kwargs):
        return real(model, tokens, replace(edits, masks=edits.masks & False), *args, **kwargs)

    monkeypatch.setattr(icl_lib.forward.whole_prompts, "edited_residuals", silent)
    refused(wrap_model, tiny("Cohere"), tokenizer(), words=["CohereForCausalLM", "sweep over edits", "differs by"])


def test_logits_made_otherwise_are_refused(monkeypatch):
    real = icl_lib.forward.run.read_targets
    monkeypatch.setattr(
        icl_lib.forward.run, "read_targets", lambda model, hidden, *a: real(model, hidden.roll(1), *a))
    refused(wrap_model, tiny("Cohere"), tokenizer(), words=["CohereForCausalLM", "differs by"])


def test_windows_longer_than_the_check_are_narrowed_for_it(monkeypatch):
    hf_model = tiny("Mistral")
    model = wrap_model(copy.deepcopy(hf_model), tokenizer())
    assert model.checked.uncovered == "" and model.original_model.config.sliding_window == 64
    attend = icl_lib.forward.shared_prefix._Sweep.attend

    def without_mask(self, module, query, key, value, attention_mask, **kwargs):
        return attend(self, module, query, key, value, None, **kwargs)

    monkeypatch.setattr(icl_lib.forward.shared_prefix._Sweep, "attend", without_mask)
    assert wrap_model(hf_model, tokenizer()).checked.attention == "own"  # the shared sweep forgot the window


def test_half_precision_is_checked_in_full_and_put_back():
    model = wrap_model(tiny("Cohere").to(torch.bfloat16), tokenizer())
    assert {p.dtype for p in model.original_model.parameters()} == {torch.bfloat16}
    assert model.checked.difference < 1e-3


def test_the_check_stands_in_the_provenance():
    model, _ = wrapped("Cohere")
    found = made_by(model, suite="s", seed=0, parameters={})["checked"]
    assert found == str(model.checked) and "nats of transformers' eager pass, shared attention" in found


def spaced_tokenizer():
    """Llama's way: a space is put before every text, and spaces are a letter of the vocabulary."""
    words = ["<s>", "_", "_Q", "_A", ":", "\n", "_red", "_blue", "_Red", "_Blue", "Q", "A"]
    scores = [(word.replace("_", "\u2581"), -1.0 * (len(word) < 2) - 1) for word in words]
    inner = Tokenizer(models.Unigram(scores, unk_id=0))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="<s>")


def test_answers_of_a_tokenizer_that_puts_a_space_before_begin_as_in_context(tmp_path):
    spaced_tokenizer().save_pretrained(tmp_path)
    model = wrap_model(tiny("Cohere"), transformers.AutoTokenizer.from_pretrained(tmp_path))
    prompts = [Prompt("<s>Q: red\nA:", " Red"), Prompt("<s>Q: red\nA:", " Blue")]
    encoded = encode_prompts(model, prompts, "t")
    assert [model.tokenizer.convert_ids_to_tokens(p.answer) for p in encoded] == [["\u2581Red"], ["\u2581Blue"]]
    for prompt, own in zip(prompts, encoded, strict=True):
        whole = model.tokenizer(prompt.text + prompt.answer, add_special_tokens=False)["input_ids"]
        assert whole == own.tokens + own.answer


def test_a_tokenizer_without_bos_is_not_given_its_end_of_text():
    without = transformers.PreTrainedTokenizerFast(tokenizer_file=str(TOKENIZER / "tokenizer.json"), eos_token="!")
    refused(bos_text, wrap_model(tiny("Cohere"), without), words=["no BOS token"])
    assert bos_text(wrapped("Cohere")[0]) == "<|endoftext|>"


def test_two_steps_with_the_same_scores_are_named():
    rows = [("m", step, "fv", 0, head, "t", value + head) for step, value in ((8, 0.1), (64, 0.2), (128, 0.1))
            for head in (0, 1)]
    scores = pd.DataFrame(rows, columns=["model", "step", "score", "layer", "head", "task", "value"])
    assert "Steps 8 and 128 have the same scores" in steps_sentence(scores, [8, 64, 128])
    assert "same" not in steps_sentence(scores[scores["step"] < 128], [8, 64])


def test_labels_that_cannot_be_shuffled_are_refused():
    draw = {"n_prompts": 20, "bos": "", "seed": 0}
    alike = Task("t", "abstractive", "scoring", [(str(i), "same") for i in range(9)])
    with pytest.raises(ValueError, match=r"task 't': 20 of 20 shuffled prompts equal their clean ones") as error:
        draw_prompts(alike, n_shots=5, **draw)
    assert "\n" not in str(error.value)
    assert draw_prompts(alike, n_shots=0, **draw).clean  # nothing to shuffle
    other = Task("t", "abstractive", "scoring", [(str(i), str(i % 2)) for i in range(9)])
    assert draw_prompts(other, n_shots=5, **draw).clean


def test_numbers_of_task_files_keep_their_digits(tmp_path):
    path = tmp_path / "t.json"
    path.write_text('[{"input": 1.50, "output": 1e5}, {"input": 7, "output": -0.10}]')
    assert read_pairs(path) == [("1.50", "1e5"), ("7", "-0.10")]
    path.write_text('[{"input": 1e999, "output": 1}]')
    refused(read_pairs, path, words=["1e999"])


def test_a_token_beyond_the_embedding_is_named():
    model = wrap_model(tiny("Cohere", vocab_size=350), tokenizer())
    ids = tokenizer()(TEXT, add_special_tokens=False)["input_ids"]
    assert max(ids) >= 350
    refused(encode_prompts, model, [Prompt(TEXT, " Blue")], "t", words=["task 't', prompt 0: token id", "0 to 349"])
    refused(token_losses, model, torch.tensor([ids]), words=[f"token id {max(ids)}", "ids 0 to 349"])


def test_models_that_cannot_be_read_say_so_in_one_line(tmp_path):
    text = {"vocab_size": 420, **MODERN, "head_dim": 8}
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
              "image_size": 8, "patch_size": 4}
    folders = {
        "Gemma3ForConditionalGeneration": (
            transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4),
            ["no num_attention_heads", "language model alone"]),
        "MambaForCausalLM": (transformers.MambaConfig(vocab_size=420, hidden_size=32, num_hidden_layers=2),
                             ["no num_attention_heads"]),
        "BioGptForCausalLM": (transformers.BioGptConfig(vocab_size=420, hidden_size=32, num_hidden_layers=2,
                                                        num_attention_heads=4, intermediate_size=32),
                              ["no adapter"]),
        "OPTForCausalLM": (transformers.OPTConfig(vocab_size=420, hidden_size=32, num_hidden_layers=2, ffn_dim=32,
                                                  num_attention_heads=4, word_embed_proj_dim=16,
                                                  do_layer_norm_before=False), ["no norm"]),
    }
    for name, (config, words) in folders.items():
        getattr(transformers, name)(config).save_pretrained(tmp_path / name)
        tokenizer().save_pretrained(tmp_path / name)
        refused(load_model, tmp_path / name, words=[str(tmp_path / name), name, *words])


def test_hub_ids_that_begin_with_lab_are_hub_ids():
    assert locate("labml/x") == ("labml/x", None) and steps_of("labml/x") == []


def test_one_prompt_whose_two_labels_happen_to_be_alike_is_not_refused():
    task = Task("t", "abstractive", "scoring", [(str(i), f"label {i // 2}") for i in range(4)])
    drawn = [draw_prompts(task, n_prompts=1, n_shots=2, bos="", seed=seed) for seed in range(20)]
    assert any(d.clean == d.shuffled for d in drawn) and any(d.clean != d.shuffled for d in drawn)
