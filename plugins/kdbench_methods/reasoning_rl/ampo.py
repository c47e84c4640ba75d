"""AMPO: adaptive multi-guidance policy optimisation, with more than one teacher.

Yuan, Ding, Bin, Shao, Cai, Song, Yang and Shen, 2025. Reinforcement learning from the verifier, with help where there
is no success to learn from:

1. Each of four peers has a verified solution of its own, in its own style (:class:`.blocks.guidance.Guides`).
2. G responses a problem. Only a group *without a right response* is guided.
3. Each available solution is scored by how well the student comprehends it: its mean probability p of the true
   answer's tokens behind the peer's reasoning, ``0.9 p + 0.1 format``.
4. The best k overwrite k wrong responses at random; their reward is at least 1.
5. ``A_i = r_i - mean_j r_j`` over the edited group, not divided by a deviation.
6. The student's own tokens have the clipped loss of PPO with the dual clip at 10; a peer's tokens have

       -A f(pi(y_t)),   f(p) = p / (p + 0.1)

   with no behaviour probability and no clipping. The sum over all tokens is divided by the longest response, a
   constant, and an entropy bonus of 0.001 is added.

``evaluate`` adds pass@2 and pass@16, how often groups were guided early and late, whose solutions were chosen, their
comprehension against the others', and how many styles the right responses to a problem have. On ``hf-math`` the peers
are checkpoints ``peer_1`` to ``peer_4`` that the task names in ``models``, with the student's tokenizer.
"""

import json
from typing import Literal

import numpy as np
import torch

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.losses.divergences import entropy, log_softmax
from kdbench.losses.policy_gradient import aggregate, clipped
from kdbench.tracks.reasoning_rl.blocks.edits import members, random_slots, replace_rows, unsolved
from kdbench.tracks.reasoning_rl.blocks.guidance import Guides, comprehension, shaped, styles_per_problem
from kdbench.tracks.reasoning_rl.blocks.recipes import advantages, fit_on_policy
from kdbench.tracks.reasoning_rl.blocks.scoring import chosen, token_logits
from kdbench.tracks.reasoning_rl.evaluation import pass_at_k
from kdbench.training.state import Values

PAPER = Paper(
    slug="ampo",
    title="More Than One Teacher: Adaptive Multi-Guidance Policy Optimization for Diverse Exploration",
    year=2025,
    authors=[
        "Xiaoyang Yuan",
        "Yujuan Ding",
        "Yi Bin",
        "Wenqi Shao",
        "Jinyu Cai",
        "Jingkuan Song",
        "Yang Yang",
        "Heng Tao Shen",
    ],
    track="reasoning_rl",
    arxiv="2510.02227",
    source="code",
    tasks=["mixed", "hf-math"],
    requires=["samples"],
    tags=["on-policy", "policy-gradient", "multi-teacher", "off-policy", "teacher-samples"],
    claims=[
        Compare(
            metric="pass_8",
            subject="ampo",
            reference="grpo",
            tasks=["mixed"],
            note="Guidance on demand widens what the policy can solve in several attempts.",
        ),
        Compare(
            metric="ood_len",
            subject="ampo",
            reference="grpo",
            tasks=["mixed"],
            note="At equal updates it generalises further: to longer problems,",
        ),
        Compare(metric="ood_family", subject="ampo", reference="grpo", tasks=["mixed"], note="and to another family."),
        Compare(
            metric="replacement_fall",
            subject="ampo",
            reference=0.0,
            tasks=["mixed"],
            note="Fewer groups need guidance in the last quarter of the training than in the first.",
        ),
    ],
    departures=[
        "a peer answers a problem when it is first asked for guidance and not before training",
        "one update a batch in place of two minibatches, as the track's other on-policy methods",
    ],
)


class AmpoParams(Params):
    """Guidance, groups and the loss."""

    guides: Literal["peers", "teacher"] = Field("peers", description="who guides: four peers, or the teacher alone")
    trigger: Literal["unsolved", "always"] = Field("unsolved", description="groups that are guided")
    choice: Literal["comprehension", "random"] = Field("comprehension", description="how solutions are chosen")
    replace: int = Field(2, ge=0, le=64, description="responses of a guided group that are overwritten, at most")
    tries: int = Field(4, ge=1, le=256, description="samples of a guide until one is right")
    guide_temperature: float = Field(0.6, gt=0, le=10, description="at which guides are sampled")
    group: int = Field(8, ge=2, le=256, description="responses a problem")
    temperature: float = Field(1.0, gt=0, le=10, description="at which they are sampled")
    offset: float = Field(0.1, gt=0, le=100, description="of f(p) = p / (p + offset)")
    low: float = Field(0.2, gt=0, lt=1, description="the ratio is clipped at 1 - low")
    high: float = Field(0.2, gt=0, le=10, description="and at 1 + high")
    dual: float = Field(10.0, gt=1, le=1000, description="bound of the ratio where the advantage is negative")
    entropy: float = Field(0.001, ge=0, le=1, description="weight of the entropy bonus")
    divide: Literal["length", "rows"] = Field(
        "length", description="the summed loss is divided by the longest response, or by that and the responses as well"
    )
    minibatches: int = Field(1, ge=1, le=64, description="updates that one batch of responses is used for")


class Tally(Values):
    """What was replaced so far."""

    kept = ("rates", "chosen", "scores")

    def __init__(self, guides):
        self.rates = []
        """Share of the groups of each round that were guided."""
        self.chosen = [0] * guides
        """Solutions of each guide that were used."""
        self.scores = {"chosen": [0.0, 0], "rejected": [0.0, 0]}
        """Sums of comprehension, and how many."""

    def add(self, kind, values):
        total, count = self.scores[kind]
        self.scores[kind] = [total + float(sum(values)), count + len(values)]


class Guidance:
    """Overwrites wrong responses of groups with solutions of the guides: the ``edit`` of rollouts."""

    def __init__(self, task, student, params):
        names = [f"peer_{i}" for i in range(1, 5)] if params.guides == "peers" else ["teacher_rl"]
        guides = [task.checkpoint(name) for name in names]
        self.task, self.student, self.params = task, student, params
        self.guides = Guides(task, guides, tries=params.tries, temperature=params.guide_temperature)
        self.tally, self.slots, self.luck = Tally(len(names)), task.generator("slots"), task.generator("luck")

    def ranked(self, problem, found):
        """Guides of one problem, best first, and their comprehension in the same order."""
        names = list(found)
        values = comprehension(self.task, self.student, [problem] * len(names), [found[name] for name in names])
        by_luck = torch.randperm(len(names), generator=self.luck)
        order = (values.argsort(descending=True) if self.params.choice == "comprehension" else by_luck).tolist()
        return [names[i] for i in order], [float(values[i]) for i in order]

    def __call__(self, rollouts):
        groups = members(rollouts)
        asked = groups if self.params.trigger == "always" else unsolved(rollouts)
        asked = asked if self.params.replace else []
        problems, correct = [rollouts.problems[int(rows[0])] for rows in asked], rollouts.correct
        places, responses, origin, guided = [], [], [], 0
        for rows, problem, found in zip(asked, problems, self.guides.of(problems), strict=True):
            wrong = rows[~correct[rows]]
            if not found or not len(wrong):
                continue
            names, values = self.ranked(problem, found)
            taken = random_slots(wrong, min(self.params.replace, len(names)), self.slots)
            places, guided = places + taken, guided + 1
            responses += [found[name] for name in names[: len(taken)]]
            origin += names[: len(taken)]
            self.tally.add("chosen", values[: len(taken)])
            self.tally.add("rejected", values[len(taken) :])
        for name in origin:
            self.tally.chosen[name] += 1
        self.tally.rates.append(guided / len(groups))
        self.task.note(replaced=guided / len(groups), own_reward=rollouts.reward.mean())
        edited = replace_rows(self.task, self.student, rollouts, places, responses, origin=origin)
        edited.reward = torch.where(edited.origin >= 0, edited.reward.clamp_min(1.0), edited.reward)
        return edited


def terms(logits, rollouts, params, length):
    """The loss of rollouts, of which some are a guide's, and the entropy bonus."""
    logp, gain = chosen(logits, rollouts.targets, rollouts.temperature), advantages(rollouts, "none")
    clip = {"low": params.low, "high": params.high, "dual": params.dual}
    values = torch.where(
        rollouts.from_policy, clipped(logp, rollouts.old_logp, gain, **clip), -gain * shaped(logp, params.offset)
    )
    rows = 1 if params.divide == "length" else len(rollouts)
    parts = {"policy": aggregate(values, rollouts.sequence, "const", rows=rows, length=length)}
    if params.entropy:
        parts["entropy"] = -params.entropy * entropy(log_softmax(logits)).mean()
    return parts


@hookimpl
def train(task, params):
    student = task.student()
    guidance = Guidance(task, student, params)

    def loss(model, rollouts):
        return terms(token_logits(model, rollouts.batch), rollouts, params, task.max_new)

    fit_on_policy(
        task,
        student,
        loss,
        edit=guidance,
        state=[guidance.guides, guidance.tally],
        group=params.group,
        temperature=params.temperature,
        minibatches=params.minibatches,
    )
    task.artifact("guidance.json").write_text(json.dumps(guidance.tally.state_dict(), indent=1) + "\n")
    return student


def history(tally):
    """Rates of replacement, choice of guides, and comprehension, of what training has left."""
    quarter = max(1, len(tally["rates"]) // 4)
    early, late = np.mean(tally["rates"][:quarter]), np.mean(tally["rates"][-quarter:])
    found = {"replaced_early": early, "replaced_late": late, "replacement_fall": early - late}
    used = sum(tally["chosen"])
    found |= {f"guide_{i}": count / used for i, count in enumerate(tally["chosen"], 1) if used}
    found |= {f"comprehension/{kind}": total / count for kind, (total, count) in tally["scores"].items() if count}
    return {name: float(value) for name, value in found.items()}


@hookimpl
def evaluate(task, model):
    problems, wanted = task.problems("test"), task.spec.evaluation
    made = task.rollouts(
        model,
        problems,
        group=wanted.samples,
        temperature=wanted.temperature,
        generator=task.generator("eval"),  # the same responses as those of the official metrics
    )
    correct = made.correct.view(len(problems), wanted.samples).numpy()
    found = {f"pass_{k}": float(pass_at_k(correct, k).mean()) for k in (2, 16) if k <= wanted.samples}
    if task.spec.data.kind == "minireason":  # texts of other data have no styles that are known
        found["styles"] = styles_per_problem(made, task.decode(made.responses))
    return task.score(model) | found | history(json.loads(task.artifact("guidance.json").read_text()))
