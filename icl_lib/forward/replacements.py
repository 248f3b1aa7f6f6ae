"""What heads' outputs are replaced by when heads are ablated."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from icl_lib.data.tasks import TaskPrompts
from icl_lib.forward.encoded import encode_clean
from icl_lib.forward.means import clean_means, mean_over_tasks
from icl_lib.forward.passes import last_head_outputs, mean_head_outputs
from icl_lib.names import WORDS, refuse_unknown
from icl_lib.saved import SavedResults

REPLACEMENTS = WORDS["replacements"]
Prompts = Mapping[str, TaskPrompts]
Values = Float[Tensor, "batch layer head d_head"]


def replacement_values(
    model: nn.Module, prompts: Prompts, replacement: str = "mean", *, scoring_prompts: Prompts | None = None,
    seed: int = 0, saved: SavedResults | None = None,
) -> dict[str, Values]:
    """What each head's output is replaced by, for the clean prompts of each task in `prompts`.

    All from the last position of the clean prompts of `scoring_prompts` (default: `prompts`), before the output
    projection, BOS included in the prompts: `mean`: over all tasks, each counting the same (the paper's "mean
    ablation", section 4; released code: the mean over the 29 scoring tasks). `task_mean`: over the task's own prompts
    in `prompts`. `resample`: another prompt's output, drawn anew for each prompt (one for all heads, so that they go
    together), never the prompt itself. `zero`: zeros. `bos_value`: the head's output at a BOS with nothing before it,
    which is its value vector there (released token-loss ablation). The mean is kept in `saved`.

    The batch axis is 1 except for `resample`: one per clean prompt. Raises ValueError for an unknown
    replacement, for `resample` from a single prompt and as `fv_scores` does.
    """
    scoring = scoring_prompts or prompts
    if replacement == "task_mean":
        return {task: mean[None] for task, mean in clean_means(model, prompts).items()}
    if replacement != "resample":
        return dict.fromkeys(prompts, shared_value(model, scoring, replacement, saved))
    sequences = _tokens(model, scoring)
    outputs = last_head_outputs(model, sequences).cpu()
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for task, of_task in encode_clean(model, prompts).items():
        drawn = []
        for prompt in of_task:
            others = [i for i, tokens in enumerate(sequences) if tokens != prompt.tokens]
            if not others:
                raise ValueError(f"task {task!r}: replacement 'resample' needs another prompt to draw from")
            drawn.append(others[int(torch.randint(len(others), (1,), generator=generator))])
        values[task] = outputs[drawn]
    return values


def document_values(
    model: nn.Module, documents: Int[Tensor, "document pos"], replacement: str, *, scoring_prompts: Prompts, seed: int,
    saved: SavedResults,
) -> Values:
    """`replacement_values` for documents: the same values as for prompts where a document can have them.

    `mean`, `zero` and `bos_value` are the same values. `resample`: for each document the output on one of the
    scoring prompts, drawn anew. `task_mean`: a document has no task, so the mean over the documents' own positions,
    BOS left out. Batch axis 1, for `resample` one per document. Errors as in `replacement_values`.
    """
    if replacement == "task_mean":
        return mean_head_outputs(model, documents)[None].cpu()
    if replacement != "resample":
        return shared_value(model, scoring_prompts, replacement, saved)
    sequences = _tokens(model, scoring_prompts)
    drawn = torch.randint(len(sequences), (len(documents),), generator=torch.Generator().manual_seed(seed))
    return last_head_outputs(model, [sequences[i] for i in drawn.tolist()]).cpu()


def shared_value(model: nn.Module, scoring: Prompts, replacement: str, saved: SavedResults | None = None) -> Values:
    """A replacement that is the same for every text (`mean`, `zero`, `bos_value`); batch axis of length 1.

    A first token attends to itself only, so its head outputs are the same in every text. The mean, which all
    interventions need, is kept in `saved`. Raises ValueError for another replacement, and for `bos_value` with a
    tokenizer without BOS.
    """
    refuse_unknown("replacement", replacement, REPLACEMENTS)
    if replacement == "mean":
        texts = [(task, p.text) for task, of_task in scoring.items() for p in of_task.clean]
        return (saved or SavedResults(None, model)).recall(
            lambda: {"mean": mean_over_tasks(clean_means(model, scoring))[None]}, "mean value", texts)["mean"]
    if model.tokenizer.bos_token_id is None:
        raise ValueError("replacement 'bos_value' needs a tokenizer with a BOS token")
    value = last_head_outputs(model, [[model.tokenizer.bos_token_id]]).cpu()
    return torch.zeros_like(value) if replacement == "zero" else value


def _tokens(model: nn.Module, prompts: Prompts) -> list[list[int]]:
    return [prompt.tokens for of_task in encode_clean(model, prompts).values() for prompt in of_task]
