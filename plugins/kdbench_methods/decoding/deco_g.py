"""Deco-G: decoupling task-solving and output formatting.

Deng, Kung and Peng, ACL 2026. Asked for an answer and for a rigid format at once, a language model does both worse.
Deco-G asks it for the task alone and leaves the format to a module beside it. With p the language model, C the
probability that the format can still be met, and v the next token,

    P(v | x_<t)  ~  p(v | x_<t, task) C(v),      C(v) = P(the format is met | x_<t, v).

C is that of a hidden Markov model, which is distilled from p and for which it can be computed exactly (Ctrl-G, Zhang et
al., NeurIPS 2024).

1. Instruction-aware distillation: responses y ~ p(. | task) to training instructions, without the prompt and padded
   with the end token, are what the model is fitted to by expectation maximisation, with pseudocounts and missing tokens
   (:mod:`kdbench.tracks.decoding.blocks.hmm`). ``source: unconditional`` fits it to what p writes after the start token
   alone, prompts included, and lets it read the prompt, as Ctrl-G does.
2. Trie building: the format, literals and free slots, becomes an automaton over tokens in which every tokenisation of a
   literal is a path (:mod:`kdbench.tracks.decoding.blocks.automata`).
3. A table over the states of automaton and model and the tokens that are left gives C for all v at once
   (:mod:`kdbench.tracks.decoding.blocks.lookahead`).
4. State pruning: each step keeps the fewest hidden states that hold 1 - ``eps`` of the forward mass. Which tokens are
   impossible is read off the automaton, so pruning does not touch the guarantee that the format is met.

``evaluate`` adds how well the hidden Markov model fits (its nats per token on fresh responses to validation prompts,
and the entropy of p there, which is the least that any model can reach), hidden states per step, tokens per second, and
the accuracy of each format. Slots and scores of word problems stand in for the events and judgements of the paper.
"""

from typing import Literal

import torch

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.losses.tokens import IGNORE
from kdbench.tracks.decoding.blocks.hmm import HMM, fit, padded
from kdbench.tracks.decoding.decoders.autoregressive import Autoregressive
from kdbench.tracks.decoding.decoders.constrained import Constrained
from kdbench.tracks.llm.generation import Prompts, Responses, as_batch
from kdbench.tracks.llm.networks.models import scored_logits
from kdbench.tracks.llm.networks.tokenizers import pad_id, start_id

PAPER = Paper(
    slug="deco_g",
    title="Decoupling Task-Solving and Output Formatting in LLM Generation",
    year=2026,
    authors=["Haikang Deng", "Po-Nien Kung", "Nanyun Peng"],
    venue="ACL",
    track="decoding",
    arxiv="2510.03595",
    source="abstract",
    tasks=["formats"],
    requires=["logits"],
    tags=["constrained-decoding", "hidden-markov-model"],
    claims=[
        Compare(
            metric="format_accuracy",
            subject="deco_g",
            reference="prompt_format",
            tasks=["formats"],
            kind="noninferior",
            note="Right answers in the required format are no fewer than where the prompt asks for task and format.",
        ),
        Compare(
            metric="format_accuracy",
            subject="deco_g",
            reference="hard_mask",
            tasks=["formats"],
            note="The look-ahead is better than the automaton's mask alone.",
        ),
        Compare(
            metric="compliance",
            subject="deco_g",
            reference=1.0,
            tasks=["formats"],
            kind="noninferior",
            note="The format is always met.",
        ),
        Compare(
            metric="format_accuracy",
            subject="deco_g",
            reference={"method": "deco_g", "params": {"source": "unconditional"}},
            tasks=["formats"],
            kind="noninferior",
            note="A model of responses to instructions serves no worse than one of unconditional text.",
        ),
        Compare(
            metric="format_accuracy",
            subject="deco_g",
            reference={"method": "deco_g", "params": {"eps": 0.0}},
            tasks=["formats"],
            kind="noninferior",
            margin=0.02,
            note="Pruning hidden states costs no accuracy.",
        ),
        Compare(
            metric="kept_mean",
            subject="deco_g",
            reference={"method": "deco_g", "params": {"eps": 0.0}},
            tasks=["formats"],
            kind="ratio",
            margin=0.5,
            direction="min",
            note="Pruning keeps at most half of the hidden states.",
        ),
    ],
    departures=[
        "instruction-aware distillation, trie building and pruning are our reading of the abstract, on top of Ctrl-G",
        "64 hidden states and 2000 responses instead of thousands and millions, for a target that reads characters",
        "tokens without an alternative are read together with the next one, which saves forwards and changes no text",
    ],
)


class DecoGParams(Params):
    """The hidden Markov model, what it is fitted to, and pruning."""

    states: int = Field(64, ge=2, le=65536, description="hidden states")
    responses: int = Field(
        2000, ge=8, le=10_000_000, description="sampled responses to fit, one a training task at most"
    )
    iterations: int = Field(20, ge=1, le=1000, description="iterations of expectation maximisation")
    pseudocount: float = Field(1e-3, gt=0, le=1e6, description="added to each row of expected counts, shared evenly")
    dropout: float = Field(1e-3, ge=0, lt=1, description="share of tokens that are missing, anew in each iteration")
    eps: float = Field(1e-3, ge=0, lt=1, description="forward mass of hidden states that is pruned; 0: none")
    source: Literal["instructions", "unconditional"] = Field(
        "instructions", description="what the target writes the responses to: training instructions, or nothing"
    )
    jump: bool = Field(True, description="true: tokens without an alternative take no forward of their own")


CHUNK = 250
"""Responses that are sampled at once."""


def sampled(task, prompts, max_new, generator):
    """Responses (ids of each) of the target to prompts, at temperature 1."""
    rows = []
    for begin in range(0, len(prompts), CHUNK):
        part = Prompts(prompts.ids[begin : begin + CHUNK], prompts.index[begin : begin + CHUNK], prompts.split)
        batch = task.rollout(task.teacher(), part, max_new=max_new, temperature=1.0, generator=generator)
        rows += [ids[kept].tolist() for ids, kept in zip(batch.input_ids, batch.labels != IGNORE, strict=True)]
    return rows


@hookimpl
def train(task, params):
    unconditional, generator = params.source == "unconditional", task.generator("responses")
    chosen = torch.randperm(len(task.split("train")), generator=generator)[: params.responses]
    if unconditional:
        length, start = task.spec.data.length, start_id(task.tokenizer)
        prompts = Prompts([[start]] * len(chosen), torch.full_like(chosen, -1))
    else:
        length = task.spec.evaluation.max_new
        prompts = task.kind.task_prompts(task, "train", chosen.tolist())
    rows, end = sampled(task, prompts, length, generator), task.tokenizer.eos_token_id
    tokens = padded(rows, max(map(len, rows)) if unconditional else length, end)
    model = HMM.random(params.states, len(task.tokenizer), task.generator("model")).to(task.device)
    fit(
        model,
        tokens.to(task.device),
        iterations=params.iterations,
        pseudocount=params.pseudocount,
        dropout=params.dropout,
        end=end,
        generator=task.generator("dropout"),
        on_iteration=lambda number, nats: task.log(number, hmm_nats=-nats),
    )
    task.budget.spend("aux_steps", params.iterations)
    return Constrained(task.tokenizer, model, eps=params.eps, reads_prompt=unconditional, jump=params.jump)


@torch.no_grad()
def fit_of(task, decoder):
    """NLL of fresh responses to validation tasks under the hidden Markov model, and the target's entropy on them.

    Nats per token, the end token included and the padding behind it not.
    """
    prompts = task.kind.task_prompts(task, "val")
    written = task.decode(Autoregressive(), prompts.ids, temperature=1.0, generator=task.generator("eval")).tokens
    responses = Responses(written, [[0.0] * len(row) for row in written])
    batch = as_batch(prompts, responses, pad_id(task.tokenizer)).to(task.device)
    log_p = scored_logits(task.teacher(), batch).float().log_softmax(-1)
    nats, count = 0.0, 0
    for prompt, row in zip(prompts.ids, written, strict=True):
        before = prompt[1:] if decoder.reads_prompt else []
        scale = decoder.model(torch.tensor([before + row], device=task.device)).scale[len(before) :]
        nats, count = nats - float(scale.log().sum()), count + len(row)
    return {"hmm_nats": nats / count, "target_entropy": float(-(log_p.exp() * log_p).sum(-1).mean())}


@hookimpl
def evaluate(task, model):
    return task.score(model) | task.kind.study(task, model) | fit_of(task, model)
