"""World ``desk``: a table seen from above with three blocks, a slider and a switch, and twelve tasks said in sentences.

The table is [-1, 1] x [-1, 1]. A gripper moves by at most 0.08 a step in each direction and pushes what it touches:
blocks away from it, the handle of the slider along its rail; entering the switch turns it over. Blocks pass through
each other. The tasks push a block of one colour to the left, to the right or up by 0.25, take the slider to an end,
or turn the switch. An episode ends when its task is done; the reward is 1 then. A policy sees a picture of 48 x 48
pixels and one of three sentences.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch

from kdbench.tracks.policy.worlds.base import Observation, World

COLOURS = ("red", "green", "blue")
DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, 1.0)}
TASKS = (
    *(f"push {colour} {direction}" for colour in COLOURS for direction in DIRECTIONS),
    "slider left",
    "slider right",
    "switch",
)
"""By number; blocks first, each in three directions."""
SENTENCES = {
    **{
        f"push {colour} {direction}": (
            f"push the {colour} block {direction}",
            f"move {colour} to the {direction}",
            f"{direction} goes the {colour} block",
        )
        for colour in COLOURS
        for direction in DIRECTIONS
    },
    **{
        f"slider {side}": (f"move the slider {side}", f"take the handle to the {side}", f"{side} goes the slider")
        for side in ("left", "right")
    },
    "switch": ("turn the switch", "press the switch", "the switch goes over"),
}
"""Three of each task."""
VOCABULARY = ("", *sorted({word for group in SENTENCES.values() for text in group for word in text.split()}))
"""Words by number; 0 is none."""
WORDS = max(len(text.split()) for group in SENTENCES.values() for text in group)
"""L of a sentence."""
REACH, BLOCK, GRIP, HANDLE, SWITCH = 0.08, 0.12, 0.06, 0.1, 0.14
"""Largest move of a step, and radii."""
RAIL, END, PAD, FAR = 0.65, 0.4, np.array([0.75, -0.75]), 0.25
"""Height of the slider's rail, how far its ends are, where the switch is, how far blocks are to be pushed."""
PAINT = {
    "table": (0.92, 0.92, 0.88),
    "rail": (0.7, 0.7, 0.7),
    "off": (0.45, 0.45, 0.45),
    "on": (0.95, 0.85, 0.2),
    "handle": (0.55, 0.3, 0.6),
    "red": (0.85, 0.2, 0.2),
    "green": (0.2, 0.65, 0.3),
    "blue": (0.2, 0.35, 0.85),
    "grip": (0.05, 0.05, 0.05),
}


def sentence(task: int, template: int) -> np.ndarray:
    """(L,) words of a sentence of a task."""
    words = [VOCABULARY.index(word) for word in SENTENCES[TASKS[task]][template].split()]
    return np.array(words + [0] * (WORDS - len(words)), dtype=np.int64)


class Desk(World):
    """n tables."""

    actions: ClassVar[int] = 2

    def __init__(self, n: int, *, steps: int = 40, size: int = 48) -> None:
        """``size``: pixels of a side of the picture."""
        super().__init__(n, steps)
        self.size = size

    def start(self, seed: int) -> dict[str, Any]:
        """The task is the seed modulo 12; everything else is drawn from the seed."""
        rng = np.random.default_rng(seed)
        while True:
            blocks = np.stack([rng.uniform(-0.55, 0.55, 3), rng.uniform(-0.6, 0.1, 3)], -1)
            grip = rng.uniform([-0.8, -0.8], [0.8, 0.4])
            apart = [np.hypot(*(blocks[i] - blocks[j])) for i, j in ((0, 1), (0, 2), (1, 2))]
            if min(apart) > 0.34 and np.hypot(*(blocks - grip).T).min() > 0.24 and np.hypot(*(grip - PAD)) > 0.25:
                break
        task = seed % len(TASKS)
        scene = np.concatenate([grip, blocks.ravel(), [rng.uniform(-0.15, 0.15), float(rng.integers(2))]])
        return {
            "scene": scene,
            "first": scene.copy(),
            "inside": False,
            "task": task,
            "words": sentence(task, int(rng.integers(3))),
            "style": int(rng.integers(2)),
        }

    def move(self, actions: np.ndarray, live: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        scene = self.state["scene"].copy()
        grip = np.clip(scene[:, :2] + REACH * actions, -1, 1)
        blocks = scene[:, 2:8].reshape(-1, 3, 2)
        rel = blocks - grip[:, None]
        away = np.hypot(rel[..., 0], rel[..., 1])[..., None]
        pushed = np.clip(grip[:, None] + rel / np.maximum(away, 1e-9) * (BLOCK + GRIP), -0.88, 0.88)
        blocks = np.where(away < BLOCK + GRIP, pushed, blocks)
        over, beside = RAIL - grip[:, 1], scene[:, 8] - grip[:, 0]
        width = np.sqrt(np.maximum((HANDLE + GRIP) ** 2 - over**2, 0.0))
        touched = (np.abs(over) < HANDLE + GRIP) & (np.abs(beside) < width)
        side = np.where(beside >= 0, 1.0, -1.0)
        scene[:, 8] = np.where(touched, np.clip(grip[:, 0] + side * width, -0.6, 0.6), scene[:, 8])
        inside = np.hypot(*(grip - PAD).T) < SWITCH
        turn = inside & ~self.state["inside"]
        scene[:, 9] = np.where(turn, 1 - scene[:, 9], scene[:, 9])
        scene[:, :2], scene[:, 2:8] = grip, blocks.reshape(-1, 6)
        self.state["scene"] = np.where(live[:, None], scene, self.state["scene"])
        self.state["inside"] = np.where(live, inside, self.state["inside"])
        done = self.done()
        return done.astype(float), done, done, np.zeros(self.n, dtype=bool)

    def done(self) -> np.ndarray:
        """(n,) bool: whether the task is done, against how the table was at first."""
        scene, first, task = self.state["scene"], self.state["first"], self.state["task"]
        colour, way = np.minimum(task // 3, 2), np.array(list(DIRECTIONS.values()))[task % 3]
        rows = np.arange(self.n)
        shift = (scene - first)[:, 2:8].reshape(-1, 3, 2)[rows, colour]
        pushed = (shift * way).sum(-1) > FAR
        slid = np.where(task == 9, scene[:, 8] < -END, scene[:, 8] > END)
        turned = scene[:, 9] != first[:, 9]
        return np.asarray(np.where(task < 9, pushed, np.where(task < 11, slid, turned)))

    def next_task(self, task: np.ndarray, words: np.ndarray) -> None:
        """Go on with other tasks (n,) and sentences (n, L), on the tables as they are; the time begins anew."""
        state = self.state
        state["first"], state["task"], state["words"] = state["scene"].copy(), task.copy(), words.copy()
        for name in ("clock", "over", "won"):
            state[name] = np.zeros_like(state[name])

    def observe(self) -> Observation:
        obs = pictures(torch.from_numpy(self.state["scene"].astype(np.float32)), self.size)
        obs.text = torch.from_numpy(self.state["words"].copy())
        return obs


def pictures(scene: torch.Tensor, size: int) -> Observation:
    """Scenes (B, 10) as pictures (B, 3, size, size): gripper, three blocks, slider's handle, switch."""
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    x, y = axis[None, None, :], -axis[None, :, None]
    image = torch.tensor(PAINT["table"])[None, :, None, None].repeat(len(scene), 1, size, size)

    def paint(where: torch.Tensor, colour: torch.Tensor) -> None:
        image[:] = torch.where(where[:, None], colour.view(-1, 3, 1, 1), image)

    def disc(centre: torch.Tensor, radius: float) -> torch.Tensor:
        return (x - centre[:, 0, None, None]) ** 2 + (y - centre[:, 1, None, None]) ** 2 < radius**2

    def named(name: str) -> torch.Tensor:
        return torch.tensor(PAINT[name])

    paint(((y - RAIL).abs() < 0.03).expand(len(scene), size, size) & (x.abs() < 0.7), named("rail"))
    on = scene[:, 9:10]
    pad = torch.tensor(PAD, dtype=torch.float32).expand(len(scene), 2)
    paint(disc(pad, SWITCH), on * named("on") + (1 - on) * named("off"))
    paint(disc(torch.stack([scene[:, 8], torch.full_like(scene[:, 8], RAIL)], 1), HANDLE), named("handle"))
    for number, colour in enumerate(COLOURS):
        paint(disc(scene[:, 2 + 2 * number : 4 + 2 * number], BLOCK), named(colour))
    paint(disc(scene[:, :2], GRIP), named("grip"))
    return Observation(scene.new_zeros(len(scene), 0), image=image)
