"""FreeFlow: flow map distillation without data.

Tong et al., CVPR 2026. Flow maps are distilled at noised data, which need not be where the teacher goes: a teacher that
was tuned further, or is guided, leaves them. The prior is where both begin, and enough. With f(z, d) = z + d F(z, d),
d in [0, 1] the time travelled from noise z, and u the teacher's velocity towards the data:

* *prediction*: F + d dF/dd = u(f(z, d), 1 - d), with a derivative in d alone. The loss is |F - stopgrad(u - d dF/dd)|^2
  with weight 1 / (|D|^2 + e)^k, D = df/dd - u (means over values);
* *correction*: f(z, 1) accumulates errors. A network g learns, by flow matching, the velocity v of noised student
  samples I_r, and F(z, 1) is moved along u - v there: its gradient is stopgrad(v - u)(I_r, r), scaled to the size of
  the prediction's. r is logit-normal with more noise than data;
* three quarters of a batch are for prediction, one for correction; g is updated before each update of F. Guidance is
  inside u.

``evaluate`` adds ``residual``, the size of D over d (``residuals.json`` has it by d), and ``endpoint_error`` and
``teacher_sw2``, distances of samples to the teacher's, which is guided as in training. Teachers of ImageNet in a latent
space, and the search over noise at inference that the paper adds, are not here.
"""

import json

import torch

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.tracks.diffusion.blocks.critic import Critic
from kdbench.tracks.diffusion.blocks.flowmap import (
    along,
    correction_loss,
    decay,
    line_velocity,
    logit_normal,
    map_residual,
    on_line,
    prediction_loss,
    rms,
)
from kdbench.tracks.diffusion.blocks.levels import noise_like
from kdbench.tracks.diffusion.blocks.notes import Notes
from kdbench.tracks.diffusion.blocks.turns import alternate
from kdbench.tracks.diffusion.evaluate.agreement import agreement
from kdbench.tracks.diffusion.networks.maps import FlowMap, FromNoise
from kdbench.tracks.diffusion.processes import spread
from kdbench.tracks.diffusion.samplers.maps import NoiseMap

PAPER = Paper(
    slug="flow_map_data_free",
    title="Flow Map Distillation Without Data",
    year=2026,
    authors=["Shangyuan Tong", "Nanye Ma", "Saining Xie", "Tommi Jaakkola"],
    venue="CVPR",
    track="diffusion",
    arxiv="2511.19428",
    source="paper",
    tasks=["points", "digits", "attributes"],
    requires=["weights"],
    tags=["trajectory", "flow-map", "one-step", "data-free"],
    claims=[
        Compare(
            metric="teacher_sw2",
            subject="flow_map_data_free",
            reference={"method": "meanflow", "params": {"mismatch": 0.3}},
            tasks=["ring-flow", "digits-dit"],
            direction="min",
            note="It is nearer to the teacher than a map that is learned on data the teacher was not trained on.",
        ),
        Compare(
            metric="teacher_sw2",
            subject={"method": "flow_map_data_free", "params": {"guidance": 3.0}},
            reference={"method": "meanflow", "params": {"guidance": 3.0}},
            tasks=["ring-flow", "digits-dit"],
            direction="min",
            note="Strong guidance leads the teacher away from the data, where the map of noised data is not learned.",
        ),
        Compare(
            metric="teacher_sw2",
            subject="flow_map_data_free",
            reference={"method": "flow_map_data_free", "params": {"prediction": 1.0}},
            tasks=["ring-flow", "digits-dit"],
            direction="min",
            note="Prediction alone accumulates errors.",
        ),
        Compare(
            metric="recall",
            subject="flow_map_data_free",
            reference={"method": "flow_map_data_free", "params": {"prediction": 0.0}},
            tasks=["digits-dit"],
            note="Correction alone loses modes.",
        ),
        Compare(
            metric="teacher_sw2",
            subject="flow_map_data_free",
            reference="boot",
            tasks=["ring-flow", "digits-dit"],
            direction="min",
            note="It is nearer to the teacher than the other method that reads noise alone.",
        ),
    ],
    departures=[
        "the network of the correction has the teacher's architecture and weights at first: the paper's is its own",
        "the correction is scaled to the weighted gradient of the prediction: without the weight both are the same",
        "d is uniform, and the constants of scale and weight are ours",
        "teachers that are no flows are seen as one, through a scaling; below their least noise u is that at the least",
    ],
)


class FlowMapDataFreeParams(Params):
    """Prediction, correction, training."""

    prediction: float = Field(0.75, ge=0, le=1, description="share of a batch for prediction; the rest is correction")
    power: float = Field(1.0, ge=0, le=4, description="exponent of the weight of the prediction (k); 0: none")
    floor: float = Field(1e-2, gt=0, le=10, description="added to the weight's denominator (e)")
    correction: float = Field(
        0.5, ge=0, le=100, description="size of the correction's gradient to the prediction's (a)"
    )
    bias: float = Field(0.8, ge=-5, le=5, description="mean of the logit of r; above 0: noise")
    guidance: float = Field(0.0, ge=0, le=50, description="scale of the teacher's guidance; 0: the task's")
    ratio: int = Field(1, ge=1, le=100, description="updates of the correction's network for each of the map")
    lr: float = Field(5e-4, gt=0, le=1, description="learning rate of the map; it falls along a cosine")
    critic_lr: float = Field(5e-4, gt=0, le=1, description="learning rate of the correction's network")
    clip: float = Field(1.0, ge=0, le=1000, description="largest norm of either gradient; 0: any")
    ema: float = Field(0.99, gt=0, lt=1, description="decay of the averaged map")


class FreeFlow:
    """Losses of the map and of the network that corrects it; see the module."""

    def __init__(self, task, network, critic, params, notes):
        self.network, self.critic, self.params, self.notes = network, critic, params, notes
        self.teacher, self.guidance = task.teacher(), params.guidance or task.guidance
        self.critic_rng, self.rng = task.generator("critic"), task.generator("map")

    def noised(self, x, rng):
        """I_r of samples: states, their times, the noise."""
        r = logit_normal(len(x), self.params.bias, 1.0, rng).to(x)
        noise = noise_like(x, rng)
        return on_line(x.detach(), noise, r), r, noise

    def critic_loss(self, draw, real):
        with torch.no_grad():
            x = draw.noise + self.network(draw.noise, torch.ones_like(draw.noise.flatten(1)[:, 0]), draw.cond)
        state, r, noise = self.noised(x, self.critic_rng)
        found = line_velocity(self.critic.network, state, r, draw.cond)
        return {"velocity": (found - (noise - x)).pow(2).mean()}

    def predicted(self, model, z, cond):
        """Loss of the prediction, and the size of its gradient."""
        d = torch.rand(len(z), generator=self.rng).to(z)
        residual, value = residual_at(model, self.teacher, z, d, cond, self.guidance)
        params = self.params
        weighted = spread(decay(residual, params.power, params.floor), residual) * residual
        self.notes.add(residual=rms(residual))
        return prediction_loss(value, residual, params.power, params.floor), rms(weighted)

    def map_loss(self, model, draw, real=None):
        count = round(self.params.prediction * len(draw))
        losses, size = {}, torch.ones(())
        if count:
            losses["prediction"], size = self.predicted(model, draw.noise[:count], draw.cond[slice(0, count)])
        if count < len(draw):
            z, cond = draw.noise[count:], draw.cond[slice(count, len(draw))]
            value = model(z, torch.ones_like(z.flatten(1)[:, 0]), cond)
            state, r, _ = self.noised(z + value, self.rng)
            with torch.no_grad():
                own = -line_velocity(self.critic.network, state, r, cond)
                wanted = -line_velocity(self.teacher, state, r, cond, self.guidance)
            losses["correction"] = correction_loss(value, own, wanted, self.params.correction * size.to(z))
        return losses


def residual_at(model, teacher, z, d, cond, guidance):
    """D (B, *shape) of a map at noise ``z`` and durations ``d``, and F with its graph."""
    value, slope = along(lambda d: model(z, d, cond), (d,), (torch.ones_like(d),))
    with torch.no_grad():
        u = -line_velocity(teacher, z + spread(d, z) * value, 1 - d, cond, guidance)
    return map_residual(value, slope, u, d).detach(), value


@hookimpl
def train(task, params):
    network, notes, clip = FlowMap(FromNoise(task.student())), Notes(), params.clip or None
    recipe = {"lr": params.lr, "schedule": "cosine", "clip": clip, "ema": params.ema}
    if params.prediction == 1 or not params.correction:
        losses = FreeFlow(task, network, None, params.model_copy(update={"prediction": 1.0}), notes)
        result = task.fit(network, losses.map_loss, loader=task.draws(), state=[notes], **recipe)
        return NoiseMap(result.ema.signal)
    critic = Critic(task.score_network(), lr=params.critic_lr, clip=clip)
    losses = FreeFlow(task, network, critic, params, notes)
    result = alternate(
        task, network, critic, losses.critic_loss, losses.map_loss, ratio=params.ratio, notes=notes, **recipe
    )
    return NoiseMap(result.ema.signal)


@hookimpl
def evaluate(task, model, params):
    guidance = params.guidance or task.guidance
    noise, cond = task.kind.evaluation(min(200, task.spec.evaluation.samples), "test")
    noise, cond, flow_map = noise.to(task.device), cond.to(task.device), FlowMap(model.network).eval()
    table = {}
    for place in range(11):
        d = torch.full((len(noise),), place / 10, device=task.device)
        residual, _ = residual_at(flow_map, task.teacher(), noise, d, cond, guidance)
        table[f"{place / 10:.1f}"] = float(rms(residual))
    task.artifact("residuals.json").write_text(json.dumps(table, indent=1) + "\n")
    extra = {"residual": sum(table.values()) / len(table)}
    return task.score(model) | extra | agreement(task, model, guidance)
