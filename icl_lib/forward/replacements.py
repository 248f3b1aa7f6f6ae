"""What heads' outputs are replaced by when heads are ablated."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from icl_lib.data.tasks import TaskPrompts
from icl_lib.forward.encoded import EncodedPrompt, encode_clean
from icl_lib.forward.means import mean_over_tasks, means_of
from icl_lib.forward.passes import last_head_outputs, mean_head_outputs
from icl_lib.names import WORDS, refuse_unknown
from icl_lib.saved import SavedResults

REPLACEMENTS = WORDS["replacements"]
Prompts = Mapping[str, TaskPrompts]
Values = Float[Tensor, "batch layer head d_head"]


def replacement_values(
    model: nn.Module, prompts: Prompts, replacement: str = "mean", *, scoring_prompts: Prompts | None = None,
    seed: int = 0,
) -> dict[str, Values]:
    """What each head's output is replaced by, for the clean prompts of each task in `prompts`.

    All from the last position of the clean prompts of `scoring_prompts` (default: `prompts`), before the output
    projection, BOS included in the prompts: `mean`: over all tasks, each counting the same (the paper's "mean
    ablation", section 4; released code: the mean over the 29 scoring tasks). `task_mean`: over the task's own prompts
    in `prompts`. `resample`: another prompt's output, drawn anew for each prompt (one for all heads, so that they go
    together), never the prompt itself. `zero`: zeros. `bos_value`: the head's output at a BOS with nothing before it,
    which is its value vector there (released token-loss ablation).

    The batch axis is 1 except for `resample`: one per clean prompt. Raises ValueError for an unknown
    replacement, for `resample` from a single prompt and as `fv_scores` does.
    """
    saved = SavedResults(None, model)
    return values_of(model, encode_clean(model, prompts), scoring_prompts or prompts, replacement, seed, saved)


def values_of(
    model: nn.Module, prompts: Mapping[str, list[EncodedPrompt]], scoring: Prompts, replacement: str, seed: int,
    saved: SavedResults,
) -> dict[str, Values]:
    """`replacement_values` of encoded prompts; what is the same for every text is kept in `saved`."""
    if replacement == "task_mean":
        return {task: mean[None] for task, mean in means_of(model, prompts, SavedResults(None, model)).items()}
    if replacement != "resample":
        return dict.fromkeys(prompts, shared_value(model, scoring, replacement, saved))
    sequences = _tokens(model, scoring)
    outputs = last_head_outputs(model, sequences).cpu()
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for task, of_task in prompts.items():
        drawn = []
        for prompt in of_task:
            others = [i for i, tokens in enumerate(sequences) if tokens != prompt.tokens]
            if not others:
                raise ValueError(f"task {task!r}: replacement 'resample' needs another prompt to draw from")
            drawn.append(others[int(torch.randint(len(others), (1,), generator=generator))])
        values[task] = outputs[drawn]
    return values


def document_values(
    model: nn.Module, documents: Int[Tensor, "document pos"], scoring: Prompts, replacement: str, seed: int,
    saved: SavedResults,
) -> Values:
    """`values_of` for documents: the same values as for prompts where a document can have them.

    `mean`, `zero` and `bos_value` are the same values. `resample`: for each document the output on one of the
    scoring prompts, drawn anew. `task_mean`: a document has no task, so the mean over the documents' own positions,
    BOS left out. Batch axis 1, for `resample` one per document. Errors as in `replacement_values`.
    """
    if replacement == "task_mean":
        return mean_head_outputs(model, documents)[None].cpu()
    if replacement != "resample":
        return shared_value(model, scoring, replacement, saved)
    sequences = _tokens(model, scoring)
    drawn = torch.randint(len(sequences), (len(documents),), generator=torch.Generator().manual_seed(seed))
    return last_head_outputs(model, [sequences[i] for i in drawn.tolist()]).cpu()


def shared_value(model: nn.Module, scoring: Prompts, replacement: str, saved: SavedResults) -> Values:
    """A replacement that is the same for every text (`mean`, `zero`, `bos_value`); batch axis of length 1.

    A first token attends to itself only, so its head outputs are the same in every text. The mean, which all
    interventions need, is kept in `saved`. Raises ValueError for another replacement, and for `bos_value` with a
    tokenizer without BOS.
    """
    refuse_unknown("replacement", replacement, REPLACEMENTS)
    if replacement == "mean":
        def compute() -> dict[str, Tensor]:
            means = means_of(model, encode_clean(model, scoring), SavedResults(None, model))
            return {"mean": mean_over_tasks(means)[None]}

        texts = [(task, p.text) for task, of_task in scoring.items() for p in of_task.clean]
        return saved.recall(compute, "mean value", texts)["mean"]
    if model.tokenizer.bos_token_id is None:
        raise ValueError("replacement 'bos_value' needs a tokenizer with a BOS token")
    value = last_head_outputs(model, [[model.tokenizer.bos_token_id]]).cpu()
    return torch.zeros_like(value) if replacement == "zero" else value


def _tokens(model: nn.Module, prompts: Prompts) -> list[list[int]]:
    return [prompt.tokens for of_task in encode_clean(model, prompts).values() for prompt in of_task]
