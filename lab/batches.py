"""What the batches of the causal test's arms hold: shares of the loss, and what a mask gives away. Nothing is trained.

Batches are drawn as `lab.train` draws them, with the same generator, mixture and interventions.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from transformers import PreTrainedTokenizerFast

from icl_lib.data.sources import read_tasks
from icl_lib.scores.induction import induction_targets
from lab.causal_statistics import MaskTold
from lab.files import changed, read_rung
from lab.interventions import RUNNING_TEXT, Intervention
from lab.text import Generator, Rows
from lab.tokenizer import FOLDER as TOKENIZER

N_BATCHES = 16


def drawn(plan: dict[str, Any], intervention: Intervention, *, seed: int = 0) -> list[list[Rows]]:
    """A few batches of the plan's mixture as an intervention leaves them, halfway through training."""
    mixture, generator = changed(read_rung(plan["rung"]), plan["change"])["mixture"], _generator(intervention.repeats)
    return [intervention.apply(generator.batch(np.random.default_rng([seed, step]), mixture), generator, mixture,
                               rng=np.random.default_rng([seed, step, 1]), progress=0.5) for step in range(N_BATCHES)]


def few_shot_shares(plan: dict[str, Any], *, seed: int = 0) -> dict[tuple[str, float], float]:
    """The share of the loss that lies on few-shot prompts of tasks, by arm and strength of a plan."""
    return {(arm, float(strength)): _few_shot_share(plan, entry, float(strength), seed)
            for arm, entry in plan["arms"].items() for strength in entry["strengths"]}


def mask_told(plan: dict[str, Any], *, seed: int = 0) -> MaskTold:
    """What a mask in running text gives away of copies in listings, and the least loss without their order."""
    by_holes, batches = {}, {}
    for name, intervention in (("mask", Intervention("mask_outside")), ("off", Intervention()),
                               ("sham", Intervention("mask_outside", sham=True))):
        batches[name] = drawn(plan, intervention, seed=seed)
        by_holes[name] = np.concatenate([named_by_holes(_listings(batch)) for batch in batches[name]])
    blind = [order_blind_losses(_listings(batch)).sum() / _weight(batch) for batch in batches["off"]]
    return MaskTold(**{name: float(named.mean()) for name, named in by_holes.items()}, n=len(by_holes["mask"]),
                    blind=float(np.mean(blind)))


def named_by_holes(rows: Rows) -> ndarray:
    """For each copied token that counts and follows an earlier copy of the token before it, whether the holes name it.

    Read are the visible tokens of the query less those of the query before it, without regard to their order, as two
    heads of uniform attention see them. Named is the token, other than the query's, that lost most: 1 where it is the
    next token, 1 / n among n that lost as much, else 0.
    """
    n, found = rows.tokens.shape[1], []
    visible = np.isfinite(rows.attention) if rows.attention is not None else np.broadcast_to(
        np.tri(n, dtype=bool), (len(rows.tokens), n, n))
    copied = induction_targets(torch.from_numpy(rows.tokens)).numpy().any(-1)
    for ids, seen, weights, after in zip(rows.tokens, visible, rows.weights, copied, strict=True):
        counts = seen.astype(np.float32) @ np.eye(int(ids.max()) + 1, dtype=np.float32)[ids]
        for query in np.flatnonzero(after[1:-1] & (weights[2:] > 0)) + 1:
            change = counts[query] - counts[query - 1]
            change[ids[query]] = 0
            lost_most = change == change.min()
            found.append(lost_most[ids[query + 1]] / lost_most.sum())
    return np.array(found)


def order_blind_losses(rows: Rows) -> ndarray:
    """The least loss in nats on each copied token of listings without the order of the tokens in a segment.

    The predictor is told where copies begin, what stands in their segment and what of it a copy has used already.
    """
    losses = []
    for ids, counted in zip(rows.tokens[:, 1:], rows.weights[:, 1:] > 0, strict=True):
        starts = np.flatnonzero(~counted & np.r_[True, counted[:-1]])  # of segments: what does not count comes first
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            length = int((~counted[start:end]).sum())
            for first in range(start + length, end, length):
                left = ids[start : start + length].tolist()
                for token in ids[first : min(first + length, end)].tolist():
                    losses.append(np.log(len(left) / left.count(token)))
                    left.remove(token)
    return np.array(losses)


@cache
def _generator(repeats: float) -> Generator:
    return Generator(PreTrainedTokenizerFast.from_pretrained(TOKENIZER), read_tasks(), repeats=repeats)


def _few_shot_share(plan: dict[str, Any], entry: dict[str, Any], strength: float, seed: int) -> float:
    batches = drawn(plan, Intervention(entry["intervention"], strength, entry.get("sham", False)), seed=seed)
    few_shot = [[rows for rows in batch if rows.kind not in (*RUNNING_TEXT, "glossary")] for batch in batches]
    return float(np.mean([_weight(some) / _weight(batch) for some, batch in zip(few_shot, batches, strict=True)]))


def _weight(batch: list[Rows]) -> float:
    return sum(float(rows.weights[:, 1:].sum()) for rows in batch)


def _listings(batch: list[Rows]) -> Rows:
    rows, = (rows for rows in batch if rows.kind == "listings")
    return rows
