"""Which attention heads matter for in-context learning: scores, ablations and metrics of every head.

A replication of Yin & Steinhardt (2025). Importing is cheap: torch is imported with the first name that needs it,
transformer_lens when a model is loaded.
"""

from importlib import import_module
from typing import Any

_WHERE = {
    "data.sources": ("read_prompts",),
    "data.tasks": ("Prompt", "TaskPrompts"),
    "forward.edits": ("Edit", "edited_heads"),
    "forward.replacements": ("replacement_values",),
    "metrics.evaluate": ("answer_metrics", "token_loss_differences", "token_losses"),
    "load": ("load_model", "wrap_model"),
    "models.locate": ("steps_of",),
    "scores.function_vectors": ("FVScores", "fv_scores", "permuted_mean_scores"),
    "scores.induction": ("duplicate_token_scores", "induction_scores", "previous_token_scores",
                         "repeated_random_tokens"),
}
__all__ = sorted(name for names in _WHERE.values() for name in names)


def __getattr__(name: str) -> Any:
    for module, names in _WHERE.items():
        if name in names:
            return getattr(import_module(f"icl_lib.{module}"), name)
    raise AttributeError(f"module 'icl_lib' has no attribute {name!r}")
