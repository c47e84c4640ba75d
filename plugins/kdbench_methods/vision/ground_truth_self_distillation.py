"""Even your Teacher Needs Guidance: Ground-Truth Targets Dampen Regularization Imposed by Self-Distillation
(Borup and Andersen, NeurIPS 2021).

Networks (section 5): generation 1 learns the labels; each later generation is a freshly initialised network that fits
alpha times the labels and 1 - alpha times the previous generation's outputs,

    alpha MSE(softmax f, y) + (1 - alpha) MSE(softmax f, softmax f_previous) + reg sum_l |theta_l|

with un-squared norms of the parameter tensors. ``alpha`` is given, or estimated per generation from the closed form of
the kernel case, plugging in the validation outputs of networks trained with alpha = 0 and alpha = 1. The last
generation spends the budget's steps, all others ``aux_steps``.

Kernel ridge regression (sections 3 and 4), in evaluation and in float64: with A = K (K + lam I)^-1 the predictions
follow f <- A (alpha y + (1 - alpha) f), whose limit is ridge regression with lam / alpha for alpha > 0 and 0 for
alpha = 0. The recursion, its limit and the optimal alpha are computed on the task's own images with an RBF kernel, and
on the sinusoid of the paper's figure 1; deviations from the closed forms are reported as error metrics.
"""

import numpy as np
import torch
import torch.nn.functional as F

from kdbench import Compare, Field, Paper, Params, hookimpl
from kdbench.training import kernels

PAPER = Paper(
    slug="ground_truth_self_distillation",
    title="Even your Teacher Needs Guidance: Ground-Truth Targets Dampen Regularization Imposed by Self-Distillation",
    year=2021,
    authors=["Kenneth Borup", "Lars N. Andersen"],
    venue="NeurIPS 2021",
    arxiv="2102.13088",
    url="https://github.com/Kennethborup/self_distillation",
    track="vision",
    source="code",
    tasks=["classify", "selfdistill"],
    requires=["labels"],
    tags=["self-distillation", "kernel", "theory"],
    claims=[
        Compare(
            metric="top1",
            subject="ground_truth_self_distillation",
            reference={"method": "ground_truth_self_distillation", "params": {"alpha": 0.0}},
            tasks=["digits-selfdistill", "selfdistill"],
            note="ground-truth targets keep repeated self-distillation from collapsing",
        )
    ],
    departures=[
        "the last generation starts from the initialisation that all methods of the task share",
        "Adam at 2e-2, chosen on validation data, for the steps of the task in place of 1e-4 for 75 epochs",
        "the estimate of alpha from two auxiliary networks per generation is our reading of the efficient scheme",
    ],
)


class GroundTruthSelfDistillationParams(Params):
    """Generations and weight of the ground truth; ridge and kernel of the exact part."""

    generations: int = Field(
        5, ge=1, le=50, description="networks trained one after the other, the returned one included"
    )
    alpha: float | None = Field(
        0.5, ge=0, le=1, description="weight of the labels from generation 2 on; null: estimated in each generation"
    )
    lr: float = Field(2e-2, gt=0, description="peak learning rate of Adam")
    regularization: float = Field(1e-4, ge=0, description="weight of the summed norms of the parameter tensors")
    kernel_alpha: float = Field(0.25, gt=0, le=1, description="alpha of the kernel part, where it is not searched")
    ridge: float = Field(0.2, gt=0, description="lam of the kernel part")
    kernel_images: int = Field(500, ge=10, le=5000, description="training images of the kernel part at most")


# --- networks ---------------------------------------------------------------------------------------------------------


def generation_loss(logits, labels, previous, alpha):
    """alpha MSE to one-hot labels + (1 - alpha) MSE to the previous softmax; (B, C), (B,), (B, C) or None to scalar.

    Squared errors are averaged over the classes and the batch. Unlabelled samples (-1) have the second part alone.
    """
    probs = F.softmax(logits.float(), -1)
    known = (labels >= 0).float().unsqueeze(-1)
    truth = (known * (probs - F.one_hot(labels.clamp(min=0), probs.shape[-1])).square()).mean()
    if previous is None:
        return truth
    return alpha * truth + (1 - alpha) * F.mse_loss(probs, F.softmax(previous.float(), -1))


def norm_penalty(model):
    """Sum over parameter tensors of their Euclidean norms, not squared."""
    return torch.stack(torch._foreach_norm([p for p in model.parameters() if p.requires_grad])).sum()


def fit_generation(task, params, name, previous, alpha, *, final=False):
    """One freshly initialised network trained on the mixed targets."""
    if final:
        model = task.student()
    else:
        with task.seeded(f"generation-{name}"):
            model = task.build_student().to(task.device)

    def loss(model, batch):
        with torch.no_grad():
            target = None if previous is None else previous(batch.x)
        return {
            "fit": generation_loss(model(batch.x), batch.y, target, alpha),
            "norms": params.regularization * norm_penalty(model),
        }

    task.fit(
        model,
        loss,
        steps=task.budget.steps(),
        spend="steps" if final else "aux_steps",
        tag="" if final else name,
        optimizer="adam",
        lr=params.lr,
        weight_decay=0.0,  # the norms are penalised in the loss
    )
    return model.eval()


def estimate_alpha(task, params, name, previous):
    """The optimal weight for one generation, from networks trained with alpha = 1 and alpha = 0."""
    val = task.split("val")
    outputs = []
    for alpha in (1.0, 0.0):
        model = fit_generation(task, params, f"{name}-alpha{alpha:g}", previous, alpha)
        outputs.append(F.softmax(task.predict(model, val.x), -1).double().cpu().numpy())
    target = F.one_hot(val.y, task.num_classes).double().cpu().numpy()
    return kernels.optimal_alpha(target, *outputs)


@hookimpl
def train(task, params):
    previous, last = None, params.generations
    for generation in range(1, last + 1):
        alpha = 1.0 if previous is None else params.alpha
        if alpha is None:
            alpha = estimate_alpha(task, params, str(generation), previous)
        model = fit_generation(task, params, str(generation), previous, alpha, final=generation == last)
        model.requires_grad_(generation == last)
        task.log(generation, generation=generation, alpha=alpha, **task.validate(model))
        previous = model
    return model


# --- kernel ridge regression ------------------------------------------------------------------------------------------


def grid_gap(target, labels_only, teacher_only, points=1001):
    """Validation error at the closed form minus the best on a grid of alphas: never above 0 but for rounding."""

    def error(alpha):
        return float(np.square(target - alpha * labels_only - (1 - alpha) * teacher_only).mean())

    best = min(error(alpha) for alpha in np.linspace(0, 1, points))
    return error(kernels.optimal_alpha(target, labels_only, teacher_only)) - best


def kernel_report(train, val, test, *, gamma, lam, alpha, steps):
    """Kernel self-distillation on (inputs (n, d), targets (n, k)) pairs, all float64.

    Errors against closed forms: ``limit_error`` (recursion after many steps against ridge regression with lam / alpha),
    ``shrinkage_error`` (recursion against its eigen-decomposition), ``grid_gap`` (optimal alpha against a grid).
    """
    x, y = train
    gram = kernels.rbf(x, x, gamma)
    at_val, at_test = kernels.rbf(val[0], x, gamma), kernels.rbf(test[0], x, gamma)
    alphas = [alpha] * (steps - 1)
    fits = kernels.self_distill(gram, y, lam, alphas)
    limit = kernels.limit_coefficients(gram, y, lam, alpha)
    many = kernels.self_distill(gram, y, lam, [alpha] * int(np.ceil(40 / alpha)))[-1]
    eigenvalues, vectors = np.linalg.eigh(gram)
    factors = kernels.shrinkage(eigenvalues.clip(min=0), lam, alphas)
    spectral = vectors @ (factors[-1][:, None] * (vectors.T @ y))
    without = kernels.self_distill(gram, y, lam, [0.0] * (steps - 1))
    norms = [float(np.linalg.norm(gram @ each)) for each in without]
    teacher_only = at_val @ kernels.ridge_coefficients(gram, gram @ fits[0], lam)
    return {
        "limit_error": float(np.abs(gram @ (many - limit)).max()),
        "shrinkage_error": float(np.abs(gram @ fits[-1] - spectral).max()),
        "grid_gap": grid_gap(val[1], at_val @ fits[0], teacher_only),
        "alpha_star": kernels.optimal_alpha(val[1], at_val @ fits[0], teacher_only),
        "norm_increase_without_labels": float(max(0.0, np.diff(norms).max(initial=-np.inf))),
        "norm_left_without_labels": norms[-1] / norms[0],
        "sparsity_first": kernels.effective_sparsity(factors[0]),
        "sparsity_last": kernels.effective_sparsity(factors[-1]),
        **{f"mse_step{k}": float(np.square(test[1] - at_test @ fits[k - 1]).mean()) for k in (1, steps)},
        "mse_limit": float(np.square(test[1] - at_test @ limit).mean()),
        "mse_without_labels": float(np.square(test[1] - at_test @ without[-1]).mean()),
    }, at_test @ fits[-1]


def sinusoid(noise, points=11):
    """The toy of the paper's figure 1: ``points`` noisy samples of sin(2 pi x), and the true function."""
    x = np.linspace(0, 1, points)[:, None]
    grid = np.linspace(0, 1, 201)[:, None]
    return (x, np.sin(2 * np.pi * x) + noise[:points, None]), (grid, np.sin(2 * np.pi * grid))


@hookimpl
def evaluate(task, model, params):
    """Official metrics, and the exact results of the kernel part on the task's images and on the toy."""

    def arrays(name, limit=None):
        split = task.split(name)
        known = torch.nonzero(split.y >= 0).flatten()
        if limit is not None and len(known) > limit:
            known = known[torch.from_numpy(task.rng("kernel").permutation(len(known))[:limit])]
        one_hot = F.one_hot(split.y[known], task.num_classes)
        return split.x[known].flatten(1).double().cpu().numpy(), one_hot.double().cpu().numpy()

    train, val, test = arrays("train", params.kernel_images), arrays("val"), arrays("test")
    settings = {"lam": params.ridge, "alpha": params.kernel_alpha, "steps": max(2, params.generations)}
    images, outputs = kernel_report(train, val, test, gamma=kernels.median_gamma(train[0]), **settings)
    images["top1"] = float((outputs.argmax(1) == test[1].argmax(1)).mean())
    toy_train, truth = sinusoid(task.rng("toy").normal(0, 0.5, 11))
    toy, _ = kernel_report(toy_train, truth, truth, gamma=80.0, **settings)
    return (
        task.score(model)
        | {f"kernel_{name}": value for name, value in images.items()}
        | {f"toy_{name}": value for name, value in toy.items()}
    )
