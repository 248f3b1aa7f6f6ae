"""The table of the paper's models against the configurations of transformers, and the memory it promises."""

import pytest
import torch

from icl_lib.models.paper_models import PYTHIA_STEPS, PaperModel, family, paper_models, published_steps
from tests.architectures import configuration

MODELS = paper_models()
# heads per model, from the notebook of the released code
HEADS = {
    "pythia-70m-deduped": 48, "pythia-160m-deduped": 144, "pythia-410m-deduped": 384, "pythia-1b-deduped": 128,
    "pythia-1.4b-deduped": 384, "pythia-2.8b-deduped": 1024, "pythia-6.9b-deduped": 1024, "gpt2": 144,
    "gpt2-medium": 384, "gpt2-large": 720, "gpt2-xl": 1200, "Llama-2-7b-hf": 1024, "Meta-Llama-3-8B": 1024,
    "Qwen2.5-7B": 784,
}  # fmt: skip


def test_the_table_holds_the_paper_s_models():
    assert [name.rsplit("/")[-1] for name in MODELS] == list(HEADS)
    assert sum(not m.extra for m in MODELS.values()) == 12
    assert len(PYTHIA_STEPS) == 154


@pytest.mark.parametrize("name", MODELS)
def test_each_configuration_has_the_heads_and_the_published_parameters(name):
    import transformers

    model = MODELS[name]
    config = configuration(model)
    with torch.device("meta"):
        built = transformers.AutoModelForCausalLM.from_config(config)
    layers = sum(name.endswith((".attention.dense", ".attn.c_proj", ".self_attn.o_proj"))
                 for name, _ in built.named_modules())
    assert layers * config.num_attention_heads == HEADS[name.rsplit("/")[-1]]
    assert getattr(config, "head_dim", None) in (None, model.d_model // model.heads)
    assert sum(p.numel() for p in built.parameters()) == model.parameters


def test_the_largest_pythia_fits_a_24_gib_card_with_its_scores_and_not_in_float32():
    pythia = MODELS["EleutherAI/pythia-6.9b-deduped"]
    assert pythia.weights_gib() == pytest.approx(12.77, abs=0.01)
    assert 15 < pythia.memory_gib() < 23
    assert pythia.memory_gib("float32") > 30


def test_memory_is_the_sum_of_its_parts():
    shape = dict(layers=2, heads=2, kv_heads=1, d_model=8, d_mlp=32, vocab=10, parameters=1000)
    tokens = 16 * 512
    fixed = tokens * 8 * 12 * 4 + 16 * 10 * 4 + 2**27
    expected = 1.1 * (1000 * 4 + 3 * 2 * 64 * 4 + 2 * 2 * 4 * tokens * 4 + fixed) / 2**30
    assert PaperModel("gpt_neox", **shape).memory_gib() == pytest.approx(expected)
    less = PaperModel("llama", **shape).memory_gib()
    assert (expected - less) * 2**30 == pytest.approx(1.1 * 3 * 2 * 64 * 4)


def test_steps_of_pythia_and_its_further_seeds_are_known():
    for name in ("EleutherAI/pythia-160m-seed1", "EleutherAI/pythia-70m-data-seed2", "EleutherAI/pythia-70m-deduped"):
        assert published_steps(name)[-1] == 143000
    assert published_steps("openai-community/gpt2") == []
    assert family("EleutherAI/pythia-160m-seed1") == "pythia" and family("a/b") == "other"
