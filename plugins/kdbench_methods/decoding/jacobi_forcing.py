"""Jacobi Forcing: a model learns to guess several of its own tokens at once.

Hu et al., ICML 2026. Jacobi decoding reads a block of guesses and puts in the place of each what the model says there,
until the block is a fixed point, which is what the model would have written token by token. A model that was trained on
clean text is led astray by the first wrong guess, and so settles little more than one token per forward. Here it learns
to go on from wrong guesses as from the right tokens:

* *trajectories*: the target decodes training prompts in blocks of n tokens; every intermediate block is kept;
* *noise*: of block j the iterate is taken whose share of tokens from the first wrong one on is nearest to
  s[j mod w], s rising from 0 to 1;
* *packing*: prompt, k_0, last_0, k_1, last_1, ... in one row. The guesses k_j see the prompt and the guesses before
  them, the fixed points last_j the prompt and the fixed points before them; both have the same positions;
* *loss*: with z the logits, T the blocks of the row and o the places from the first wrong guess on,

      L = 10 mean CE(last) + (tau^2 / T) mean_o CE(softmax(stopgrad z(last_j, o) / tau), z(k_j, o) / tau);

  the paper also counts the next tokens of the prompt (``prompt_loss``);
* *rounds*: the trained model makes the trajectories of the next round, whose blocks are twice as long.

What is returned decodes with recycling of rejected guesses and with several blocks at a time (decoders/jacobi.py).

``evaluate`` adds how fast guesses settle (``iterations``, ``stationary_prefix``, ``stationary_tokens``), the block
efficiency with and without the two extensions, and ``identity_errors`` against the same weights decoding token by
token. The target is replaced by a model that was trained further: ``lossless`` and ``agreement`` say how far it went.
At this scale blocks have 8 characters, not 32 to 64 tokens, and one training takes minutes, not weeks.
"""

from typing import Literal

import torch

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.losses.divergences import ce_soft
from kdbench.tracks.decoding.blocks.convergence import convergence
from kdbench.tracks.decoding.blocks.guesses import Window
from kdbench.tracks.decoding.blocks.packing import PackedLoader, packed_logits
from kdbench.tracks.decoding.blocks.trajectories import collected, example
from kdbench.tracks.decoding.decoders.jacobi import JacobiModel
from kdbench.tracks.llm.networks.models import token_nll
from kdbench.tracks.llm.networks.tokenizers import pad_id

PAPER = Paper(
    slug="jacobi_forcing",
    title="Fast and Accurate Causal Parallel Decoding using Jacobi Forcing",
    year=2026,
    authors=[
        "Lanxiang Hu",
        "Siqi Kou",
        "Yichao Fu",
        "Samyam Rajbhandari",
        "Tajana Rosing",
        "Yuxiong He",
        "Zhijie Deng",
        "Hao Zhang",
    ],
    venue="ICML",
    track="decoding",
    arxiv="2512.14681",
    source="code",
    tasks=["arith", "listops", "docs", "hf"],
    requires=["weights", "samples"],
    tags=["parallel", "consistency", "self-distillation"],
    claims=[
        Compare(
            metric="block_efficiency",
            subject="jacobi_forcing",
            reference="jacobi_vanilla",
            tasks=["arith"],
            note="The trained model settles more tokens per forward than the target as it is.",
        ),
        Compare(
            metric="exact_match",
            subject="jacobi_forcing",
            reference="ar",
            tasks=["arith"],
            kind="noninferior",
            margin=0.03,
            note="It solves as many problems, within three points.",
        ),
        Compare(
            metric="block_efficiency",
            subject="jacobi_forcing",
            reference={"method": "jacobi_forcing", "params": {"blocks": 1, "pool": 0}},
            tasks=["arith"],
            note="Recycling and a second block settle more tokens per forward than a block at a time.",
        ),
        Compare(
            metric="identity_errors",
            subject="jacobi_forcing",
            reference=0.0,
            tasks=["arith"],
            kind="noninferior",
            direction="min",
            note="Every variant of the decoder writes what the same weights write token by token.",
        ),
    ],
    departures=[
        "blocks of 8 characters and a window of 4 instead of 32 and 16 tokens, as responses have 20 to 60 characters",
        "prompts are not learned by default: the target was never trained to write any, and their loss drowns the rest",
        "the random guesses are an iterate, too: the released code overwrites them with the fixed point",
        "places after the end of the text are no targets: the released code compares padding there",
        "a block is over when its last token is known, so that the next one is guessed a forward earlier",
        "promoted blocks are verified on the forward that settled the block before them, which has read them already",
        "the pool holds rejected guesses alone; the released code puts the text so far beside them",
        "a second block begins with random guesses; the released code begins it with those of the block before it",
    ],
)


class JacobiForcingParams(Params):
    """Trajectories, noise, losses, and the window of the decoder."""

    block: int = Field(8, ge=2, le=256, description="tokens of a block in the last round (n); the paper: 32")
    rounds: int = Field(2, ge=1, le=4, description="trainings, each with blocks twice as long as the one before")
    trajectories: int = Field(400, ge=1, le=1000000, description="training prompts that are decoded for each round")
    window: int = Field(4, ge=2, le=64, description="blocks over which the noise rises from 0 to 1 (w); the paper: 16")
    schedule: Literal["progressive", "reverse", "random"] = Field(
        "progressive", description="the noise of a window: rising, falling or in any order"
    )
    context: Literal["noisy", "clean"] = Field("noisy", description="earlier blocks that guesses see")
    ar_weight: float = Field(10.0, ge=0, le=1000, description="weight of the next tokens of the clean text")
    prompt_loss: bool = Field(False, description="the next tokens of the prompt count, too, as in the paper")
    share_by_blocks: bool = Field(True, description="the consistency loss is divided by the number of blocks (1 / T)")
    temperature: float = Field(1.0, gt=0, le=100, description="of both distributions of the consistency loss (tau)")
    lr: float = Field(3e-4, gt=0, le=1, description="peak of the learning rate; the paper: 1e-5")
    warmup: float = Field(0.03, ge=0, lt=1, description="share of the steps in which the rate rises")
    batch_size: int = Field(4, ge=1, le=1024, description="packed rows of a step")
    steps_fraction: float = Field(
        0.75, gt=0, le=1, description="share of the task's steps: the target is a large model"
    )
    decode_block: int = Field(0, ge=0, le=256, description="tokens of a block when decoding; 0: as in the last round")
    blocks: int = Field(2, ge=1, le=16, description="blocks that are guessed at a time at most (K)")
    ratio: float = Field(0.85, gt=0, le=1, description="share of a block after which the next one is begun (r)")
    pool: int = Field(4, ge=0, le=64, description="rejected guesses that are kept for recycling; 0: none")


def row_mean(values, row, rows):
    """(B,) mean of values (N,) over those of each row; 0 for rows that have none."""
    sums = values.new_zeros(rows).index_add(0, row, values)
    counts = values.new_zeros(rows).index_add(0, row, torch.ones_like(values))
    return sums / counts.clamp_min(1)


def forcing_losses(model, batch, params):
    """``ar`` and ``consistency`` of packed rows, each a mean over rows; one forward."""
    texts = (batch.next_prompt, batch.next_clean) if params.prompt_loss else (batch.next_clean,)
    row, place, token = (torch.cat(parts) for parts in zip(*texts, strict=True))
    guessed = batch.guesses
    places = [(row, place), (guessed.row, guessed.place), (guessed.row, guessed.other)]
    text, noisy, clean = packed_logits(model, batch, places, params.context)
    ar = row_mean(token_nll(text, token), row, len(batch)).mean()
    soft = row_mean(ce_soft(noisy, clean.detach(), temperature=params.temperature), guessed.row, len(batch))
    consistency = (soft / batch.blocks).mean() if params.share_by_blocks else soft.mean()
    return {"ar": params.ar_weight * ar, "consistency": consistency}


@hookimpl
def train(task, params):
    model = task.teacher(trainable=True)
    left = task.budget.steps(params.steps_fraction)
    rounds = min(params.rounds, left)
    for number in range(rounds):
        block = max(2, params.block // 2 ** (rounds - 1 - number))
        source = collected(task, model if number else None, params.trajectories, block)
        rng = task.rng(f"noise/{number}")
        examples = [example(one, params.window, params.schedule, rng) for one in source.trajectories]
        ends = {"pad": pad_id(task.tokenizer), "end": task.tokenizer.eos_token_id}
        order = task.generator(f"order/{number}")
        steps = left // (rounds - number)
        left -= steps
        task.log(0, **{f"n{block}/iterations": source.iterations})
        task.fit(
            model,
            lambda model, batch: forcing_losses(model, batch, params),
            loader=PackedLoader(examples, params.batch_size, order, device=task.device, **ends),
            steps=steps,
            tag=f"n{block}",
            lr=params.lr,
            schedule="cosine",
            warmup=params.warmup,
            final_lr=0.0,
        )
    size = params.decode_block or params.block
    return JacobiModel(model, Window(size, params.blocks, params.ratio, params.pool))


@hookimpl
def evaluate(task, model):
    return task.score(model) | convergence(task, model)
