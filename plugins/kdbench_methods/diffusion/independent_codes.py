"""All codes of a sequence at once, each drawn on its own: what a parallel decoder does that knows no dependence.

A small network gives a distribution over codes for each place, given the class, and is fitted by cross entropy to
sequences that the teacher writes (Gu et al., ICLR 2018, section 2.2: the conditional independence of non-autoregressive
decoders). Its table of single codes is right; pairs are wrong as far as codes depend on each other beyond the class.
"""

from torch.nn import functional as F

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.tracks.diffusion.networks.causal import Factorized
from kdbench.tracks.diffusion.samplers.sequences import Independent

BASELINE = Baseline(
    slug="independent_codes",
    title="All codes at once, independently",
    track="diffusion",
    tasks=["codes"],
    requires=["samples"],
    tags=["one-step"],
    reference="Gu et al., ICLR 2018",
)


class IndependentCodesParams(Params):
    """Network, data and rate."""

    data: bool = Field(False, description="fitted to sequences of real pictures, not to the teacher's")
    width: int = Field(64, ge=4, le=1024, description="width of the network")
    lr: float = Field(3e-3, gt=0, le=1, description="learning rate")


@hookimpl
def train(task, params):
    teacher = task.teacher()
    with task.seeded("init"):
        network = Factorized(teacher.codebook, teacher.length, task.kind.vocabulary[0], width=params.width)
    network, rng = task.place(network), task.generator("sequences")

    def loss(model, batch):
        codes = task.kind.codes_of(batch.x) if params.data else teacher.sample(batch.cond, rng, task.guidance)
        return F.cross_entropy(model(batch.cond.tokens).flatten(0, 1), codes.flatten())

    loader = task.train_loader() if params.data else task.draws()
    task.fit(network, loss, loader=loader, lr=params.lr, schedule="cosine")
    return Independent(network)
