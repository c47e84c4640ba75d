"""Jacobi decoding of the target as it is: what training for it has to beat.

A block of random guesses is read and replaced by what the target says at each place, until nothing changes. The text
is that of the target alone; forwards are saved only where a guess happens to be right although those before it are not.
"""

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.tracks.decoding.blocks.convergence import convergence
from kdbench.tracks.decoding.decoders.jacobi import Jacobi, Window

BASELINE = Baseline(
    slug="jacobi_vanilla",
    title="Jacobi decoding of the untrained target",
    track="decoding",
    tasks=["arith", "listops", "docs", "hf"],
    tags=["reference-point", "parallel"],
    reference="Santilli, Severino, Postolache, Maiorca, Mancusi, Marin, Rodola; ACL 2023, arXiv 2305.10427",
)


class JacobiVanillaParams(Params):
    """The window of guesses, as that of ``jacobi_forcing``."""

    block: int = Field(8, ge=1, le=256, description="tokens of a block (n)")
    blocks: int = Field(2, ge=1, le=16, description="blocks that are guessed at a time at most (K)")
    ratio: float = Field(0.85, gt=0, le=1, description="share of a block after which the next one is begun (r)")
    pool: int = Field(4, ge=0, le=64, description="rejected guesses that are kept for recycling; 0: none")


@hookimpl
def train(task, params):
    return Jacobi(Window(params.block, params.blocks, params.ratio, params.pool))


@hookimpl
def evaluate(task, model):
    return task.score(model) | convergence(task, model)
