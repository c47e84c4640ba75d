"""MoDE: a diffusion transformer policy whose experts are chosen by the noise level alone.

Reuss et al., ICLR 2025. A causal transformer reads a noise token, a goal token, the tokens of a picture and a noisy
chunk of actions, and is preconditioned as by Karras et al. With c the embedding of the noise, a block is

    x = x + Attn(RMSNorm(x) + c),   h = RMSNorm(x),   x = h + sum_{e chosen} p_e MLP_e(h),   p = softmax(router(c)).

* *routing*: the router reads c and nothing else; training draws k of E experts without replacement from p, evaluation
  takes the k most probable; the chosen p are made to sum to 1;
* *balance*: ``balance`` E sum_e mean(p_e) fraction_e is added to the loss; it is k where experts are used alike;
* *loss*: (s^2 + d^2) / (s d)^2 |D(x_0 + s e, s) - x_0|^2, s log-logistic around d = 0.5, the goal dropped with
  probability 0.1;
* *sampling*: DDIM over an exponential schedule from 80 to 0.001;
* *expert caching*: at every index of the schedule the experts are known before acting, so that each block has one
  fused perceptron there, sum_e p_e MLP_e in one, and no router.

``evaluate`` adds FLOPs for a chunk with and without caching, how far their actions are apart, active and total
parameters, and how experts are used. Dense transformers are this method with one expert: ``expansion`` 4 has the active
parameters of the default, 8 its total ones.
"""

from typing import Literal

import torch

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.tracks.policy.blocks.cloning import shape_of
from kdbench.tracks.policy.blocks.edm import Scaling
from kdbench.tracks.policy.blocks.routing import caching, usage
from kdbench.tracks.policy.networks.moe import balance
from kdbench.tracks.policy.policies.experts import ScoreChunks

PAPER = Paper(
    slug="mode_policy",
    title="Efficient Diffusion Transformer Policies with Mixture of Expert Denoisers for Multitask Learning",
    year=2025,
    authors=["Moritz Reuss", "Jyothish Pari", "Pulkit Agrawal", "Rudolf Lioutikov"],
    venue="ICLR",
    track="policy",
    arxiv="2412.12953",
    source="code",
    tasks=["desk"],
    requires=["labels"],
    tags=["imitation", "diffusion", "mixture-of-experts"],
    claims=[
        Compare(
            metric="cache_error",
            subject="mode_policy",
            reference=0.0,
            tasks=["desk"],
            kind="noninferior",
            margin=1e-4,
            direction="min",
            note="With cached experts the actions are the same, to the tolerance of float32.",
        ),
        Compare(
            metric="cache_flops_share",
            subject="mode_policy",
            reference=1.0,
            tasks=["desk"],
            direction="min",
            note="Cached experts cost fewer FLOPs for a chunk.",
        ),
        Compare(
            metric="success",
            subject="mode_policy",
            reference={"method": "mode_policy", "params": {"experts": 1, "top_k": 1, "expansion": 4}},
            tasks=["desk"],
            kind="noninferior",
            margin=0.05,
            note="It does at least as well as a dense transformer with as many active parameters, within five points.",
        ),
    ],
    departures=[
        "convolutions and a spatial softmax instead of a pretrained tower, word embeddings instead of CLIP",
        "perceptrons with GELU instead of SwiGLU",
        "the cache is found by the index of the level; the released code uses the mean of the embedding as its key",
        "width 96, 3 blocks and 5000 steps of 32 chunks, so that a job takes some minutes",
    ],
)


class ModeParams(Params):
    """Experts, their router, and the sampler."""

    experts: int = Field(4, ge=1, le=64, description="experts of a block (E); 1: a dense transformer")
    top_k: int = Field(2, ge=1, le=64, description="experts that a level uses (k), at most E")
    expansion: int = Field(2, ge=1, le=64, description="width of an expert, in widths of the model")
    router: Literal["noise", "token"] = Field("noise", description="what the router reads: the noise, or each token")
    balance: float = Field(0.01, ge=0, le=10, description="weight of the balance loss; 0 in fine-tuning")
    goal_dropout: float = Field(0.1, ge=0, lt=1, description="share of rows trained without their sentence")
    steps: int = Field(10, ge=1, le=1000, description="evaluations for a chunk (DDIM)")
    ema: float = Field(0.99, gt=0, lt=1, description="decay of the averaged weights")


@hookimpl
def train(task, params):
    build = {
        "experts": params.experts,
        "k": min(params.top_k, params.experts),
        "expansion": params.expansion,
        "route": params.router,
        "goal_dropout": params.goal_dropout,
    }
    with task.seeded("init"):
        network = task.place(task.kind.transformer(**build))
    scaling, generator = Scaling(), task.generator("noise")

    def loss(model, batch):
        sigma = scaling.training_levels(len(batch), generator)
        noise = torch.randn(batch.actions.shape, generator=generator)
        device = batch.actions.device
        routings = []
        levels, noise = sigma.to(device), noise.to(device)
        errors = scaling.loss(model, batch.actions, levels, noise, batch.obs, routings=routings)
        return {"denoising": errors.mean(), "balance": params.balance * balance(routings)}

    fitted = task.fit(network, loss, ema=params.ema)
    return ScoreChunks(fitted.ema, steps=params.steps, build=build, **shape_of(task))


@hookimpl
def evaluate(task, model):
    return task.score(model) | caching(task, model) | usage(model)
