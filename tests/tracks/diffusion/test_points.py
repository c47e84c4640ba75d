"""Points in the plane: what their measures say of distributions whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch

from kdbench.cache import Cache
from kdbench.errors import Diverged, UsageError
from kdbench.tracks.diffusion.data.points import make_points, mixture_of
from kdbench.tracks.diffusion.data.specs import PointsData
from kdbench.tracks.diffusion.evaluate.points import (
    kl_of_mixtures,
    kl_of_samples,
    mmd,
    mmd_bandwidth,
    modes_of,
    sliced_w2,
)
from kdbench.tracks.diffusion.kinds.points import Points
from kdbench.tracks.diffusion.networks.gmm import Mixture
from kdbench.tracks.diffusion.samplers.base import Sampled, Sampler
from kdbench.tracks.diffusion.spec import DiffusionSpec, Evaluation, Exact
from kdbench.tracks.diffusion.task import DiffusionTask


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(mean: tuple[float, float], std: float) -> Mixture:
    return Mixture([mean], std)


def kl_of_gaussians(p: Mixture, q: Mixture, added: float = 0.0) -> float:
    """Closed form in the plane, where a Gaussian of std ``added`` is added to both."""
    a, b = (float(each.stds[0]) ** 2 + added**2 for each in (p, q))
    gap = float((p.means - q.means).square().sum())
    return math.log(b / a) + a / b - 1 + gap / (2 * b)


# --- layouts ----------------------------------------------------------------------------------------------------------


def test_layouts_are_what_the_specification_says():
    ring, grid, checker = (mixture_of(PointsData(layout=name)) for name in ("ring", "grid", "checker"))
    torch.testing.assert_close(ring.means.norm(dim=1), torch.full((8,), 2.0).double())
    assert ring.stds.unique().tolist() == [0.15]
    assert torch.bincount(ring.labels).tolist() == [0, 2, 2, 2, 2]
    assert len(grid.means) == 25
    assert float(grid.weights.max() / grid.weights.min()) == pytest.approx(10)
    assert len(grid.weights.unique()) == 25
    assert len(checker.means) == 32
    squares = ((checker.means + 2) / 0.5).floor().long()
    assert (squares.sum(1) % 2 == 0).all()
    assert squares.min() == 0
    assert squares.max() == 7
    for mixture in (ring, grid, checker):  # components do not overlap within three standard deviations
        nearest = torch.cdist(mixture.means, mixture.means).fill_diagonal_(math.inf).min()
        assert nearest > 6 * mixture.stds.max()
        assert 1.1 < mixture.std < 1.5


def test_scale_multiplies_the_points_and_splits_differ():
    data = PointsData(layout="grid", train=500, val=500)
    points, labels = make_points(data, "train")
    assert points.shape == (500, 2)
    assert not labels.any()
    assert torch.equal(points, make_points(data, "train")[0])
    assert not torch.equal(points, make_points(data, "val")[0])
    assert not torch.equal(points, make_points(data.model_copy(update={"seed": 1}), "train")[0])
    torch.testing.assert_close(make_points(data.model_copy(update={"scale": 0.5}), "train")[0], 0.5 * points)


@pytest.mark.parametrize("layout", ["ring", "grid", "checker"])
def test_modes_of_held_out_points_have_their_exact_shares(layout):
    data = PointsData(layout=layout, test=1000)
    mixture, (points, labels) = mixture_of(data), make_points(data, "test")
    for count in (100, 500, 1000):
        shares = modes_of(points[:count], mixture).shares
        assert float((shares - mixture.weights).abs().max()) * count < 2.5
    assert torch.equal(labels, mixture.labels[torch.cdist(points.double(), mixture.means).argmin(1)])
    spread = (points[:, None].double() - mixture.means).norm(dim=2).min(1).values / mixture.stds[0]
    assert float(spread.square().mean()) == pytest.approx(2, rel=0.1)  # of a chi-square of two degrees


# --- measures ---------------------------------------------------------------------------------------------------------


def test_sliced_distance_of_a_shift_and_of_a_scaling():
    x = torch.randn(400, 2, generator=generator())
    assert sliced_w2(x, x[torch.randperm(400, generator=generator())]) == 0
    assert sliced_w2(x, x + torch.tensor([3.0, 4.0])) == pytest.approx(5 / math.sqrt(2), rel=1e-5)
    assert sliced_w2(x, -x + 0) > 0
    # A projection of x is moved to the same projection of 2 x: its mean square is |x|^2 / 2.
    assert sliced_w2(x, 2 * x) == pytest.approx(float(x.square().mean().sqrt()), rel=1e-5)
    with pytest.raises(UsageError, match="equally many"):
        sliced_w2(x, x[1:])


def test_mmd_of_gaussians():
    """E k(x, y) of Gaussians of variances a, b whose means are d apart: h2/(h2+a+b) exp(-d^2 / (2 (h2+a+b)))."""
    h, count = 0.9, 1500
    p, q = gaussian((0, 0), 0.5), gaussian((1.0, 0), 0.8)
    x, y = (each.sample(count, generator(n), dtype=torch.float64)[0] for n, each in enumerate((p, q)))

    def expected(a: float, b: float, gap: float) -> float:
        total = h**2 + a + b
        return h**2 / total * math.exp(-(gap**2) / (2 * total))

    wanted = expected(0.25, 0.25, 0) + expected(0.64, 0.64, 0) - 2 * expected(0.25, 0.64, 1)
    assert mmd(x, y, h) == pytest.approx(wanted, abs=0.03)  # three standard errors

    def kernel(a: torch.Tensor, b: torch.Tensor) -> float:
        return math.exp(-float((a - b).square().sum()) / (2 * h**2))

    own = [sum(kernel(a[i], a[j]) for i in range(4) for j in range(4) if i != j) / 12 for a in (x, y)]
    cross = sum(kernel(x[i], y[j]) for i in range(4) for j in range(4)) / 16
    assert mmd(x[:4], y[:4], h) == pytest.approx(sum(own) - 2 * cross, rel=1e-9)
    again = p.sample(count, generator(7), dtype=torch.float64)[0]
    assert abs(mmd(x, again, h)) < 3e-3
    assert mmd_bandwidth(p) == 0.5
    assert mmd_bandwidth(mixture_of(PointsData(layout="grid"))) == pytest.approx(0.5)


def test_divergence_of_mixtures_by_quadrature():
    p, q = gaussian((0.3, -0.2), 0.5), gaussian((0, 0.4), 0.8)
    assert kl_of_mixtures(p, q) == pytest.approx(kl_of_gaussians(p, q), rel=1e-7)
    assert kl_of_mixtures(q, p) == pytest.approx(kl_of_gaussians(q, p), rel=1e-7)
    line = kl_of_mixtures(Mixture([[0.0]], 0.5), Mixture([[1.0]], 0.8))
    assert line == pytest.approx(math.log(0.8 / 0.5) + (0.25 + 1) / 1.28 - 0.5, rel=1e-7)
    # Tilting costs E[r.x] / beta - log Z.
    ring, direction = mixture_of(PointsData()), torch.tensor([1.0, 0.5]).double()
    tilted = ring.tilted(direction, 2.0)
    wanted = float(tilted.mean @ direction / 2 - ring.log_partition(direction, 2.0))
    assert kl_of_mixtures(tilted, ring) == pytest.approx(wanted, rel=1e-6)
    with pytest.raises(UsageError, match="too fine"):
        kl_of_mixtures(Mixture([[0.0, 0.0], [1.0, 0.0]], 1e-4), q)


def test_divergence_of_samples_is_that_of_the_smoothed_gaussians():
    p, q, h = gaussian((0.3, -0.2), 0.4), gaussian((0, 0.3), 0.6), 0.2
    x = p.sample(20_000, generator())[0]
    reverse, forward = kl_of_samples(x, q, h)
    assert reverse == pytest.approx(kl_of_gaussians(p, q, h), rel=0.03)
    assert forward == pytest.approx(kl_of_gaussians(q, p, h), rel=0.05)
    assert abs(reverse - forward) > 0.2  # the two directions are told apart
    # Samples of the mixture itself: about A / (8 pi N h^2), where 2000 of them cover a disk of four deviations.
    same = kl_of_samples(x[:2000], p, h)
    assert 0 < max(same) < math.pi * (4 * math.hypot(0.4, h)) ** 2 / (8 * math.pi * 2000 * h**2)


def test_forward_divergence_sees_missing_modes_and_reverse_strays():
    ring = mixture_of(PointsData())
    x, chosen = ring.sample(2000, generator())
    whole = kl_of_samples(x, ring)
    assert max(whole) < 0.02
    half = kl_of_samples(x[chosen < 4], ring)
    assert half[0] == pytest.approx(math.log(2), abs=0.05)  # half of the mass has twice the density
    assert half[1] > 3
    wild = x.clone()
    wild[:40] = torch.tensor([1e6, 0.0])
    strayed = kl_of_samples(wild, ring)
    assert strayed[0] > whole[0] + 0.5
    assert strayed[1] < whole[1] + 0.1
    assert all(map(math.isfinite, kl_of_samples(torch.zeros(9, 2), ring)))


def test_modes_that_are_hit_and_their_masses():
    grid = mixture_of(PointsData(layout="grid"))
    x = grid.sample(4000, generator())[0]
    found = modes_of(x, grid)
    assert found.hit.all()
    assert found.l1 < 0.1
    assert 0.005 < float(found.stray.double().mean()) < 0.02  # 1.1 % of a Gaussian in the plane
    rare = grid.weights.argmin()
    torch.testing.assert_close(found.shares[rare], grid.weights[rare], rtol=0, atol=0.005)
    one = modes_of(grid.means[3:4].repeat(10, 1), grid)
    assert one.hit.sum() == 1
    assert one.l1 == pytest.approx(2 * (1 - float(grid.weights[3])))
    # A fifth of the expected mass hits a mode, less does not.
    for count in (2, 3):  # of 1000 points, where 10.2 are expected
        few = torch.cat([grid.means[:1].repeat(count, 1), grid.means[1:2].repeat(1000 - count, 1)])
        assert bool(modes_of(few, grid).hit[0]) == (count == 3)
    near = grid.means[:1] + torch.tensor([0.31, 0.0])
    assert modes_of(near, grid).stray.all()


# --- kind -------------------------------------------------------------------------------------------------------------


class Fixed(Sampler):
    """Draws from a mixture, of the class that is asked for or of any."""

    def __init__(self, mixture: Mixture, asked: bool) -> None:
        self.mixture, self.asked = mixture, asked

    def draw(self, noise, cond, generator):
        tokens = cond.tokens[:, 0] if self.asked else None
        x = self.mixture.sample(len(noise), generator, tokens)[0]
        return x, [20 * noise, x]

    def save(self, folder):
        raise NotImplementedError

    @classmethod
    def load(cls, folder, task):
        raise NotImplementedError


def spec(layout: str = "ring") -> DiffusionSpec:
    return DiffusionSpec(
        name=f"diffusion/{layout}",
        title="",
        family="points",
        scale="smoke",
        data=PointsData(layout=layout, train=100, val=600, test=600),
        teacher=Exact(),
        evaluation=Evaluation(samples=1000),
    )


@pytest.fixture
def ring(tmp_path) -> Points:
    return Points(spec(), Cache(tmp_path))


def test_measures_tell_a_perfect_sampler_from_one_that_ignores_classes(ring):
    good, bad = (
        ring.compare(ring.samples(Fixed(ring.mixture, asked), 600, "test", torch.device("cpu")), "test")[0]
        for asked in (True, False)
    )
    assert good["class_accuracy"] == 1
    assert bad["class_accuracy"] == pytest.approx(0.25, abs=0.06)
    assert good["modes"] == bad["modes"] == 1
    assert good["sw2"] < 0.15
    assert good["kl_reverse"] < 0.05
    assert good["kl_forward"] < 0.05
    small, _ = ring.compare(Sampled(0.5 * ring.split("test").x, 1.0, []), "test")
    assert small["sw2"] > 5 * good["sw2"]
    assert small["mmd"] > 10 * abs(good["mmd"])
    assert small["modes"] == 0
    assert small["stray"] == 1
    assert small["nfe"] == 1


def test_kind_of_points(ring, tmp_path):
    assert ring.shape == (2,)
    assert ring.vocabulary == (5,)
    assert ring.data_std == pytest.approx(math.sqrt(2 + 0.15**2))
    split = ring.split("val")
    assert split.cond.tokens.shape == (600, 1)
    mixture = ring.mixture
    assert torch.equal(mixture.class_log_probabilities(split.x).argmax(1) + 1, split.cond.tokens[:, 0])
    exact = ring.exact()
    assert exact.process.data_std == ring.data_std
    t = torch.full((600,), 0.3)
    torch.testing.assert_close(exact(split.x, t, split.cond), mixture.denoise(split.x, 1.0, t, split.cond.tokens[:, 0]))
    batch = ring.batches()
    first, second = batch(8, generator())[0], batch(8, generator(1))[0]
    assert not torch.isin(first, ring.split("train").x).any()
    assert not torch.equal(first, second)
    grid = Points(spec("grid"), Cache(tmp_path))
    assert grid.vocabulary == ()
    assert grid.split("val").cond.tokens is None
    assert grid.exact()(grid.split("val").x, 1.0).shape == (600, 2)


def test_scores_are_kept_with_pictures(tmp_path):
    task = DiffusionTask(spec("grid"), seed=0, method="m", folder=tmp_path, cache=Cache(tmp_path / "cache"))
    scores = task.kind.measure(task, Fixed(task.kind.mixture, asked=False))
    assert {"sw2", "mmd", "kl_reverse", "kl_forward", "modes", "mode_l1", "stray", "nfe"} == set(scores.metrics)
    assert scores.examples["stray"].shape == (1000,)
    kept = {path.name for path in (tmp_path / "artifacts").iterdir()}
    assert {"samples.json", "samples.png", "trajectory.png"} <= kept
    with pytest.raises(Diverged):
        task.kind.compare(Sampled(torch.full((9, 2), torch.nan), 1.0, []), "val")


def test_pictures_show_samples_and_ways(ring):
    x = ring.split("val").x[:100]
    found = ring.pictures(None, Sampled(x, 1.0, [20 * torch.randn(100, 2, generator=generator()), x]), None)
    assert set(found) == {"samples.png", "trajectory.png"}
    for picture in found.values():
        assert len(picture.convert("RGB").getcolors(100_000)) > 10
