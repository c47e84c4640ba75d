"""SeqPE: Transformer with Sequential Position Encoding.

Li et al., 2025. A position is not a row of a table but a string of digits that a small network reads.

* *Encoder.* Each coordinate of a position is a group of digits, padded on the left (masked). Embeddings of digit, place
  and coordinate go through a tiny causal transformer; a last token gives the vector e.
* *Use.* Per-head maps give e_q and e_k, and attention is softmax((q . k + e_q . e_k) / sqrt(d)) (``attn_scalar``);
  other uses multiply or add e_q, e_k to queries and keys, or add e to the inputs.
* *Contrastive loss.* Of N candidates, the one nearest to a pivot position must have the largest dot product with it.
  Candidates come from a window, or from everywhere with edits of the pivot's digits among them.
* *Transfer loss.* With A, B = log softmax(E E^T) of n places of the training window (teacher, detached) and of the same
  places of a window beyond it: KL(A||B) + KL(B||A). Dot products beyond training become those of training.
* *Random shift.* With a small probability the language model itself sees a shifted window.

Both losses are per head, and their weights rise linearly. The network is the method's own: blocks of the kind of GPT-2
in the sizes of the task's student. ``encoding`` chooses what else gives it positions: a learned table (stretched
linearly beyond training), sinusoids, RoPE, ALiBi, or nothing.

An image classifier with the same encoding in two dimensions is trained beside it on a grid of 4 x 4 patches.
``evaluate`` adds its accuracy at that and at larger grids, how often the nearest candidate is found, the transfer loss,
collisions of the digit code, and a table of similarities by distance. Perplexity and pass keys by length are official
metrics of ``text-lengths``. ImageNet, WikiText-103 at 100k steps and long question answering are out of reach here.
"""

import json
from typing import Literal

import torch
from safetensors.torch import load_file, save_file

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.errors import UsageError
from kdbench.losses.tokens import tok_mean
from kdbench.tracks.llm.networks.models import targets_of, token_nll
from kdbench.tracks.llm.networks.positional import PositionalConfig, PositionalLM
from kdbench.tracks.llm.networks.tokenizers import pad_id, start_id
from kdbench.tracks.llm.spec import Net
from kdbench.training.patches import PatchClassifier, accuracy_by_grid, fit_classifier
from kdbench.training.position_losses import (
    PositionLosses,
    PositionOptions,
    collisions,
    nearness_accuracy,
    similarity_by_distance,
)

PAPER = Paper(
    slug="seqpe",
    title="SeqPE: Transformer with Sequential Position Encoding",
    year=2025,
    authors=[
        "Huayang Li",
        "Yahui Liu",
        "Hongyu Sun",
        "Deng Cai",
        "Leyang Cui",
        "Wei Bi",
        "Peilin Zhao",
        "Taro Watanabe",
    ],
    track="llm",
    arxiv="2506.13277",
    source="code",
    tasks=["lengths"],
    tags=["position-encoding", "self-distillation", "length-extrapolation"],
    claims=[
        Compare(
            metric="perplexity/256",
            subject="seqpe",
            reference={"method": "seqpe", "params": {"encoding": "learned"}},
            tasks=["lengths"],
            note="At four times the training length it has a lower perplexity than a learned table.",
        ),
        Compare(
            metric="perplexity/256",
            subject="seqpe",
            reference={"method": "seqpe", "params": {"transfer": 0.0}},
            tasks=["lengths"],
            note="The transfer loss is what extrapolates.",
        ),
        Compare(
            metric="transfer_loss",
            subject={"method": "seqpe", "params": {"encoding": "sinusoidal"}},
            reference=0.0,
            tasks=["lengths"],
            margin=1e-5,
            kind="noninferior",
            direction="min",
            note="The transfer loss is 0 for vectors whose dot products depend on distance alone.",
        ),
        Compare(
            metric="collisions",
            subject="seqpe",
            reference=0.0,
            tasks=["lengths"],
            kind="noninferior",
            direction="min",
            note="No two positions have the same digits.",
        ),
    ],
    departures=[
        "the encoder has no dropout, as no network of the track has; the authors train it with 0.1 on residuals",
        "padding is masked; the released script lets digits attend to it",
        "windows of the transfer loss lie beyond training; in the released code they begin at a quarter of its length",
        "the contrastive loss is per head too; the released language-model code asks all heads at once",
        "the teacher side of the transfer loss is computed at every step, also where the main task is shifted",
        "hard negatives of several dimensions edit one coordinate at a time, not the joined string",
    ],
)


class SeqPeParams(Params):
    """The encoding, its network, the two losses, and the language model that uses it."""

    encoding: Literal["seqpe", "learned", "sinusoidal", "rope", "alibi", "none"] = Field(
        "seqpe", description="what gives the network positions; all but seqpe are comparisons without further losses"
    )
    use: Literal["attn_scalar", "attn_mul", "attn_add", "input_add"] = Field(
        "attn_scalar", description="what becomes of the position vectors"
    )
    maps: Literal["shared", "per_layer", "none"] = Field(
        "shared", description="maps to the vectors of queries and keys: one for all layers, one each, or none"
    )
    max_position: int = Field(2048, ge=64, le=1_000_000, description="positions are below it (20000 in the paper)")
    code: int = Field(32, ge=4, le=4096, description="width of the position network (768 in the paper)")
    code_layers: int = Field(2, ge=1, le=24, description="blocks of the position network")
    base: int = Field(10, ge=2, le=36, description="base of the digits")
    mask_padding: bool = Field(True, description="digits do not attend to padding")
    scalar_scale: float = Field(1.0, ge=0, le=100, description="factor of the products of position vectors")
    beyond: Literal["interpolate", "extend"] = Field(
        "interpolate", description="a learned table beyond training: stretched, or with its untrained rows"
    )
    contrast: float = Field(0.1, ge=0, le=10, description="weight of the contrastive loss")
    transfer: float = Field(0.1, ge=0, le=10, description="weight of the transfer loss")
    warmup: float = Field(0.1, ge=0, le=1, description="share of the steps over which both weights rise")
    per_head: bool = Field(True, description="the losses ask each head alone")
    pivots: int = Field(4, ge=1, le=4096, description="pivots of a step")
    candidates: int = Field(32, ge=2, le=512, description="candidates of a pivot")
    window: int = Field(256, ge=1, le=100_000, description="neighbouring positions that a window of candidates has")
    window_rate: float = Field(0.6, ge=0, le=1, description="probability that candidates come from a window")
    hard: float = Field(0.25, ge=0, le=1, description="share of edited pivots among the other candidates")
    windows: int = Field(4, ge=1, le=4096, description="windows of the transfer loss in a step")
    offsets: int = Field(32, ge=2, le=4096, description="places that are sampled in each window")
    outside: float = Field(1.0, gt=0, le=1000, description="least shift of a window in training lengths (code: 0.25)")
    metric: Literal["kl", "mse"] = Field("kl", description="difference of the two similarity matrices")
    loss_scale: float = Field(1.0, gt=0, le=1000, description="factor of the similarities in the transfer loss")
    shift_rate: float = Field(0.1, ge=0, le=1, description="probability that a step sees shifted positions")
    layers: int = Field(0, ge=0, le=100, description="blocks of the language model; 0: as the task's student")
    width: int = Field(0, ge=0, le=16384, description="of the language model; 0: as the task's student")
    heads: int = Field(0, ge=0, le=256, description="of the language model; 0: as the task's student")
    images: float = Field(0.25, ge=0, le=100, description="steps of the image classifier per step; 0: none")


def options_of(params):
    """Sampling and weights of the position losses."""
    names = set(PositionOptions.__dataclass_fields__) - {"scale"}
    return PositionOptions(scale=params.loss_scale, **{name: getattr(params, name) for name in names})


def encoding_options(params):
    """Arguments of :class:`PositionEncoding` beside its kind and sizes."""
    names = ("use", "maps", "code", "code_layers", "base", "mask_padding", "beyond")
    return {"scale": params.scalar_scale, **{name: getattr(params, name) for name in names}}


def network(task, params):
    """The untrained language model; raises ``UsageError`` where its sizes are not given or are too few positions."""
    net = task.spec.student
    if not isinstance(net, Net):
        if not (params.layers and params.width and params.heads):
            raise UsageError(
                "the student of this task is pretrained, but SeqPE trains a network of its own",
                hint="give layers, width and heads, such as 12, 768 and 12 for that of GPT-2",
            )
        net = Net(layers=params.layers, width=params.width, heads=params.heads)
    width, tokenizer, trained = params.width or net.width, task.tokenizer, task.split("train").sequences.ids.shape[1]
    if params.max_position < (longest := max(trained, *getattr(task.spec.data, "lengths", (0,)))):
        raise UsageError(f"max_position {params.max_position} is less than the {longest} tokens of rows of this task")
    with task.seeded("init"):
        return PositionalLM(
            PositionalConfig(
                vocab_size=task.teacher_vocabulary,
                hidden_size=width,
                num_hidden_layers=params.layers or net.layers,
                num_attention_heads=params.heads or net.heads,
                intermediate_size=4 * width,
                tie_word_embeddings=net.tied,
                train_length=trained,
                max_position_embeddings=params.max_position,
                encoding=params.encoding,
                encoding_options=encoding_options(params),
                pad_token_id=pad_id(tokenizer),
                bos_token_id=start_id(tokenizer),
                eos_token_id=tokenizer.eos_token_id,
            )
        ).to(task.device)


def position_losses(task, encoding, params, steps, purpose):
    """The losses of an encoding that is trained, or None for the comparisons."""
    if params.encoding != "seqpe":
        return None
    return PositionLosses(encoding, options_of(params), task.rng(purpose), round(params.warmup * steps))


@hookimpl
def train(task, params):
    model = network(task, params)
    steps = task.budget.steps()
    extra = position_losses(task, model.positions, params, steps, "positions")

    def loss(model, batch):
        length = batch.input_ids.shape[1]
        places = None if extra is None else torch.arange(length, device=task.device)[None] + int(extra.shift()[0])
        nll = token_nll(model.scored_logits(batch, places), targets_of(batch))
        return {"lm": tok_mean(nll)} | (extra() if extra is not None else {})

    task.fit(model, loss, state=[] if extra is None else [extra])
    if params.images:
        train_images(task, params, max(1, round(params.images * steps)))
    return model


def train_images(task, params, steps):
    """An image classifier with the same encoding in two dimensions, left for ``evaluate``; charged as aux_steps."""
    with task.seeded("images"):
        classifier = PatchClassifier(kind=params.encoding, **encoding_options(params)).to(task.device)
    extra = position_losses(task, classifier.positions, params, steps, "image_positions")
    fit_classifier(task, classifier, extra, steps)
    weights = {name: value.cpu().contiguous() for name, value in classifier.state_dict().items()}
    save_file(weights, task.artifact("images.safetensors"))


@hookimpl
def evaluate(task, model, params):
    metrics, encoding = task.score(model), model.positions
    if params.images:
        classifier = PatchClassifier(kind=params.encoding, **encoding_options(params))
        classifier.load_state_dict(load_file(task.artifact("images.safetensors")))
        metrics |= accuracy_by_grid(classifier.to(task.device))
    if params.encoding in ("seqpe", "sinusoidal"):
        table, transfer = similarity_by_distance(encoding, options_of(params), task.rng("similarity"))
        task.artifact("similarity.json").write_text(json.dumps(table) + "\n")
        metrics["transfer_loss"] = transfer
    if params.encoding == "seqpe":
        metrics |= nearness_accuracy(encoding, options_of(params), task.rng("nearness"))
        metrics["collisions"] = collisions(encoding)
    return metrics
