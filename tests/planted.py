"""A transformer whose weights were set by hand, so that it is known which head does what.

A GPT-NeoX of three layers. Words are codes of +-1, and parts of the residual stream hold the token, the token before
it, the task of a pair, the task of the prompt and the next token. Three heads do something:

- the previous-token head of layer 0 copies the token before (by rotary position alone); the MLP of layer 0 then marks
  labels whose input stands before them with their pair's task;
- the induction head of layer 1 attends to tokens whose previous token is the present one and predicts them;
- the FV head of layer 2 averages the tasks of all marked labels; the MLP of layer 2 predicts the label that the
  present token has under that task.

All other heads attend to BOS and write exactly zero. Layer norms divide by a constant to within 1e-4, because two
constant parts of the stream are far larger than the rest; their shift is read from a part that is always zero and taken
away. The tasks are the cyclic shifts between the same inputs and labels, so that only the pairing tells them apart, and
shuffled labels belong to other tasks. An input and the `A:` after it are one token: a label stands right after its
input.
"""

import re

import numpy as np
import torch
from scipy.linalg import hadamard
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from icl_lib.data.tasks import Task

BOS = "<s>"
N = 10  # inputs, labels, tasks
INPUTS, LABELS = [f"in{i}" for i in range(N)], [f"out{i}" for i in range(N)]
FILLERS = [f"w{i}" for i in range(40)]
TOKENS = [BOS, "Q:", "\n\nQ:", *(f" {word}\nA:" for word in INPUTS), *(f" {word}" for word in LABELS + FILLERS)]
PIECES = Regex(r"\n\nQ:|Q:| \w+\nA:| \w+")
IDS = {token: i for i, token in enumerate(TOKENS)}

N_LAYERS, N_HEADS, D_HEAD, ROTARY, WIDTH = 3, 4, 48, 8, 32
D_MODEL = N_HEADS * D_HEAD
# One at least must be head n of layer n: what a model shows on loading is that replacing those does something.
HEADS = {"previous": (0, 3), "induction": (1, 1), "fv": (2, 2)}
CONSTANT, SHARP, CERTAIN = 1000.0, 120.0, 20.0  # for the norms; of attention, twice that to BOS; logit of a prediction
UNSURE = 0.01  # logit of BOS, which is no answer

# Parts of the residual stream, and of a head: rotary first, then a code, then what finds BOS.
BOS_FLAG, ZERO = 2, 3
TOKEN, PREVIOUS, NEXT = slice(4, 36), slice(36, 68), slice(68, 100)
PAIR, TASK = slice(100, 100 + N), slice(100 + N, 100 + 2 * N)
WORD, FOUND = 120, 121  # of the model that finds patterns (planted_patterns.py): any token but BOS; a pattern
CODE, SINK = slice(ROTARY, ROTARY + WIDTH), ROTARY + WIDTH


def tasks():
    """Each cyclic shift between the inputs and the labels as a task: four to score on, six to evaluate on.

    Of the latter some have one or two exceptions, which no head knows, so that tasks differ.
    """
    return {f"shift{t}": Task(f"shift{t}", "abstractive", "scoring" if t < 4 else "evaluation",
                              [(INPUTS[i], LABELS[(i + t + 5 * (i < (t - 4) // 2)) % N]) for i in range(N)])
            for t in range(N)}


def is_exception(task, prompt):
    """Whether a prompt asks for one of its task's exceptions."""
    i, label = re.search(r"in(\d+)\nA:$", prompt.text)[1], prompt.answer
    return label != f" {LABELS[(int(i) + int(task.removeprefix('shift'))) % N]}"


def documents(n, length=512, seed=0):
    """BOS and one order of all words again and again, inputs last: the 50th token is new, the 500th is a copy.

    In the first document both are copies: its words are twenty.
    """
    generator = np.random.default_rng(seed)
    inputs, others = ([IDS[t] for t in TOKENS[3:] if t.endswith("A:") == last] for last in (True, False))
    rows = []
    for i in range(n):
        period = [*generator.permutation(others), *generator.permutation(inputs)][: None if i else 20]
        rows.append([IDS[BOS], *period * (length // len(period) + 1)][:length])
    return torch.tensor(rows)


def codes():
    """A code of length 1 for every token but BOS, sums of zero, products of two codes 0 or -1."""
    rows = torch.from_numpy(hadamard(WIDTH)).float()[1:] / WIDTH**0.5
    found = torch.cat([rows, -rows])[: len(TOKENS) - 1]
    return torch.cat([torch.zeros(1, WIDTH), found])  # inputs and labels are among the first half: none cancel


def write_model(folder, *, working=("previous", "induction", "fv"), heads=None):
    """Write model and tokenizer to `folder`; heads that are not `working` are idle like all others."""
    model = blank_model(len(TOKENS))
    with torch.no_grad():
        _set_words(model)
        places = {place: kind for kind, place in (heads or HEADS).items() if kind in working}
        set_heads(model, places)
        _set_pairs(model.gpt_neox.layers[0].mlp)
        _set_answers(model.gpt_neox.layers[2].mlp)
    write(model, IDS, PIECES, folder)


def blank_model(n_tokens):
    """All weights zero; the norms divide by what the two constant parts of the stream make of it."""
    config = GPTNeoXConfig(
        vocab_size=n_tokens, hidden_size=D_MODEL, num_hidden_layers=N_LAYERS, num_attention_heads=N_HEADS,
        intermediate_size=N * N, hidden_act="relu", max_position_embeddings=560, use_parallel_residual=False,
        rotary_pct=ROTARY / D_HEAD, bos_token_id=0, eos_token_id=0)
    model = GPTNeoXForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight.fill_(CONSTANT * (2 / D_MODEL) ** 0.5)
        embedding = model.gpt_neox.embed_in.weight
        embedding[:, 0], embedding[:, 1], embedding[0, BOS_FLAG] = CONSTANT, -CONSTANT, 1
    return model


def set_heads(model, places):
    """Heads at their places do what their kind says, all others nothing."""
    for layer, block in enumerate(model.gpt_neox.layers):
        for head in range(N_HEADS):
            _set_head(block.attention, head, places.get((layer, head), "idle"))


def write(model, ids, pieces, folder):
    """The model with a tokenizer whose tokens are the pieces of a text."""
    with torch.no_grad():
        for block in model.gpt_neox.layers:
            for read in (block.attention.query_key_value, block.mlp.dense_h_to_4h):
                read.weight[:, ZERO] = -read.weight.sum(1)  # the norm's shift cancels
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=BOS))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pieces, behavior="isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=BOS).save_pretrained(folder)


def _set_words(model):
    model.gpt_neox.embed_in.weight[:, TOKEN] = codes()
    unembedding = model.get_output_embeddings().weight
    unembedding[:, NEXT] = codes()
    model.gpt_neox.final_layer_norm.bias[ZERO], unembedding[IDS[BOS], ZERO] = 1, UNSURE


def _set_head(attention, head, kind):
    fused, own = attention.query_key_value, slice(head * D_HEAD, (head + 1) * D_HEAD)
    weights, biases = (x.view(N_HEADS, 3, D_HEAD, -1)[head] for x in (fused.weight.data, fused.bias.data))
    (query, key, value), (query_bias, key_bias) = weights, biases[:2, :, 0]
    write = attention.dense.weight[:, own]
    sharp, identity = SHARP * D_HEAD**0.5, torch.eye(WIDTH)
    query_bias[SINK] = sharp / 2
    key[SINK, BOS_FLAG] = 1
    if kind == "previous":  # the key's rotary part is turned one position less far than the query's
        angle = 10_000.0 ** (-torch.arange(0, ROTARY, 2) / ROTARY)
        query_bias[:ROTARY] = sharp * torch.cat([angle.cos(), -angle.sin()])
        key_bias[:ROTARY] = torch.cat([torch.ones(ROTARY // 2), torch.zeros(ROTARY // 2)])
        key[SINK, BOS_FLAG] = 0
        value[CODE, TOKEN], write[PREVIOUS, CODE] = identity, identity
    elif kind in ("induction", "matching"):
        query[CODE, TOKEN], key[CODE, PREVIOUS] = sharp * identity, identity
        value[CODE, TOKEN], write[NEXT, CODE] = identity, CERTAIN * identity
        if kind == "matching":  # says too that there was an earlier copy
            value[0, WORD], write[FOUND, 0] = 1, CERTAIN
    elif kind == "fv":
        key[SINK, PAIR] = 2
        value[:N, PAIR], write[TASK, :N] = torch.eye(N), torch.eye(N)
        value[N : N + WIDTH, TOKEN] = identity  # carried and not written: not zero on text without pairs either


def _set_pairs(mlp):
    """Neuron (i, j): label j is here and input i before it; it marks the task that pairs them."""
    code, read, write = codes(), mlp.dense_h_to_4h, mlp.dense_4h_to_h.weight
    read.bias.fill_(-1.5)
    for i, word in enumerate(INPUTS):
        for j, label in enumerate(LABELS):
            read.weight[i * N + j, PREVIOUS] = code[IDS[f" {word}\nA:"]]
            read.weight[i * N + j, TOKEN] = code[IDS[f" {label}"]]
            write[PAIR.start + (j - i) % N, i * N + j] = 2


def _set_answers(mlp):
    """Neuron (i, t): input i is here, as far as the prompt shows task t; it predicts the label."""
    code, read, write = codes(), mlp.dense_h_to_4h, mlp.dense_4h_to_h.weight
    read.bias.fill_(-2)
    for i, word in enumerate(INPUTS):
        for t in range(N):
            read.weight[i * N + t, TOKEN] = 2 * code[IDS[f" {word}\nA:"]]
            read.weight[i * N + t, TASK.start + t] = 1
            write[NEXT, i * N + t] = CERTAIN * code[IDS[f" {LABELS[(i + t) % N]}"]]
