"""Few-shot metrics and token losses, with and without edited heads."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from icl_lib.data.tasks import Prompt, TaskPrompts
from icl_lib.forward.edits import Edit, replacement_values, row_edits
from icl_lib.forward.passes import (
    EncodedPrompt,
    TokenBatch,
    device_of,
    encode_prompts,
    last_positions,
    refuse_unknown_tokens,
    token_batches,
)
from icl_lib.forward.readout import Readout, read_targets
from icl_lib.forward.shared_layers import edited_residuals
from icl_lib.forward.shared_prefix import RowEdits, read_edited_rows
from icl_lib.metrics.generation import generated_f1s

_LOSS_TOKENS = 4096  # fed at a time for token losses
PLACES = (50, 500)  # the losses whose difference is taken


def answer_metrics(
    model: nn.Module,
    prompts: Mapping[str, Sequence[Prompt]],
    edits: Mapping[str, Edit | Mapping[str, Edit] | None] | None = None,
    *,
    f1: bool = False,
    reach_back: bool = False,
    batch_size: int = 16,
) -> pd.DataFrame:
    """Few-shot metrics per prompt: the stuff of "few-shot ICL accuracy" (section 4).

    One row per edit, task and prompt, with `edit, task, prompt, exact_match, first_token_correct,
    first_token_probability`. `exact_match`: greedy decoding gives the whole answer, every token of
    it (checked by feeding the answer: it is the greedy continuation if each token is the likeliest
    one). With `f1` also `generated_f1`, what the released code calls accuracy: the F1 on five greedy
    tokens (`icl_lib.metrics.generation`; `reach_back` as there). `edits`: name to an edit, or to an edit per
    task, or to None for the unedited model (the default). An edit at the last position also acts
    where answer tokens are fed, as when they are generated. Edits share what they leave alone. BOS as
    in the prompts' text; nothing is averaged. Errors as in `fv_scores`, and for an edit that lacks a
    task.
    """
    edits = {"none": None} if edits is None else edits
    encoded = {task: encode_prompts(model, task_prompts, task) for task, task_prompts in prompts.items()}
    for of_task in encoded.values():
        _check_answers_fit(model, of_task)
    # edits that are the same for every prompt let short tasks fill a batch together
    alike = all(edit is None or isinstance(edit, Edit) and len(edit.values) == 1 for edit in edits.values())
    columns: dict[str, list[Tensor]] = {}
    for tasks in [list(prompts)] if alike else [[task] for task in prompts]:
        of_tasks = [prompt for task in tasks for prompt in encoded[task]]
        chosen = [_edit_of(name, edit, tasks[0]) for name, edit in edits.items()]
        readouts = answer_readouts(model, of_tasks, chosen, batch_size=batch_size)
        found = {
            "exact_match": [r.correct.all(1) for r in readouts],
            "first_token_correct": [r.correct[:, 0] for r in readouts],
            "first_token_probability": [r.log_probability[:, 0].double().exp() for r in readouts],
        }
        if f1:
            answers = [prompt.answer for task in tasks for prompt in prompts[task]]
            found["generated_f1"] = generated_f1s(
                model, of_tasks, answers, chosen, reach_back=reach_back, batch_size=batch_size
            )
        for name, values in found.items():
            columns.setdefault(name, []).extend(values)
    measured = [prompt for of_task in encoded.values() for prompt in of_task]
    return pd.DataFrame({
        "edit": list(edits) * len(measured),
        "task": np.repeat([prompt.task for prompt in measured], len(edits)),
        "prompt": np.repeat([prompt.index for prompt in measured], len(edits)),
    } | {name: torch.stack(values).flatten().numpy() for name, values in columns.items()})


def answer_readouts(
    model: nn.Module,
    encoded: Sequence[EncodedPrompt],
    edits: Sequence[Edit | None],
    *,
    n_answer_tokens: int | None = None,
    batch_size: int = 16,
) -> list["AnswerReadout"]:
    """For each prompt what the model says about its answer's tokens under each edit (row = edit).

    Edits at the last position share the prompt's prefix, edits at all positions the layers below the
    first that each edits. Raises ValueError for values of another number of prompts and, naming task and
    prompt, for NaN logits.
    """
    for edit in edits:
        if edit is not None and len(edit.values) not in (1, len(encoded)):
            raise ValueError(f"an edit has values for {len(edit.values)} prompts, there are {len(encoded)}")
    readouts: list[AnswerReadout | None] = [None] * len(encoded)
    answers = [p.answer[:n_answer_tokens] for p in encoded]
    for n in sorted({len(answer) for answer in answers}):
        same = [i for i, answer in enumerate(answers) if len(answer) == n]
        fed = [encoded[i].tokens + answers[i][:-1] for i in same]
        for batch in token_batches(fed, batch_size, device_of(model)):
            prompts = [same[row] for row in batch.rows]
            targets = torch.tensor([answers[i] for i in prompts], device=batch.tokens.device)
            readout = _batch_readout(model, replace(batch, rows=prompts), edits, targets)
            for row, i in enumerate(prompts):
                readouts[i] = AnswerReadout(readout.log_probability[row].cpu(), readout.correct[row].cpu())
                if readouts[i].log_probability.isnan().any():
                    raise ValueError(f"task {encoded[i].task!r}, prompt {encoded[i].index}: NaN logits")
    return readouts


class AnswerReadout:
    """Log-probability and argmax of one prompt's answer tokens: `[edit, pos]`."""

    def __init__(self, log_probability: Float[Tensor, "edit pos"], correct: Tensor):
        self.log_probability, self.correct = log_probability, correct


@torch.inference_mode()
def _batch_readout(
    model: nn.Module, batch: TokenBatch, edits: list[Edit | None], targets: Int[Tensor, "batch pos"]
) -> Readout:
    at_last = [i for i, e in enumerate(edits) if e is None or e.positions == "last"]
    everywhere = sorted(set(range(len(edits))) - set(at_last))
    shape = (len(batch.rows), len(edits), targets.shape[1])
    log_probability = torch.empty(shape, dtype=torch.float64, device=targets.device)
    correct = torch.empty(shape, dtype=torch.bool, device=targets.device)
    for chosen in (at_last, everywhere):
        if not chosen:
            continue
        rows = row_edits(model, [edits[i] for i in chosen], batch.rows)
        if chosen is at_last:
            readout = read_edited_rows(model, batch, rows, targets)
        else:
            read = last_positions(batch.lengths, targets.shape[1])
            readout = read_targets(model, edited_residuals(model, batch.tokens, rows, read), targets)
        log_probability[:, chosen], correct[:, chosen] = readout.log_probability.double(), readout.correct
    return Readout(log_probability, correct)


def token_losses(
    model: nn.Module,
    tokens: Int[Tensor, "row pos"],
    edit: Edit | None = None,
    *,
    batch_size: int | None = None,
) -> Float[Tensor, "row loss"]:
    """The loss of every token but the first, in nats, by position (section 2, token-loss difference).

    Entry `i` of a row is -log P(token i+1 | tokens 0..i); token 0 is BOS where the rows have one.
    Nothing is averaged. `edit`: heads replaced meanwhile, with values for all rows or for each; at the
    last position each loss is read with the heads replaced where it is read from, and nothing before.
    Raises ValueError for rows longer than the context or of one token, and naming the row for NaN.
    """
    return edited_token_losses(model, tokens, [edit], batch_size=batch_size)[0]


@torch.inference_mode()
def edited_token_losses(
    model: nn.Module,
    tokens: Int[Tensor, "row pos"],
    edits: Sequence[Edit | None],
    *,
    at: Sequence[int] | None = None,
    batch_size: int | None = None,
) -> Float[Tensor, "edit row loss"]:
    """`token_losses` under several edits, which share what they leave alone; `at`: the losses wanted."""
    n_rows, n_pos = tokens.shape
    if not 2 <= n_pos <= model.cfg.n_ctx:
        raise ValueError(f"rows of {n_pos} tokens: expected 2 to the context of {model.cfg.n_ctx}")
    refuse_unknown_tokens(model, int(tokens.max()), "the rows of tokens")
    at = torch.arange(n_pos - 1) if at is None else torch.as_tensor(at)
    n_fed = int(at.max()) + 1
    weight = next(model.original_model.parameters())
    losses = torch.empty(len(edits), n_rows, len(at), dtype=torch.promote_types(weight.dtype, torch.float32))
    at_last = [i for i, e in enumerate(edits) if e is not None and e.positions == "last"]
    for chosen in (at_last, sorted(set(range(len(edits))) - set(at_last))):
        read, n_each = (_read_apart, len(chosen) * len(at)) if chosen is at_last else (_read_everywhere, 1)
        for rows in torch.arange(n_rows).split(batch_size or max(1, _LOSS_TOKENS // max(n_fed, n_each))):
            if not chosen:
                continue
            part = tokens[rows].to(device_of(model))
            of_rows = row_edits(model, [edits[i] for i in chosen], rows.tolist())
            positions = at.to(part.device).expand(len(rows), -1)
            log_probability = read(model, part[:, :n_fed], of_rows, positions, part[:, at + 1])
            losses[torch.tensor(chosen)[:, None], rows] = -log_probability.transpose(0, 1).cpu()
    if losses.isnan().any():
        raise ValueError(f"row {int(losses.isnan().any(2).any(0).nonzero()[0])} of the tokens: NaN loss")
    return losses


def _read_everywhere(
    model: nn.Module, fed: Tensor, edits: RowEdits, at: Tensor, targets: Tensor
) -> Float[Tensor, "row edit loss"]:
    read = None if at.shape[1] == fed.shape[1] else at
    # whole sequences of every edit would be too much to hold
    n = len(edits.masks) if read is not None else max(1, 4 * _LOSS_TOKENS // fed.numel())
    parts = [
        read_targets(model, edited_residuals(model, fed, edits.take(some), read), targets).log_probability
        for some in torch.arange(len(edits.masks)).split(n)
    ]
    return torch.cat(parts, dim=1)


def _read_apart(
    model: nn.Module, fed: Tensor, edits: RowEdits, at: Tensor, targets: Tensor
) -> Float[Tensor, "row edit loss"]:
    batch = TokenBatch(fed, torch.full((len(fed),), fed.shape[1], device=fed.device), list(range(len(fed))))
    n = max(1, _LOSS_TOKENS // (len(fed) * at.shape[1]))
    parts = [
        read_edited_rows(model, batch, edits.take(some), targets, apart=at).log_probability
        for some in torch.arange(len(edits.masks)).split(n)
    ]
    return torch.cat(parts, dim=1)


@torch.inference_mode()
def token_loss_differences(
    model: nn.Module, tokens: Int[Tensor, "row pos"], edits: Sequence[Edit | None], *, window: int = 0
) -> Float[Tensor, "edit row"]:
    """`token_loss_difference` of every row under several edits, from the losses that it needs alone."""
    check_window(window, tokens.shape[1] - 1)
    at = [place + shift for place in PLACES for shift in range(-window, window + 1)]
    losses = edited_token_losses(model, tokens, edits, at=at)
    early, late = losses.chunk(2, dim=2)
    return early.mean(2) - late.mean(2)


def token_loss_difference(losses: Float[Tensor, "row loss"], *, window: int = 0) -> Float[Tensor, "row"]:
    """Loss at the 50th token minus loss at the 500th, in nats, per row (section 2; Olsson et al. 2022).

    Indices 50 and 500 of the shifted losses, as evaluate_icl_score.py takes them: the losses on tokens
    51 and 501 with BOS as token 0. Positive where the later token is predicted better. With a `window` each
    is the mean over that many positions to either side, which the paper does not do: the loss of one token is
    noisy, and short runs have few documents. Raises ValueError for rows too short for the window.
    """
    check_window(window, losses.shape[1])
    early, late = (losses[:, at - window : at + window + 1].mean(1) for at in PLACES)
    return early - late


def check_window(window: int, n_losses: int) -> None:
    """Refuse a window that the token-loss difference cannot have, and documents too short for it."""
    if not 0 <= window <= 50:
        raise ValueError(f"window {window!r}: expected a whole number of positions from 0 to 50")
    if n_losses < 501 + window:
        raise ValueError(
            f"token-loss difference with window {window} needs {502 + window} tokens with BOS, "
            f"these rows have {n_losses + 1}; give longer documents or a smaller window"
        )


def _edit_of(name: str, edit: Edit | Mapping[str, Edit] | None, task: str) -> Edit | None:
    if not isinstance(edit, Mapping):
        return edit
    if task not in edit:
        raise ValueError(f"edit {name!r} has nothing for task {task!r}")
    return edit[task]


def _check_answers_fit(model: nn.Module, encoded: list[EncodedPrompt]) -> None:
    for prompt in encoded:
        n = len(prompt.tokens) + len(prompt.answer) - 1
        if n > model.cfg.n_ctx:
            raise ValueError(
                f"task {prompt.task!r}, prompt {prompt.index}: {n} tokens with its answer exceed the "
                f"context of {model.cfg.n_ctx}"
            )


def ablated_answer_probabilities(
    model: nn.Module,
    prompts: Mapping[str, TaskPrompts],
    heads: Bool[Tensor, "layer head"],
    *,
    replacement: str = "mean",
    positions: str = "last",
    scoring_prompts: Mapping[str, TaskPrompts] | None = None,
    seed: int = 0,
    batch_size: int = 16,
) -> dict[str, Float[Tensor, "prompt"]]:
    """P(first answer token) on each clean prompt with `heads` ablated (section 4; ablate_utils.py).

    The answer is tokenised alone with its leading space; read at the last position; BOS is in the
    prompt's text; nothing is averaged. Replacements: `replacement_values`; positions: `Edit`. Errors
    as there and in `fv_scores`.
    """
    values = replacement_values(model, prompts, replacement, scoring_prompts=scoring_prompts, seed=seed)
    probabilities = {}
    for task, task_prompts in prompts.items():
        encoded = encode_prompts(model, task_prompts.clean, task)
        edit = Edit(heads.cpu(), values[task], positions)
        readout = answer_readouts(model, encoded, [edit], n_answer_tokens=1, batch_size=batch_size)
        probabilities[task] = torch.cat([r.log_probability[0, :1] for r in readout]).double().exp()
    return probabilities
