"""Which attention heads matter for in-context learning: scores, ablations and metrics of every head.

A replication of Yin & Steinhardt (2025). Importing is cheap; transformer_lens is imported when a
model is loaded.
"""

from icl_lib.data.tasks import Prompt, TaskPrompts, read_prompts
from icl_lib.forward.edits import Edit, edited_heads
from icl_lib.forward.replacements import replacement_values
from icl_lib.metrics.evaluate import answer_metrics, token_loss_differences, token_losses
from icl_lib.models.load import load_model, steps_of, wrap_model
from icl_lib.scores.function_vectors import FVScores, fv_scores, permuted_mean_scores
from icl_lib.scores.induction import (
    duplicate_token_scores,
    induction_scores,
    previous_token_scores,
    repeated_random_tokens,
)

__all__ = [
    "Edit",
    "FVScores",
    "Prompt",
    "TaskPrompts",
    "answer_metrics",
    "duplicate_token_scores",
    "edited_heads",
    "fv_scores",
    "induction_scores",
    "load_model",
    "permuted_mean_scores",
    "previous_token_scores",
    "read_prompts",
    "repeated_random_tokens",
    "replacement_values",
    "steps_of",
    "token_loss_differences",
    "token_losses",
    "wrap_model",
]
