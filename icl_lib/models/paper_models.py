"""The paper's models as a table: shapes, checkpoints, revisions, number types and the memory they need."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

TABLE = Path(__file__).with_suffix(".yaml")
PYTHIA_STEPS = (0, *(2**i for i in range(10)), *range(1000, 143001, 1000))  # all that are published
_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
GIB = 2**30
_N_PROMPTS, _N_TOKENS = 16, 512  # that scoring should not have to go below; prompts at a time shrink with the memory


@dataclass(frozen=True)
class PaperModel:
    """A model's shape. `revision`: the commit loaded without a step; `extra`: in the paper's code only."""

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
    extra: bool = False

    def weights_gib(self, dtype: str | None = None) -> float:
        """GiB of the parameters in a number type, by default the type on a GPU."""
        return self.parameters * _BYTES[dtype or self.gpu_dtype] / GIB

    def memory_gib(self, dtype: str | None = None) -> float:
        """GiB that the model takes while its heads are scored, an estimate from its shape alone.

        Weights; with fused projections (GPT-NeoX, GPT-2) the second copy of queries, keys and values that the bridge
        holds; keys and values of 16 prompts of 512 tokens in all layers; what passes through a layer; 64 MiB of logits
        and as much for their float32 copy; a tenth of all for the allocator.
        """
        size, tokens = _BYTES[dtype or self.gpu_dtype], _N_PROMPTS * _N_TOKENS
        fused = any(architecture in self.id for architecture in ("pythia", "gpt_neox", "gpt2"))
        copies = 3 * self.layers * self.d_model**2 * size if fused else 0
        keys_and_values = 2 * self.layers * self.kv_heads * (self.d_model // self.heads) * tokens * size
        passes = tokens * self.d_model * 12 * size + _N_PROMPTS * self.vocab * 4 + 2 * 64 * 2**20
        return 1.1 * (self.parameters * size + copies + keys_and_values + passes) / GIB


@cache
def paper_models() -> dict[str, PaperModel]:
    """All models of the table by hub id, the paper's 12 first."""
    entries = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return {entry["id"]: PaperModel(**entry.pop("shape"), **entry) for entry in entries}


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
