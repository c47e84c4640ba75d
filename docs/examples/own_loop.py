"""KD with a training loop of its own."""

import torch

from kdbench import Baseline, hookimpl
from kdbench.losses.logits import cross_entropy, kd_kl

CARD = Baseline(
    slug="own_loop",
    title="KD in a loop of its own",
    track="vision",
    tasks=["classify"],
    requires=["logits"],
)


@hookimpl
def train(task, params):
    student = task.student()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=task.budget.steps())
    student.train()
    for step, batch in task.steps():
        logits = student(batch.x)
        loss = 0.1 * cross_entropy(logits, batch.y) + 0.9 * kd_kl(logits, task.teacher_logits(batch), 4.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 10 == 0:
            task.log(step, loss=loss.detach())
    return student
