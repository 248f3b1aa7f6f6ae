"""Tiny random models of many architectures of transformers, for the test of every model's exactness.

`python -m tests.architectures` writes the book's table: exact with the largest difference from transformers' own
forward pass, or refused with the line.
"""

import copy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from icl_lib.models.paper_models import family

TABLE = Path(__file__).parents[1] / "book" / "architectures.csv"
TOKENIZER = Path(__file__).parent / "golden" / "llama" / "model"
SEEDS = (0, 1)

_LATENT = {"num_attention_heads": 4, "hidden_size": 32, "num_key_value_heads": 4, "kv_lora_rank": 16,
           "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 12, "n_routed_experts": 4,
           "first_k_dense_replace": 2}
# What a configuration class calls the sizes, where it has names of its own.
_MODERN = ("hidden_size", "num_hidden_layers", "num_attention_heads")
_GPT2 = ("n_embd", "n_layer", "n_head")
# class of the configuration, and what of it is tried -> names of its sizes, options fixed, options drawn at random
KINDS: dict[str, tuple[tuple[str, str, str], dict[str, Any], dict[str, list]]] = {
    "GPT2": (_GPT2, {"n_positions": 128}, {"scale_attn_by_inverse_layer_idx": [False, True]}),
    "GPTNeo": (("hidden_size", "num_layers", "num_heads"), {"max_position_embeddings": 128, "intermediate_size": 64,
               "attention_types": [[["global", "local"], 1]]}, {"window_size": [4, 256]}),
    "GPTNeoX": (_MODERN, {}, {"use_parallel_residual": [True, False], "attention_bias": [True]}),
    "GPTNeoX, no biases": (_MODERN, {"attention_bias": False}, {}),
    "GPTJ": (_GPT2, {"n_positions": 128, "rotary_dim": 4}, {}),
    "CodeGen": (_GPT2, {"n_positions": 128, "rotary_dim": 4, "n_head": 4, "n_embd": 32}, {}),
    "GPTBigCode": (_GPT2, {"n_positions": 128}, {}),
    "Bloom": (("hidden_size", "n_layer", "n_head"), {}, {"apply_residual_connection_post_layernorm": [False, True]}),
    "Falcon": (_MODERN, {}, {"multi_query": [True, False], "parallel_attn": [True, False],
                             "bias": [True, False], "new_decoder_architecture": [False, True]}),
    "Falcon, alibi": (_MODERN, {"alibi": True}, {}),
    "Mpt": (("d_model", "n_layers", "n_heads"), {"max_seq_len": 128}, {}),
    "OPT": (_MODERN, {"ffn_dim": 64, "word_embed_proj_dim": None}, {"enable_bias": [True, False]}),
    "OPT, 350m": (_MODERN, {"ffn_dim": 64, "word_embed_proj_dim": 16, "do_layer_norm_before": False}, {}),
    "OpenAIGPT": (_GPT2, {"n_positions": 128}, {}),
    "BioGpt": (_MODERN, {"intermediate_size": 64}, {}),
    "Llama": (_MODERN, {}, {"attention_bias": [True, False], "head_dim": [8, 12]}),
    "Mistral": (_MODERN, {}, {"sliding_window": [None, 5], "head_dim": [8, 12]}),
    "Mixtral": (_MODERN, {"num_local_experts": 3}, {"sliding_window": [None, 5]}),
    "Ministral": (_MODERN, {}, {"sliding_window": [5, 64], "head_dim": [8, 12]}),
    "Qwen2": (_MODERN, {}, {"use_sliding_window": [False, True], "sliding_window": [5], "max_window_layers": [1]}),
    "Qwen2Moe": (_MODERN, {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
                           "shared_expert_intermediate_size": 16}, {}),
    "Qwen3": (_MODERN, {}, {"head_dim": [8, 12], "attention_bias": [True, False]}),
    "Qwen3Moe": (_MODERN, {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}, {}),
    "Gemma": (_MODERN, {}, {"head_dim": [8, 12]}),
    "Gemma2": (_MODERN, {"query_pre_attn_scalar": 8}, {"head_dim": [8, 12], "sliding_window": [5, 64],
               "attn_logit_softcapping": [2.0, None], "final_logit_softcapping": [5.0, None]}),
    "Gemma3Text": (_MODERN, {"query_pre_attn_scalar": 8}, {"head_dim": [8, 12], "sliding_window": [5, 64]}),
    "VaultGemma": (_MODERN, {"query_pre_attn_scalar": 8}, {"head_dim": [8, 12], "sliding_window": [5, 64]}),
    "Granite": (_MODERN, {"logits_scaling": 8.0, "residual_multiplier": 0.7, "embedding_multiplier": 3.0,
                          "attention_multiplier": 0.2}, {"attention_bias": [True, False]}),
    "GraniteMoe": (_MODERN, {"logits_scaling": 4.0, "num_local_experts": 3}, {}),
    "Cohere": (_MODERN, {"logit_scale": 0.25}, {"use_qk_norm": [True, False]}),
    "Cohere2": (_MODERN, {"logit_scale": 0.25}, {"sliding_window": [5, 64]}),
    "GptOss": (_MODERN, {"num_local_experts": 3, "num_experts_per_tok": 2},
               {"head_dim": [8, 12], "sliding_window": [5, 64]}),
    "Olmo": (_MODERN, {}, {"clip_qkv": [None, 0.3]}),
    "Olmo2": (_MODERN, {}, {"attention_bias": [True, False]}),
    "Olmo3": (_MODERN, {}, {"sliding_window": [5, 64]}),
    "Olmoe": (_MODERN, {"num_experts": 4, "num_experts_per_tok": 2}, {}),
    "Phi": (_MODERN, {}, {"partial_rotary_factor": [0.5, 1.0]}),
    "Phi3": (_MODERN, {"pad_token_id": 0}, {"sliding_window": [None, 5]}),
    "StableLm": (_MODERN, {}, {"use_qkv_bias": [True, False], "use_parallel_residual": [True, False]}),
    "Starcoder2": (_MODERN, {}, {"sliding_window": [None, 5], "use_bias": [True, False]}),
    "Nemotron": (_MODERN, {}, {"attention_bias": [True, False]}),
    "Glm": (_MODERN, {"pad_token_id": 0}, {"head_dim": [8, 12]}),
    "Glm4": (_MODERN, {"pad_token_id": 0}, {"head_dim": [8, 12]}),
    "SmolLM3": (_MODERN, {"pad_token_id": 0}, {}),
    "Arcee": (_MODERN, {}, {"attention_bias": [True, False]}),
    "SeedOss": (_MODERN, {}, {"head_dim": [8, 12]}),
    "Exaone4": (_MODERN, {}, {"sliding_window": [5], "sliding_window_pattern": [2]}),
    "Apertus": (_MODERN, {}, {}),
    "Helium": (_MODERN, {"head_dim": 8}, {}),
    "HunYuanDenseV1": (_MODERN, {"head_dim": 8}, {}),
    "Ernie4_5": (_MODERN, {"head_dim": 8}, {}),
    "NanoChat": (_MODERN, {}, {"final_logit_softcapping": [5.0, None]}),
    "DeepseekV2": (_MODERN, _LATENT | {"q_lora_rank": None}, {}),
    "DeepseekV3": (_MODERN, _LATENT | {"q_lora_rank": 16, "n_group": 1, "topk_group": 1}, {}),
    "Lfm2": (_MODERN, {"layer_types": ["conv", "full_attention"]}, {}),
    "Mamba": (_MODERN, {}, {}),
}


def random_configuration(kind: str, rng: np.random.Generator) -> Any:
    """A configuration of two or three layers: grouped heads, head sizes, biases and the kind's options at random."""
    import transformers

    names, fixed, drawn = KINDS[kind]
    cls = getattr(transformers, f"{kind.split(',')[0]}Config")
    n_heads = int(rng.choice([2, 4, 6]))
    sizes = dict(zip(names, (8 * n_heads, 2, n_heads), strict=True))
    known = cls()
    options = {"vocab_size": 420, "bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.4}
    for name, value in {"intermediate_size": 64, "max_position_embeddings": 128}.items():
        if hasattr(known, name):
            options[name] = value
    if hasattr(known, "num_key_value_heads"):
        options["num_key_value_heads"] = int(rng.choice([n for n in (1, 2, n_heads) if n_heads % n == 0]))
    options |= {"tie_word_embeddings": bool(rng.integers(2))}
    options |= {name: values[rng.integers(len(values))] for name, values in drawn.items()}
    return cls(**(options | sizes | fixed))


def random_weights(config: Any, seed: int) -> Any:
    """A float64 model, every vector of parameters drawn: norms and biases too, which begin as ones and zeros."""
    import transformers

    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).double().eval()
    model.config._experts_implementation = "eager"  # the others do not take float64
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@cache
def tokenizer() -> Any:
    import transformers

    return transformers.AutoTokenizer.from_pretrained(TOKENIZER)


@cache
def tried(kind: str, seed: int) -> tuple[Any, Any, str]:
    """A random model in a bridge beside an untouched eager copy, or None, the copy and the line that refuses it."""
    from icl_lib import wrap_model

    model = random_weights(random_configuration(kind, np.random.default_rng(seed)), seed)
    plain = copy.deepcopy(model)
    plain.config._attn_implementation = "eager"
    try:
        return wrap_model(model, tokenizer()), plain, ""
    except ValueError as error:
        return None, plain, str(error)


def table() -> pd.DataFrame:
    """A row per architecture: the worst of its random configurations."""
    rows = []
    for kind in KINDS:
        found = [tried(kind, seed) for seed in SEEDS]
        exact = [model.checked for model, _, _ in found if model is not None]
        lines = [line for *_, line in found if line]
        rows.append({
            "architecture": ",".join([type(found[0][1]).__name__, *kind.split(",")[1:]]),
            "verdict": "exact" if not lines else "exact, some refused" if exact else "refused",
            "attention": ", ".join(sorted({checked.attention for checked in exact})),
            "difference (nats)": f"{max(checked.difference for checked in exact):.0e}" if exact else "",
            "refused with": lines[0].split(" is refused: ")[-1] if lines else "",
        })
    return pd.DataFrame(rows)


if __name__ == "__main__":
    table().to_csv(TABLE, index=False)


CONTEXT = {"pythia": 2048, "gpt2": 1024, "llama": 4096, "qwen": 131072}


def configuration(model):
    """The transformers configuration of one of the paper's models, from its shape in the table alone."""
    import transformers

    of = family(model.id)
    if of == "gpt2":
        return transformers.GPT2Config(
            n_embd=model.d_model, n_layer=model.layers, n_head=model.heads, n_inner=model.d_mlp,
            n_positions=CONTEXT["gpt2"], vocab_size=model.vocab)
    kind = {"pythia": transformers.GPTNeoXConfig, "llama": transformers.LlamaConfig,
            "qwen": transformers.Qwen2Config}[of]
    groups = {} if of == "pythia" else {"num_key_value_heads": model.kv_heads}
    return kind(
        hidden_size=model.d_model, num_hidden_layers=model.layers, num_attention_heads=model.heads,
        intermediate_size=model.d_mlp, vocab_size=model.vocab, max_position_embeddings=CONTEXT[of],
        tie_word_embeddings=False, **groups)
