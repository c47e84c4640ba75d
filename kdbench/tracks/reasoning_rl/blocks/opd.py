"""On-policy distillation: a divergence from a teacher at every token that the student has written itself.

Contexts are constant: no gradient goes through the sampling. Every form is one function of the same logits, so that
forms differ in nothing but the formula.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from kdbench.losses.divergences import fkl, jsd, rkl, same_vocabulary
from kdbench.losses.kl_estimates import as_reward
from kdbench.losses.support import LEAST, Support, restricted, support_mask
from kdbench.tracks.reasoning_rl.blocks.scoring import chosen

Form = Literal["reverse", "forward", "jsd", "sampled", "trunc", "trunc_sg", "renorm", "tail", "inter_sg"]
FORMS: tuple[Form, ...] = ("reverse", "forward", "jsd", "sampled", "trunc", "trunc_sg", "renorm", "tail", "inter_sg")


def per_token(
    form: Form,
    student: Tensor,
    teacher: Tensor,
    targets: Tensor,
    *,
    beta: float = 0.5,
    k: int = 8,
    support: Support | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Losses (N,) of student and teacher logits (N, V) on the sampled tokens ``targets`` (N,).

    ``reverse``, ``forward`` and ``jsd`` (with ``beta``) sum over the vocabulary; ``sampled`` is the policy gradient
    with the advantage ``log p(y) - log q(y)``, whose mean has the gradient of the reverse KL; the others are reverse
    KL on the ``k`` most probable tokens of ``support`` (:mod:`kdbench.losses.support`; default: the student's, of
    ``inter_sg`` those that both have). ``temperature`` divides both logits. Raises ``ValueError`` for another form.
    """
    options = {"temperature": temperature, "scale_t2": False}
    if form == "reverse":
        return rkl(student, teacher, **options)
    if form == "forward":
        return fkl(student, teacher, **options)
    if form == "jsd":
        return jsd(student, teacher, beta=beta, **options)
    student, teacher = same_vocabulary(student, teacher.detach())
    if form == "sampled":
        return as_reward(chosen(student, targets, temperature), chosen(teacher, targets, temperature))
    if form not in FORMS:
        raise ValueError(f"a form is one of {', '.join(FORMS)}, not {form!r}")
    default: Support = "both" if form == "inter_sg" else "student"
    mask = support_mask(student, teacher, k, support or default)
    return restricted(student / temperature, teacher / temperature, mask, form)


def on_teacher_support(student: Tensor, teacher: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Both logits (N, V) with all but the teacher's ``k`` most probable tokens ruled out; 0: as they are."""
    if k == 0:
        return student, teacher
    student, teacher = same_vocabulary(student, teacher)
    outside = ~support_mask(student, teacher, k, "teacher")
    return student.masked_fill(outside, LEAST), teacher.masked_fill(outside, LEAST)
