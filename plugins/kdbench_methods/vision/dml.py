"""Deep mutual learning (Zhang et al., CVPR 2018): two students from scratch, each the other's teacher.

L_1 = CE(z_1, y) + w KL(p_2 || p_1) and the same with the roles exchanged, on one batch; gradients never cross from one
network to the other. The peer's steps are metered as ``aux_steps``.
"""

from kdbench import Baseline, Field, Params, hookimpl
from kdbench.losses.logits import cross_entropy, kd_kl

BASELINE = Baseline(
    slug="dml",
    title="Deep Mutual Learning",
    track="vision",
    tasks=["classify", "ensemble", "hetero", "selfdistill", "longtail", "noisy", "mismatch", "multidomain", "related"],
    tags=["online", "divergence"],
    reference="Zhang, Xiang, Hospedales, Lu; CVPR 2018, arXiv 1706.00384",
)


class DmlParams(Params):
    """Weight and temperature of the mutual term."""

    weight: float = Field(1.0, ge=0, description="of the divergence to the other network")
    temperature: float = Field(1.0, gt=0, le=100, description="softens both networks' distributions")


@hookimpl
def train(task, params):
    student = task.student()
    with task.seeded("peer"):
        peer = task.build_student().to(task.device)
    task.budget.spend("aux_steps", task.budget.steps())

    def loss(model, batch):
        mine, theirs = model(batch.x), peer(batch.x)
        return {
            "ce": cross_entropy(mine, batch.y),
            "mutual": params.weight * kd_kl(mine, theirs, params.temperature),
            "peer_ce": cross_entropy(theirs, batch.y),
            "peer_mutual": params.weight * kd_kl(theirs, mine, params.temperature),
        }

    task.fit(student, loss, modules=[peer])
    return student
