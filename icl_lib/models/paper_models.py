"""The paper's models as a table: shapes, checkpoints, revisions, number types and the memory they need."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

TABLE = Path(__file__).with_suffix(".yaml")
# The paper's checkpoints of its seven Pythia models (section 5), and all that are published.
PAPER_STEPS = (1, 64, 256, 1000, 4000, 16000, 64000, 143000)
PYTHIA_STEPS = (0, *(2**i for i in range(10)), *range(1000, 143001, 1000))
_CONTEXT = {"pythia": 2048, "gpt2": 1024, "llama": 4096, "qwen": 131072}
_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
GIB = 2**30


@dataclass(frozen=True)
class PaperModel:
    """One model of the table. `revision`: the commit loaded without a step; `gated`: needs an account with access;
    `extra`: in the paper's code only."""

    id: str
    layers: int
    heads: int
    kv_heads: int
    d_model: int
    d_mlp: int
    vocab: int
    parameters: int
    revision: str = "main"
    gpu_dtype: str = "float32"
    gated: bool = False
    extra: bool = False

    @property
    def family(self) -> str:
        return family(self.id)

    @property
    def d_head(self) -> int:
        return self.d_model // self.heads

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """The steps that the paper follows; none for models without published checkpoints."""
        return PAPER_STEPS if self.family == "pythia" else ()

    def configuration(self) -> Any:
        """The transformers configuration of this shape, from the table alone; random models are made with it."""
        import transformers

        if self.family == "gpt2":
            return transformers.GPT2Config(
                n_embd=self.d_model, n_layer=self.layers, n_head=self.heads, n_inner=self.d_mlp,
                n_positions=_CONTEXT["gpt2"], vocab_size=self.vocab)
        kind = {"pythia": transformers.GPTNeoXConfig, "llama": transformers.LlamaConfig,
                "qwen": transformers.Qwen2Config}[self.family]
        own = {} if self.family == "pythia" else {"num_key_value_heads": self.kv_heads}
        return kind(
            hidden_size=self.d_model, num_hidden_layers=self.layers, num_attention_heads=self.heads,
            intermediate_size=self.d_mlp, vocab_size=self.vocab, max_position_embeddings=_CONTEXT[self.family],
            tie_word_embeddings=False, **own)

    def weights_gib(self, dtype: str | None = None) -> float:
        """GiB of the parameters in a number type, by default the type on a GPU."""
        return self.parameters * _BYTES[dtype or self.gpu_dtype] / GIB

    def memory_gib(self, dtype: str | None = None, **prompts: int) -> float:
        """GiB that scoring needs; see `memory_gib`."""
        return memory_gib(
            self.parameters, layers=self.layers, d_model=self.d_model, vocab=self.vocab, dtype=dtype or self.gpu_dtype,
            fused=self.family in ("pythia", "gpt2"), kv_width=self.kv_heads * self.d_head, **prompts)


def memory_gib(
    parameters: int, *, layers: int, d_model: int, vocab: int, dtype: str, fused: bool, kv_width: int,
    n_prompts: int = 16, n_tokens: int = 512,
) -> float:
    """GiB that a model takes while its heads are scored, an estimate from shapes alone.

    Weights; with `fused` projections (GPT-NeoX, GPT-2) the second copy of queries, keys and values that the bridge
    holds; keys and values of `n_prompts` prompts of `n_tokens` tokens in all layers; 64 MiB of logits and as much
    for their float32 copy; a tenth of all for the allocator. The prompts at a time shrink when memory is short, so
    the prompts given are those that a run should not fall below.
    """
    size = _BYTES[dtype]
    weights = parameters * size
    copies = 3 * layers * d_model**2 * size if fused else 0
    cache_ = 2 * layers * kv_width * n_tokens * n_prompts * size
    passes = n_prompts * n_tokens * d_model * 12 * size + n_prompts * vocab * 4 + 2 * 64 * 2**20
    return 1.1 * (weights + copies + cache_ + passes) / GIB


@cache
def paper_models() -> dict[str, PaperModel]:
    """All models of the table by hub id, the paper's 12 first."""
    found = {}
    for entry in yaml.safe_load(TABLE.read_text(encoding="utf-8")):
        shape = entry.pop("shape")
        shape.setdefault("kv_heads", shape["heads"])
        found[entry["id"]] = PaperModel(**shape, **entry)
    return found


FAMILIES = ("lab", "pythia", "gpt2", "llama", "qwen", "smollm", "gemma")


def family(name: str) -> str:
    """The family a model's name belongs to: lab, pythia, gpt2, llama, qwen, smollm, gemma or other."""
    lowered = name.rsplit("/", 1)[-1].lower()
    return next((known for known in FAMILIES if known in lowered), "other")


def published_steps(name: str) -> list[int]:
    """Steps of a hub model that are known without asking the hub: Pythia's, and those of its further seeds.

    PolyPythias (`EleutherAI/pythia-160m-seed1` and the data and weight seeds) have the same revisions `step<N>`.
    """
    return list(PYTHIA_STEPS) if re.match(r"EleutherAI/pythia-", name) else []
