"""What a task of the track ``policy`` is: a world, what may be learned from, a student. Free of torch."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from kdbench.errors import Problem
from kdbench.spec import Metric, SpecModel, TaskSpec, digest

FORMAT = 1
"""Bumped by hand when worlds or experts change, so that demonstrations are made anew."""

GAP = 1
"""Bumped by hand when what a plain student learns changes otherwise than by its specification."""
INSTALLED_BY = {"gymnasium": "'kdbench[policy]'", "gym_pusht": "gym-pusht"}
"""What to ask pip for, by module."""
Robot = Literal["holonomic", "differential", "bicycle", "legged"]
Share = Annotated[float, Field(ge=0, le=1)]


# --- worlds -----------------------------------------------------------------------------------------------------------


class NavWorld(SpecModel):
    """A disc robot among discs in an arena of 10 x 10 m, with a range scan."""

    kind: Literal["nav"] = "nav"
    robots: tuple[Robot, ...] = Field(("holonomic",), min_length=1)
    discs: tuple[int, int] = (6, 12)
    """Least and most discs, the central one included."""
    span: tuple[float, float] = (3.2, 4.0)
    """Least and most metres from the middle of the arena to the start, and to the goal."""
    side: Literal["random", "shortest"] = "random"
    """On which side of the central disc the expert goes: as the episode's seed says, or where the way is shorter."""
    steps: int = Field(120, ge=10)
    """Time limit, in steps of 0.1 s."""

    @model_validator(mode="after")
    def _ranges(self) -> NavWorld:
        if not 1 <= self.discs[0] <= self.discs[1]:
            raise ValueError(f"discs are at least 1, the least number first, not {self.discs}")
        if not 1.7 <= self.span[0] <= self.span[1] <= 4.2:
            raise ValueError(f"span lies between 1.7 and 4.2 m, the least first, not {self.span}")
        return self


class DeskWorld(SpecModel):
    """A table with three blocks, a slider and a switch, seen from above; 12 tasks, each said in three sentences."""

    kind: Literal["desk"] = "desk"
    steps: int = Field(30, ge=5)
    """Time limit."""
    size: int = Field(48, ge=16)
    """Pixels of a side of the picture."""


class Bandits(SpecModel):
    """Bernoulli bandits."""

    kind: Literal["bandits"] = "bandits"
    arms: tuple[tuple[Share, ...], ...] = ((0.4, 0.6), (0.3, 0.7, 0.5), (0.45, 0.55))
    """Chances of reward, a bandit each."""
    behaviour: tuple[tuple[Share, ...], ...] = ((0.9, 0.1), (0.8, 0.1, 0.1), (0.85, 0.15))
    """Probabilities of the arms in the logged data."""

    @model_validator(mode="after")
    def _behaviour(self) -> Bandits:
        if [len(row) for row in self.arms] != [len(row) for row in self.behaviour]:
            raise ValueError("every bandit needs as many probabilities in behaviour as it has arms")
        if any(abs(sum(row) - 1) > 1e-9 for row in self.behaviour):
            raise ValueError("the probabilities in behaviour of each bandit sum to 1")
        return self


class Lake(SpecModel):
    """FrozenLake, from its rules."""

    kind: Literal["lake"] = "lake"
    size: Literal[4, 8] = 4
    hold: float = Field(1 / 3, gt=0, le=1)
    """Probability that a move goes where it is aimed."""
    steps: int = Field(60, ge=1)
    behaviour: float = Field(0.5, ge=0, le=1)
    """Share of random actions in the logged data; the others are optimal."""


class RandomMdps(SpecModel):
    """Random processes to explore, each with a safe baseline."""

    kind: Literal["mdps"] = "mdps"
    count: int = Field(10, ge=1)
    states: int = Field(8, ge=2)
    actions: int = Field(4, ge=2)
    horizon: int = Field(10, ge=1)
    alpha: float = Field(0.3, gt=0)
    """Concentration of the Dirichlet that transitions are drawn from."""
    first_seed: int = 0
    safe: float = Field(0.8, gt=0, lt=1)
    """Value of the safe baseline, as a share of the optimum."""
    slack: float = Field(0.1, ge=0, lt=1)
    """An episode must earn 1 - slack of the baseline's value, in expectation (alpha of the constraint)."""


class GymWorld(SpecModel):
    """An environment of gymnasium."""

    kind: Literal["gym"] = "gym"
    id: str = "Pendulum-v1"
    module: str | None = None
    """Package that registers it, such as ``gym_pusht``; imported first."""
    steps: int = Field(200, ge=1)
    """Time limit."""
    obs_type: str | None = None
    """What the environment is asked to show, where it has a choice."""
    parts: tuple[str, ...] = ()
    """Keys of what is observed, where that is a dictionary, in the order in which a vector is made of them."""


World = Annotated[NavWorld | DeskWorld | Bandits | Lake | RandomMdps | GymWorld, Field(discriminator="kind")]


# --- what may be learned from -----------------------------------------------------------------------------------------


class Demonstrations(SpecModel):
    """Episodes of the scripted expert; those that fail are left out."""

    kind: Literal["demos"] = "demos"
    episodes: int = Field(300, ge=1)
    """Of each robot or task, for training."""
    path: str | None = None
    """A folder or a hub name of demonstrations in parquet files, in the layout of LeRobot; null: of the expert."""
    columns: tuple[str, ...] = ("observation.state",)
    """Of such files: what an observation is made of, in order."""


class Logged(SpecModel):
    """Episodes of a behaviour policy, and nothing else: no interaction."""

    kind: Literal["logged"] = "logged"
    episodes: int = Field(1000, ge=1)


class Online(SpecModel):
    """Nothing but what is found by acting."""

    kind: Literal["online"] = "online"


Data = Annotated[Demonstrations | Logged | Online, Field(discriminator="kind")]


# --- students ---------------------------------------------------------------------------------------------------------


class UNetPolicy(SpecModel):
    """A temporal U-Net over chunks of actions, conditioned on observations."""

    kind: Literal["unet"] = "unet"
    channels: tuple[int, ...] = Field((32, 64, 128), min_length=1)
    embedding: int = Field(128, ge=4)
    """Width of the embeddings of the noise level and of the observations."""
    horizon: int = Field(18, ge=2)
    """Actions of a chunk (T_p); the first belongs to the oldest observation."""
    observed: int = Field(2, ge=1)
    """Observations that a chunk is conditioned on (T_o)."""
    executed: int = Field(4, ge=1)
    """Actions that are executed before the next chunk (T_a)."""

    @model_validator(mode="after")
    def _long_enough(self) -> UNetPolicy:
        if self.observed - 1 + self.executed > self.horizon:
            raise ValueError(
                f"a chunk of {self.horizon} actions does not reach {self.executed} beyond the last of {self.observed} "
                "observations"
            )
        return self


class ChunkTransformer(SpecModel):
    """A transformer over a noise token, a sentence, patches of the picture and a chunk of actions."""

    kind: Literal["transformer"] = "transformer"
    width: int = Field(96, ge=8)
    depth: int = Field(3, ge=1)
    heads: int = Field(4, ge=1)
    horizon: int = Field(10, ge=1)
    executed: int = Field(10, ge=1)
    observed: Literal[1] = 1
    dropout: float = Field(0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _fits(self) -> ChunkTransformer:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.executed > self.horizon:
            raise ValueError(f"a chunk of {self.horizon} actions has no {self.executed} to execute")
        return self


class Generalist(SpecModel):
    """A Gaussian policy of dense layers that is told which robot it drives."""

    kind: Literal["mlp"] = "mlp"
    hidden: tuple[int, ...] = Field((128, 64), min_length=1)
    codes: int = Field(8, ge=1)
    """Slots of the one-hot code of the robot; robots use the first ones."""


class TableNet(SpecModel):
    """Logits of actions, one row for each state."""

    kind: Literal["table"] = "table"


Student = Annotated[UNetPolicy | ChunkTransformer | Generalist | TableNet, Field(discriminator="kind")]


class Evaluation(SpecModel):
    """How policies are scored; reset seeds are fixed and shared by all methods."""

    episodes: int = Field(60, ge=1)
    """Layouts (continuous worlds), of each robot or task."""
    repeats: int = Field(1, ge=1)
    """Episodes on each layout: how often another class of way is taken shows only in several."""
    val_episodes: int = Field(20, ge=1)
    chains: int = Field(20, ge=1)
    """Chains of five tasks (worlds with tasks)."""


class Gate(SpecModel):
    """What a task must allow for a board: where nothing is learned, nothing is compared."""

    success: float = Field(0.2, ge=0, le=1)
    """Of plain behaviour cloning with the task's recipe and limits, on the validation seeds."""


class PolicySpec(TaskSpec):
    """A fully resolved task of the track ``policy``."""

    headline: Metric = Metric(name="success", direction="max", bounds=(0.0, 1.0))
    floor: str = "random"
    ceiling: str = "expert"
    world: World
    data: Data = Demonstrations()
    student: Student = UNetPolicy()
    evaluation: Evaluation = Evaluation()
    gate: Gate | None = None

    @model_validator(mode="after")
    def _consistent(self) -> PolicySpec:
        wanted = {
            "nav": ("demos", {"unet", "mlp"}),
            "gym": ("demos", {"unet"}),
            "desk": ("demos", {"transformer"}),
            "bandits": ("logged", {"table"}),
            "lake": ("logged", {"table"}),
            "mdps": ("online", {"table"}),
        }
        data, students = wanted[self.world.kind]
        if self.data.kind != data:
            raise ValueError(f"a world of kind {self.world.kind!r} has data of kind {data!r}, not {self.data.kind!r}")
        if self.student.kind not in students:
            raise ValueError(
                f"a world of kind {self.world.kind!r} has a student of kind {' or '.join(sorted(students))}"
            )
        if self.world.kind == "nav" and self.student.kind == "unet" and len(self.world.robots) > 1:
            raise ValueError("a student of kind 'unet' drives one robot; several need one of kind 'mlp'")
        if self.gate is not None and self.world.kind not in ("nav", "desk"):
            raise ValueError(f"a gate asks for success, which a world of kind {self.world.kind!r} has none of")
        return self

    def demonstrations_key(self) -> dict[str, Any]:
        """Everything that decides the demonstrations."""
        return {
            "track": "policy",
            "format": FORMAT,
            "world": self.world.model_dump(mode="json"),
            "data": self.data.model_dump(mode="json"),
            "seed": self.teacher_seed,
        }

    def teacher_key(self) -> str | None:
        return digest(self.demonstrations_key()) if self.data.kind == "demos" else None

    def teacher_needs(self) -> list[tuple[str, Any, str]]:
        if self.data.kind != "demos" or self.data.path is not None:
            return []
        needs: list[tuple[str, Any, str]] = [
            ("demonstrations", self.demonstrations_key(), f"demonstrations of {self.name}")
        ]
        if self.gate is not None:
            needs.append(("gap", self.gap_key(), f"plain student of {self.name}"))
        return needs

    def gap_key(self) -> dict[str, Any]:
        """Everything that decides what a plainly trained student reaches."""
        return {
            "demonstrations": self.demonstrations_key(),
            "format": GAP,
            "episodes": self.evaluation.val_episodes,
            "student": self.student.model_dump(mode="json"),
            "recipe": self.recipe.model_dump(mode="json"),
            "limits": self.limits,
        }

    def problems(self) -> list[Problem]:
        place = f"task {self.name}@{self.scale}"
        wanted = list(self.requires)
        if self.world.kind == "gym":
            wanted += ["gymnasium", *([self.world.module] if self.world.module else [])]
        found = [
            Problem(place, f"package {module!r} is not installed", f"pip install {INSTALLED_BY.get(module, module)}")
            for module in dict.fromkeys(wanted)
            if importlib.util.find_spec(module) is None
        ]
        path = getattr(self.data, "path", None)
        if path and path.startswith(("/", "./", "../", "~")) and not Path(path).expanduser().exists():
            hint = "a path starts with /, ./, ../ or ~; everything else is a name on the hub"
            found.append(Problem(f"{place}: data.path", f"there is no folder {path}", hint))
        return found
