"""The paper's models as a table: shapes, checkpoints, revisions, number types and the memory they need."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

TABLE = Path(__file__).with_suffix(".yaml")
# The paper's checkpoints of its seven Pythia models (section 5), and all that are published.
PAPER_STEPS = (1, 64, 256, 1000, 4000, 16000, 64000, 143000)
PYTHIA_STEPS = (0, *(2**i for i in range(10)), *range(1000, 143001, 1000))
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

    def weights_gib(self, dtype: str | None = None) -> float:
        """GiB of the parameters in a number type, by default the type on a GPU."""
        return self.parameters * _BYTES[dtype or self.gpu_dtype] / GIB

    def memory_gib(self, dtype: str | None = None) -> float:
        """GiB that scoring needs; see `memory_gib`."""
        return memory_gib(
            self.parameters, layers=self.layers, d_model=self.d_model, vocab=self.vocab, dtype=dtype or self.gpu_dtype,
            fused=self.family in ("pythia", "gpt2"), kv_width=self.kv_heads * self.d_head)


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


def family(name: str) -> str:
    """The family a model's name belongs to: lab, pythia, gpt2, llama, qwen, smollm, gemma or other."""
    lowered = name.rsplit("/", 1)[-1].lower()
    known = ("lab", "pythia", "gpt2", "llama", "qwen", "smollm", "gemma")
    return next((family for family in known if family in lowered), "other")


def published_steps(name: str) -> list[int]:
    """Steps of a hub model that are known without asking the hub: Pythia's, and those of its further seeds.

    PolyPythias (`EleutherAI/pythia-160m-seed1` and the data and weight seeds) have the same revisions `step<N>`.
    """
    return list(PYTHIA_STEPS) if name.startswith("EleutherAI/pythia-") else []
