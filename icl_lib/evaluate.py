"""Few-shot metrics and token losses, with and without edited heads."""

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from icl_lib.ablation import Edit, edited_heads
from icl_lib.passes import (
    EncodedPrompt,
    TokenBatch,
    device_of,
    encode_prompts,
    last_positions,
    plain_transformers,
    take_positions,
    token_batches,
)
from icl_lib.shared_prefix import Readout, RowEdits, read_edited_rows, read_targets
from icl_lib.tasks import Prompt

_LOSS_TOKENS = 4096  # fed at a time for token losses


def answer_metrics(
    model: nn.Module,
    prompts: Mapping[str, Sequence[Prompt]],
    edits: Mapping[str, Edit | Mapping[str, Edit] | None] | None = None,
    *,
    batch_size: int = 16,
) -> pd.DataFrame:
    """Few-shot metrics per prompt: the stuff of "few-shot ICL accuracy" (section 4).

    One row per edit, task and prompt, with `edit, task, prompt, exact_match, first_token_correct,
    first_token_probability`. `exact_match`: greedy decoding gives the whole answer, every token of
    it (checked by feeding the answer: it is the greedy continuation if each token is the likeliest
    one). The paper's "accuracy" is the released code's F1 on five tokens instead. `edits`: name to
    an edit, or to an edit per task, or to None for the unedited model (the default). An edit at
    the last position also acts where answer tokens are fed, as when they are generated. All edits at
    the last position share one pass over the prompt. BOS as in the prompts' text; nothing is
    averaged. Errors as in `fv_scores`, and for an edit that lacks a task.
    """
    edits = {"none": None} if edits is None else edits
    rows = []
    for task, task_prompts in prompts.items():
        encoded = encode_prompts(model, task_prompts, task)
        _check_answers_fit(model, encoded)
        of_task = [_edit_of(name, edit, task) for name, edit in edits.items()]
        for prompt, readout in zip(
            encoded, answer_readouts(model, encoded, of_task, batch_size=batch_size), strict=True
        ):
            for i, name in enumerate(edits):
                rows.append(
                    {
                        "edit": name,
                        "task": task,
                        "prompt": prompt.index,
                        "exact_match": bool(readout.correct[i].all()),
                        "first_token_correct": bool(readout.correct[i, 0]),
                        "first_token_probability": float(readout.log_probability[i, 0].double().exp()),
                    }
                )
    return pd.DataFrame(rows)


def answer_readouts(
    model: nn.Module,
    encoded: Sequence[EncodedPrompt],
    edits: Sequence[Edit | None],
    *,
    n_answer_tokens: int | None = None,
    batch_size: int = 16,
) -> list["AnswerReadout"]:
    """For each prompt what the model says about its answer's tokens under each edit (row = edit).

    Edits at the last position go through the shared prefix together, edits at all positions through
    a pass each. Raises ValueError for values of another number of prompts and, naming task and
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
            readout = _batch_readout(model, batch, [e and e.of_rows(prompts) for e in edits], targets)
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
    n_rows, n_answer = len(batch.rows), targets.shape[1]
    log_probability = torch.empty(n_rows, len(edits), n_answer, dtype=torch.float64, device=targets.device)
    correct = torch.empty(n_rows, len(edits), n_answer, dtype=torch.bool, device=targets.device)
    if at_last:
        rows = _row_edits(model, [edits[i] for i in at_last], n_rows)
        readout = read_edited_rows(model, batch, rows, targets)
        log_probability[:, at_last], correct[:, at_last] = readout.log_probability.double(), readout.correct
    for i in sorted(set(range(len(edits))) - set(at_last)):
        with edited_heads(model, edits[i]), plain_transformers(model) as hf_model:
            hidden = _last_hidden(hf_model, batch.tokens)
        suffix = take_positions(hidden, last_positions(batch.lengths, n_answer))
        readout = read_targets(model, suffix[:, None], targets, normed=True)
        log_probability[:, i], correct[:, i] = readout.log_probability[:, 0].double(), readout.correct[:, 0]
    return Readout(log_probability, correct)


def _row_edits(model: nn.Module, edits: list[Edit | None], n_rows: int) -> RowEdits:
    device = device_of(model)
    shape = (model.cfg.n_layers, model.cfg.n_heads)
    masks = [torch.zeros(shape, dtype=torch.bool) if e is None else e.heads.cpu() for e in edits]
    values = [None if e is None else e.values for e in edits]
    some = next((v for v in values if v is not None), None)
    if some is None:
        return RowEdits(torch.stack(masks).to(device), torch.zeros(1, 1, *shape, 1, device=device))
    wide = any(v is not None and len(v) > 1 for v in values)
    filled = [some.new_zeros(1, *some.shape[1:]) if v is None else v for v in values]
    stacked = torch.stack([v.expand(n_rows if wide else 1, -1, -1, -1) for v in filled], dim=1)
    return RowEdits(torch.stack(masks).to(device), stacked.to(device))


def _last_hidden(hf_model: nn.Module, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
    return hf_model.base_model(input_ids=tokens, use_cache=False).last_hidden_state


@torch.inference_mode()
def token_losses(
    model: nn.Module,
    tokens: Int[Tensor, "row pos"],
    edit: Edit | None = None,
    *,
    batch_size: int | None = None,
) -> Float[Tensor, "row loss"]:
    """The loss of every token but the first, in nats, by position (section 2, token-loss difference).

    Entry `i` of a row is -log P(token i+1 | tokens 0..i); token 0 is BOS where the rows have one.
    Nothing is averaged. `edit`: heads replaced meanwhile, with values for all rows or for each.
    Raises ValueError for rows longer than the context or of one token, and naming the row for NaN.
    """
    n_rows, n_pos = tokens.shape
    if not 2 <= n_pos <= model.cfg.n_ctx:
        raise ValueError(f"rows of {n_pos} tokens: expected 2 to the context of {model.cfg.n_ctx}")
    batch_size = batch_size or max(1, _LOSS_TOKENS // n_pos)
    losses = []
    for rows in torch.arange(n_rows).split(batch_size):
        fed = tokens[rows].to(device_of(model))
        part = None if edit is None else edit.of_rows(rows.tolist())
        with edited_heads(model, part), plain_transformers(model) as hf_model:
            hidden = _last_hidden(hf_model, fed[:, :-1])
        log_probability = read_targets(model, hidden[:, None], fed[:, 1:], normed=True).log_probability
        losses.append(-log_probability[:, 0].cpu())
    losses = torch.cat(losses)
    if losses.isnan().any():
        raise ValueError(f"row {int(losses.isnan().any(1).nonzero()[0])} of the tokens: NaN loss")
    return losses


def token_loss_difference(losses: Float[Tensor, "row loss"], *, window: int = 0) -> Float[Tensor, "row"]:
    """Loss at the 50th token minus loss at the 500th, in nats, per row (section 2; Olsson et al. 2022).

    Indices 50 and 500 of the shifted losses, as evaluate_icl_score.py takes them: the losses on tokens
    51 and 501 with BOS as token 0. Positive where the later token is predicted better. With a `window` each
    is the mean over that many positions to either side, which the paper does not do: the loss of one token is
    noisy, and short runs have few documents. Raises ValueError for rows too short for the window.
    """
    if not 0 <= window <= 50:
        raise ValueError(f"window {window!r}: expected a whole number of positions from 0 to 50")
    if losses.shape[1] < 501 + window:
        raise ValueError(
            f"token-loss difference with window {window} needs {502 + window} tokens with BOS, "
            f"these rows have {losses.shape[1] + 1}"
        )
    early, late = (losses[:, at - window : at + window + 1].mean(1) for at in (50, 500))
    return early - late


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
