"""ALM: Universal Cross-Tokenizer Distillation via Approximate Likelihood Matching.

Minixhofer, Vulić and Ponti, NeurIPS 2025. Teacher and student need not share a tokenizer, because what is matched is
the likelihood of text and not of tokens.

* *Alignment.* The same text under both tokenizers is cut wherever both have told the same bytes. A chunk c is a span of
  the teacher's tokens and a span of the student's that stand for identical bytes; its log-likelihood under each is the
  sum of the log-probabilities of its tokens.
* *Outcome debiasing.* A token also says how the text does not go on: "Hello" rarely comes before "World", because there
  is a token for both. Each side therefore adds the log-probability that the next token begins with a blank or is
  special; and neighbouring chunks are joined until the teacher gives that event more than a threshold.
* *Binarised f-divergence.* Of all possible outcomes only "this chunk" and "another" are compared. With a = log p(c) /
  tau - eps and b = log q(c) / tau - eps

      L = -mean_c [ e^a b + (1 - e^a) log(1 - e^b) ].

* Optionally the hidden states at the ends of chunks are matched (squared distance over the teacher's mean square) and
  the next token is learned; terms are scaled by the inverse norm of their gradients in the last layer.

The student's vocabulary is new: each embedding is the mean of the embeddings of the tokens that spelt it.

``evaluate`` adds on validation data: sizes of chunks, how far the two likelihoods of a chunk are apart, and on how many
chunks both or neither are greedily right; on test data bits per byte of responses, and of the ensemble with a second
model that was given the same tokenizer (probabilities averaged). Bits per byte compare across tokenizers.
"""

import json
from typing import Literal

from safetensors.torch import load_file, save_file
from torch import nn

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.losses.binarised import BINARISED
from kdbench.losses.divergences import fkl
from kdbench.losses.tokens import Positions, tok_mean, truncate_pairwise, uld
from kdbench.tracks.llm.blocks.alignment import nearest_tokens
from kdbench.tracks.llm.blocks.transfer import bits_per_byte, make_room, rewritten, tokenizer_named
from kdbench.tracks.llm.chunks import (
    Sides,
    chunk_facts,
    frozen_states,
    hidden_loss,
    likelihoods,
    spoken,
    states_and_logits,
)
from kdbench.tracks.llm.data.instruct import Item
from kdbench.tracks.llm.networks.models import last_block, targets_of, token_nll
from kdbench.training.gradients import balanced

PAPER = Paper(
    slug="alm",
    title="Universal Cross-Tokenizer Distillation via Approximate Likelihood Matching",
    year=2025,
    authors=["Benjamin Minixhofer", "Ivan Vulić", "Edoardo Maria Ponti"],
    venue="NeurIPS",
    track="llm",
    arxiv="2503.20083",
    source="code",
    tasks=["instruct", "text", "transfer"],
    requires=["logits"],
    tags=["off-policy", "cross-tokenizer"],
    claims=[
        Compare(
            metric="bits_per_byte",
            subject={"method": "alm", "params": {"tokenizer": "bytes"}},
            reference={"method": "alm", "params": {"tokenizer": "bytes", "objective": "sft"}},
            tasks=["text"],
            note="Pure likelihood matching transfers a subword model to bytes better than training on the text.",
        ),
        Compare(
            metric="bits_per_byte",
            subject={"method": "alm", "params": {"tokenizer": "bytes"}},
            reference={"method": "alm", "params": {"tokenizer": "bytes", "objective": "uld"}},
            tasks=["text"],
            note="From the same start it is also better than the universal logit distance.",
        ),
        Compare(
            metric="bits_per_byte",
            subject="alm",
            reference={"method": "alm", "params": {"objective": "mined"}},
            tasks=["text"],
            note="It is better than logits that are aligned by the edit distance of tokens.",
        ),
    ],
    departures=[
        "the default gives the task's small student another subword vocabulary; bytes and the teacher's body cost more",
        "the mean counts the chunks that are scored after merging; the released code's divisor counts fewer",
        "a chunk at the end of a row within a document is not scored where debiasing needs the token after it",
        "new embeddings carry no learned network that predicts them",
        "a special token at the end of a chunk adds no term; the released code reads a space there",
        "low-rank adapters are an option of the task's student, not of the method",
    ],
)


class AlmParams(Params):
    """The student and its vocabulary, the likelihoods that are compared, and what is minimised beside them."""

    tokenizer: str = Field(
        "bpe2048", description="of the student: task, bytes, bpe512, bpe1024, bpe2048, or a model's name or folder"
    )
    student: Literal["task", "body"] = Field(
        "task", description="body: a copy of the teacher that gets the new vocabulary (self-distillation)"
    )
    initial: Literal["averaged", "random"] = Field(
        "averaged", description="embeddings of the new vocabulary: means of the old ones, or drawn with their spread"
    )
    objective: Literal["alm", "sft", "uld", "mined"] = Field(
        "alm", description="instead: training on the text, sorted probabilities, or logits matched by edit distance"
    )
    divergence: Literal["binary_ce", "reverse_binary_kl", "temperature_limit", "abs"] = Field(
        "binary_ce", description="of the likelihoods of a chunk; temperature_limit: the forward one, tau to infinity"
    )
    tau: float = Field(100.0, ge=1, le=1e4, description="divides the log-likelihoods of chunks; 1: as they are")
    append_space: bool = Field(True, description="a chunk includes that a word begins after it")
    merge: float = Field(
        0.1, ge=0, lt=1, description="chunks are joined until the teacher starts a word with more than this; 0: never"
    )
    hidden: float = Field(0.0, ge=0, le=100, description="weight of the hidden states at the ends of chunks")
    sft: float = Field(0.0, ge=0, le=100, description="weight of the next-token cross-entropy beside the objective")
    uld: float = Field(1.5, ge=0, le=100, description="objective uld: weight of the distance beside the cross-entropy")
    balance: bool = Field(True, description="several terms get gradients of equal norm in the last layer")
    partner: Literal["none", "task", "body"] = Field(
        "none", description="a second model, transferred likewise (auxiliary steps), for the ensemble"
    )


# --- training ---------------------------------------------------------------------------------------------------------


def transfer(task, params, kind, tokenizer, spend):
    """One network, trained as the parameters say."""
    model = rewritten(task, kind, tokenizer, random=params.initial == "random")
    sides = Sides(task, "train", tokenizer)
    make_room(model, sides.sequences[1].ids.shape[1])
    live = params.objective != "alm" or params.hidden > 0
    kept = None if live else sides.kept()
    nearest = nearest_tokens(task.tokenizer, tokenizer) if params.objective == "mined" else None
    projector = None
    if params.hidden:
        widths = [network.get_input_embeddings().weight.shape[1] for network in (model, task.teacher())]
        with task.seeded("projector"):
            same = widths[0] == widths[1]
            projector = (nn.Identity() if same else nn.Linear(*widths, bias=False)).to(task.device)
    compare = BINARISED[params.divergence]

    def terms(model, batch):
        states, logits = states_and_logits(model, batch)
        targets = targets_of(batch)
        if params.objective == "sft" and projector is None:
            return {"ce": tok_mean(token_nll(logits, targets))}
        theirs = sides.theirs(batch)
        alignment = sides.align(theirs, batch)
        parts = {}
        if projector is not None:
            teacher_hidden, teacher_logits = frozen_states(task, theirs)
            parts["hidden"] = params.hidden * hidden_loss(alignment, teacher_hidden, states, projector)
        elif params.objective in ("uld", "mined"):
            teacher_logits = task.scored_teacher(theirs)
        if params.objective == "alm":
            if projector is not None:
                says = spoken(teacher_logits, targets_of(theirs), sides.blanks[0])
            else:
                says = sides.teacher_says(theirs, batch, kept)
            own = spoken(logits, targets, sides.blanks[1])
            p, q, scored, _ = likelihoods(alignment, says, own, append_space=params.append_space, merge=params.merge)
            parts["alm"] = tok_mean(compare(p, q, params.tau), scored)
        elif params.objective == "uld":
            mine = Positions(logits, targets, batch.scored.nonzero()[:, 0])
            other = Positions(teacher_logits, targets_of(theirs), theirs.scored.nonzero()[:, 0])
            parts["uld"] = params.uld * tok_mean(uld(*truncate_pairwise(mine, other)))
            parts["ce"] = tok_mean(token_nll(logits, targets))
        elif params.objective == "mined":
            # where both have read the same bytes, both say what comes next
            both = (alignment.after[0] >= 0) & (alignment.after[1] >= 0)
            target = teacher_logits[alignment.after[0][both]][:, nearest.to(task.device)]
            parts["mined"] = tok_mean(fkl(logits[alignment.after[1][both]][:, : len(nearest)], target))
        if params.objective == "sft" or (params.sft and "ce" not in parts):
            parts["ce"] = (params.sft or 1.0) * tok_mean(token_nll(logits, targets))
        return parts

    def loss(model, batch):
        parts = terms(model, batch)
        # the two terms of uld have the weights of its authors
        several = len(parts) > 1 and not (params.objective == "uld" and len(parts) == 2)
        return balanced(parts, last_block(model)) if params.balance and several else parts

    modules = [] if projector is None else [projector]
    loader = task.loader(sides.sequences[1], split="train")
    steps, tag = (None, "") if spend == "steps" else (int(task.spec.limits["steps"]), "partner")
    task.fit(model, loss, loader=loader, modules=modules, steps=steps, spend=spend, tag=tag)
    return model if tokenizer is task.tokenizer else task.adopt(model, tokenizer)


@hookimpl
def train(task, params):
    tokenizer = tokenizer_named(task, params.tokenizer)
    if params.partner != "none":
        partner = transfer(task, params, params.partner, tokenizer, "aux_steps")
        state = {name: tensor.clone().contiguous() for name, tensor in partner.state_dict().items()}
        save_file(state, task.artifact("partner.safetensors"))
    return transfer(task, params, params.student, tokenizer, "steps")


# --- evaluation -------------------------------------------------------------------------------------------------------


@hookimpl
def evaluate(task, model, params):
    tokenizer = task.tokenizer_of(model)
    facts, histogram = chunk_facts(task, model, append_space=params.append_space, merge=params.merge)
    task.artifact("chunks.json").write_text(json.dumps(histogram) + "\n")
    scores = task.score(model) | facts
    if task.split("test").kind is Item:
        scores["response_bits_per_byte"] = bits_per_byte(task, [model], tokenizer)
    if params.partner != "none":
        partner = rewritten(task, params.partner, tokenizer, random=params.initial == "random")
        partner.load_state_dict(load_file(task.artifact("partner.safetensors")), strict=True)
        partner.eval()
        scores["partner_bits_per_byte"] = bits_per_byte(task, [partner], tokenizer)
        scores["ensemble_bits_per_byte"] = bits_per_byte(task, [model, partner], tokenizer)
    return scores
