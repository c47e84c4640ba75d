"""Codes of pictures: the tokenizer, causal and independent networks, and the kind of data."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from kdbench.cache import Cache
from kdbench.tracks.diffusion.conditions import Condition
from kdbench.tracks.diffusion.data.specs import CodesData, Judges
from kdbench.tracks.diffusion.evaluate.sequences import sampling_floor, sequence_table, total_variation
from kdbench.tracks.diffusion.kinds.tokens import Codes
from kdbench.tracks.diffusion.networks.causal import CausalGpt, Factorized, drawn
from kdbench.tracks.diffusion.networks.vq import VqAutoencoder, nearest_code
from kdbench.tracks.diffusion.samplers.sequences import Causal, Independent
from kdbench.tracks.diffusion.spec import CodesTeacher, DiffusionSpec, Training

V, PLACES = 4, 3


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def gpt() -> CausalGpt:
    """Sharp enough that conditions and earlier codes matter."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = CausalGpt(torch.randn(V, 2), PLACES, 3, width=16, depth=2, heads=2)
        for parameter in network.parameters():
            parameter.data.mul_(3)
    return network.eval()


def classes(*tokens) -> Condition:
    return Condition.of_tokens(torch.tensor(tokens))


# --- tokenizer --------------------------------------------------------------------------------------------------------


def tokenizer(codebook=8) -> VqAutoencoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return VqAutoencoder(16, codebook, 4, width=8).double()


def pictures(count=6):
    return torch.rand(count, 1, 16, 16, generator=generator(), dtype=torch.float64) * 2 - 1


def test_codes_are_the_nearest():
    vectors, codebook = torch.randn(5, 3, 4, generator=generator()), torch.randn(8, 4, generator=generator(1))
    wanted = (vectors[..., None, :] - codebook).square().sum(-1).argmin(-1)
    assert torch.equal(nearest_code(vectors, codebook), wanted)
    assert torch.equal(nearest_code(codebook, codebook), torch.arange(8))


def test_pictures_become_codes_in_raster_order_and_come_back():
    model, x = tokenizer(), pictures()
    codes = model.encode(x)
    assert codes.shape == (6, 16)
    assert model.decode(codes).shape == x.shape
    assert model.decode(codes).abs().max() <= 1
    changed = x.clone()
    changed[:, :, :4, 12:] *= -1  # the top right corner reaches the code of place 3 and its neighbours, never place 12
    moved = (model.latents(changed) != model.latents(x)).any(-1).any(0)
    assert moved[3]
    assert not moved[12]


def test_gradients_of_the_tokenizer_go_where_they_should():
    model, x = tokenizer(), pictures()
    losses = model.losses(x)
    encoder, book = list(model.encoder.parameters()), model.codebook
    handed = torch.autograd.grad(losses["reconstruction"], [*encoder, book], retain_graph=True, allow_unused=True)
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in handed[:-1])
    assert handed[-1] is None
    moved = torch.autograd.grad(losses["codes"], [*encoder, book], retain_graph=True, allow_unused=True)
    assert all(gradient is None for gradient in moved[:-1])
    assert moved[-1].abs().sum() > 0
    held = torch.autograd.grad(losses["commitment"], [*encoder, book], allow_unused=True)
    assert held[-1] is None
    assert held[0].abs().sum() > 0
    assert float(losses["commitment"].detach()) == pytest.approx(0.25 * float(losses["codes"].detach()))


def test_the_gradient_at_a_code_is_handed_to_the_latent_vector():
    model, x = tokenizer(), pictures()
    z = model.latents(x)
    q = model.codebook[model.nearest(z)].detach().requires_grad_(True)
    (at_code,) = torch.autograd.grad(F.mse_loss(model.decode_vectors(q), x), q)
    wanted = torch.autograd.grad(z, list(model.encoder.parameters()), at_code)
    found = torch.autograd.grad(model.losses(x)["reconstruction"], list(model.encoder.parameters()))
    for mine, theirs in zip(found, wanted, strict=True):
        assert torch.allclose(mine, theirs)


def test_unused_codes_are_put_where_pictures_are():
    model, x = tokenizer(), pictures()
    with torch.no_grad():
        model.codebook[3:] = 1e3
        kept = model.codebook[:3].clone()
        used = model.encode(x).unique()
    assert model.revive(x, generator()) == 8 - len(used)
    assert torch.equal(model.codebook[used], kept[used])
    latents = model.latents(x).flatten(0, 1)
    revived = [row for row in range(8) if row not in used]
    assert (torch.cdist(model.codebook[revived], latents).min(1).values < 1e-6).all()
    assert len(model.encode(x).unique()) > len(used)


# --- networks ---------------------------------------------------------------------------------------------------------


def test_a_place_sees_the_places_before_it_alone():
    network, cond = gpt(), classes(1)
    vectors = torch.randn(1, PLACES - 1, 2, generator=generator())
    features = network.features_of(vectors, cond)
    assert features.shape == (1, PLACES, 16)
    for place in range(PLACES - 1):
        changed = vectors.clone()
        changed[:, place] += 1
        moved = (network.features_of(changed, cond) - features).abs().amax(-1)[0]
        assert moved[: place + 1].max() == 0
        assert moved[place + 1] > 1e-3


def test_the_condition_matters_from_the_first_place_on():
    network = gpt()
    prefix = torch.tensor([[0, 1]])
    gap = (network(prefix, classes(1)) - network(prefix, classes(2))).abs().amax(-1)[0]
    assert (gap > 1e-3).all()


def test_probabilities_of_sequences_are_exact():
    network, cond = gpt(), classes(0, 2)
    table = network.table(cond, PLACES)
    assert table.shape == (2, V**PLACES)
    assert torch.allclose(table.sum(1), torch.ones(2, dtype=torch.float64))
    every = torch.cartesian_prod(*[torch.arange(V)] * PLACES)
    for row, token in enumerate((0, 2)):
        asked = classes(*[token] * len(every))
        assert torch.allclose(network.log_probs(every, asked).double().sum(1).exp(), table[row], atol=1e-6)
    marginal = table.view(2, V, V, V).sum(-1).flatten(1)
    assert torch.allclose(network.table(cond, 2), marginal)


def test_samples_have_the_probabilities_of_the_table():
    network, count = gpt(), 4000
    exact = network.table(classes(1), PLACES)[0]
    codes = network.sample(classes(1).repeat(count), generator())
    found = float(total_variation(sequence_table(codes, V), exact))
    assert found < 1.5 * sampling_floor(exact, count)
    other = network.table(classes(2), PLACES)[0]
    assert float(total_variation(exact, other)) > 5 * sampling_floor(exact, count)


def test_guidance_is_linear_in_the_logits():
    network, prefix, cond = gpt(), torch.tensor([[1, 2]]), classes(1)
    asked, unasked = network(prefix, cond)[:, -1], network(prefix, cond.null())[:, -1]
    wanted = (unasked + 2.5 * (asked - unasked)).softmax(-1)
    assert torch.allclose(network.next_probs(prefix, cond, 2.5), wanted)
    assert torch.allclose(network.next_probs(prefix, cond), asked.softmax(-1))
    assert torch.allclose(network.table(cond, 1, 2.5)[0].float(), network.next_probs(prefix[:, :0], cond, 2.5)[0])


def test_draws_have_their_probabilities():
    probs = torch.tensor([0.0, 0.25, 0.0, 0.7, 0.05])
    counts = torch.bincount(drawn(probs.expand(40000, 5), generator()), minlength=5) / 40000
    assert torch.allclose(counts, probs, atol=0.01)
    assert counts[0] == counts[2] == 0


def test_independent_codes_are_a_product():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Factorized(torch.randn(V, 2), PLACES, 3, width=8)
    cond = classes(1)
    probs = network(cond.tokens)[0].detach().double().softmax(-1)
    wanted = torch.einsum("a,b,c->abc", *probs).flatten()
    assert torch.allclose(network.table(cond, PLACES)[0], wanted)
    codes = network.sample(cond.repeat(4000), generator())
    assert float(total_variation(sequence_table(codes, V), wanted)) < 1.5 * sampling_floor(wanted, 4000)


def test_independent_codes_miss_pairs_that_agree():
    """Fitted to (0, 0) and (1, 1) alone, half of what it writes is neither."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Factorized(torch.randn(2, 2), 2, 2, width=8)
    data, cond = torch.tensor([[0, 0], [1, 1]]), classes(1, 1)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(network(cond.tokens).flatten(0, 1), data.flatten()).backward()
        optimizer.step()
    table = network.table(classes(1), 2)[0]
    assert float(table[1] + table[2]) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_samplers_count_their_evaluations_and_are_stored(tmp_path, guidance):
    sampler = Causal(gpt(), guidance)
    noise, cond = torch.zeros(5, PLACES, 2), classes(1, 1, 2, 2, 0)
    made = sampler.sample(noise, cond, generator())
    assert made.nfe == PLACES * (1 if guidance == 1 else 2)
    sampler.save(tmp_path)
    task = SimpleNamespace(place=lambda network: network)
    again = Causal.load(tmp_path, task)
    assert torch.equal(again.sample(noise, cond, generator()).x, made.x)
    assert torch.equal(again.table(cond, 2), sampler.table(cond, 2))


def test_the_independent_sampler_has_one_evaluation_and_is_stored(tmp_path):
    sampler = Independent(Factorized(torch.randn(V, 2, generator=generator()), PLACES, 3, width=8))
    noise, cond = torch.zeros(5, PLACES, 2), classes(1, 1, 2, 2, 0)
    made = sampler.sample(noise, cond, generator())
    assert made.nfe == 1
    sampler.save(tmp_path)
    again = Independent.load(tmp_path, SimpleNamespace(place=lambda network: network))
    assert torch.equal(again.sample(noise, cond, generator()).x, made.x)


# --- the kind of data -------------------------------------------------------------------------------------------------


def kind(folder, **fields) -> Codes:
    few = Training(steps=3, batch_size=8)
    teacher = CodesTeacher(codebook=8, width=16, depth=1, tokenizer_training=few, training=few)
    data = CodesData(train=40, test=40, reference=50, judges=Judges(steps=2, width=4), **fields)
    spec = DiffusionSpec(
        name="diffusion/codes",
        title="",
        family="codes",
        scale="smoke",
        data=data,
        teacher=teacher,
        evaluation={"samples": 60, "val_samples": 20},
    )
    return Codes(spec, Cache(folder))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("codes")


def task_of(codes: Codes, folder=None):
    def samples(sampler, count=None, split="val"):
        usual = codes.spec.evaluation.samples if split == "test" else codes.spec.evaluation.val_samples
        return codes.samples(sampler, count or usual, split, torch.device("cpu"))

    return SimpleNamespace(
        spec=codes.spec, device=torch.device("cpu"), samples=samples, artifact=lambda name: folder / name
    )


def test_samples_are_vectors_of_codes(folder):
    codes = kind(folder)
    split = codes.split("train")
    assert split.x.shape == (40, 16, 4)
    assert codes.shape == (16, 4)
    assert len(codes.pairs) == 24
    found = codes.codes_of(split.x)
    assert torch.equal(codes.tokenizer.codebook[found], split.x)
    assert torch.equal(codes.codes_of(split.x + 1e-6), found)
    assert torch.equal(found, codes.tokenizer.encode(codes.digits.split("train").x))
    pair = kind(folder, places=(5, 6))
    assert torch.equal(pair.codes_of(pair.split("train").x), found[:, 5:7])


def test_whole_sequences_are_scored_as_pictures(folder, tmp_path):
    codes = kind(folder)
    task = task_of(codes, tmp_path)
    teacher = codes.sampler(codes.teacher(task))
    found = codes.measure(task, teacher)
    assert {"bigram_tv", "teacher_nll", "fd", "accuracy", "nfe"} <= set(found.metrics)
    assert found.metrics["nfe"] == 16
    assert found.examples["teacher_nll"].shape == (60,)
    uniform = math.log(8)
    assert 0 < found.metrics["teacher_nll"] < 1.2 * uniform
    assert (tmp_path / "samples.png").is_file()


def test_short_sequences_are_compared_exactly(folder):
    codes = kind(folder, places=(5, 6))
    task = task_of(codes)
    teacher = codes.sampler(codes.teacher(task))
    exact = codes.measure(task, teacher).metrics
    assert exact["sequence_tv"] == pytest.approx(0, abs=1e-12)
    assert exact["sequence_tv_floor"] == 0
    assert "fd" not in exact

    class Opaque(Causal):
        """Does not tell its probabilities."""

        kind = "opaque"
        table = property()  # type: ignore[assignment]

    sampled = codes.measure(task, Opaque(teacher.network)).metrics
    assert sampled["sequence_tv"] == pytest.approx(sampled["sequence_tv_floor"], rel=0.3)
    assert sampled["sequence_tv"] > 0.1


def test_reference_and_teacher_are_made_once(folder):
    codes = kind(folder)
    task = task_of(codes)
    assert torch.equal(codes.reference(task), kind(folder).reference(task))
    one, other = codes.teacher(task), kind(folder).teacher(task)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
