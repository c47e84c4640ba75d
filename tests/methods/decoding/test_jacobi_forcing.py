"""Jacobi Forcing: its loss, its rounds, and that a model learns to settle its own text faster."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from kdbench.registry import discover
from kdbench.tracks.decoding.blocks.guesses import Window
from kdbench.tracks.decoding.blocks.packing import Example, pack
from kdbench.tracks.decoding.blocks.trajectories import collect, collected, example
from kdbench.tracks.decoding.decoders.autoregressive import Autoregressive
from kdbench.tracks.decoding.decoders.jacobi import Jacobi, JacobiModel
from kdbench.tracks.decoding.task import DecodingTask
from kdbench_methods.decoding.jacobi_forcing import JacobiForcingParams, forcing_losses, row_mean, train
from tests.helpers.causal import llama

PAD, END = 0, 4
EXAMPLES = [
    Example([1, 2, 3], [[3, 3], [1, 2]], [[3, 2], [1, 1]]),
    Example([2], [[1, 1], [2, 3], [1]], [[1, 1], [3, 3], [2]]),
]


@pytest.fixture
def task(tmp_path):
    spec = discover().task("decoding/arith", "smoke")
    return DecodingTask(spec, seed=0, method="decoding/jacobi_forcing", folder=tmp_path)


def losses(model, examples=EXAMPLES, **params):
    return forcing_losses(model, pack(examples, pad=PAD, end=END), JacobiForcingParams(**params))


def plain(model, ids):
    return model(torch.tensor([ids])).logits[0].log_softmax(-1)


def joined(*parts):
    return [token for part in parts for token in part]


def by_hand(model, one, tau, prompt_loss):
    """Mean cross-entropies of a row from a forward for each stream."""
    clean, noisy = plain(model, [*one.prompt, *joined(*one.clean)]), plain(model, [*one.prompt, *joined(*one.noisy)])
    text, start = [*one.prompt, *joined(*one.clean)], len(one.prompt)
    first = 1 if prompt_loss else start
    ar = -sum(clean[place - 1, text[place]] for place in range(first, len(text))) / (len(text) - first)
    terms, place = [], start
    for guess, right in zip(one.noisy, one.clean, strict=True):
        wrong = [offset for offset in range(len(right)) if guess[offset] != right[offset]]
        for offset in range(wrong[0] if wrong else len(right), len(right)):
            p = (clean[place + offset] / tau).softmax(-1).detach()
            terms.append(-(p * (noisy[place + offset] / tau).log_softmax(-1)).sum())
        place += len(right)
    return ar, tau**2 * sum(terms) / len(terms), len(one.clean)


@pytest.mark.parametrize(("tau", "prompt_loss", "share"), [(1.0, True, True), (2.0, False, True), (1.0, True, False)])
def test_the_loss_by_hand(tau, prompt_loss, share):
    model = llama()
    found = losses(model, temperature=tau, prompt_loss=prompt_loss, share_by_blocks=share, ar_weight=10.0)
    rows = [by_hand(model, one, tau, prompt_loss) for one in EXAMPLES]
    assert found["ar"].item() == pytest.approx(10 * sum(ar.item() for ar, _, _ in rows) / 2, rel=1e-5)
    consistency = sum(soft.item() / (blocks if share else 1) for _, soft, blocks in rows) / 2
    assert found["consistency"].item() == pytest.approx(consistency, rel=1e-5)


def test_the_clean_side_of_the_consistency_loss_is_a_constant():
    model = llama()
    losses(model)["consistency"].backward()
    found = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    sum(soft / blocks / 2 for _, soft, blocks in (by_hand(model, one, 1.0, True) for one in EXAMPLES)).backward()
    for gradient, parameter in zip(found, model.parameters(), strict=True):
        assert torch.allclose(gradient, parameter.grad, atol=1e-6)


def test_there_is_nothing_to_learn_from_guesses_that_are_right():
    right = [Example(one.prompt, one.clean, one.clean) for one in EXAMPLES]
    assert losses(llama(), right)["consistency"].item() == 0


def test_means_of_rows():
    values, row = torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 2])
    assert row_mean(values, row, 4).tolist() == [2, 0, 5, 0]


def test_a_model_learns_to_settle_its_own_text_faster():
    model = llama(vocabulary=12, width=32, seed=3, sharp=4.0)
    prompts, limits = [[5, 6, 7], [8], [9, 9, 10, 11], [5, 11]], {"max_new": 24, "eos": 4, "pad": 0}
    text = Autoregressive().decode(model, prompts, **limits).tokens
    before = Jacobi(Window(6, 1, 1, 0)).decode(model, prompts, **limits).block_efficiency
    source = collect(model, prompts, 6, **limits)
    batch = pack(
        [example(one, 2, "progressive", np.random.default_rng(0)) for one in source.trajectories], pad=0, end=4
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    params = JacobiForcingParams(share_by_blocks=False, ar_weight=1.0, prompt_loss=False)
    for _ in range(60):
        sum(forcing_losses(model, batch, params).values()).backward()
        optimizer.step()
        optimizer.zero_grad()
    written = Jacobi(Window(6, 1, 1, 0)).decode(model, prompts, **limits)
    assert written.tokens == Autoregressive().decode(model, prompts, **limits).tokens
    same = [a == b for one, other in zip(written.tokens, text, strict=True) for a, b in zip(one, other, strict=False)]
    assert np.mean(same) > 0.8
    assert written.block_efficiency > 1.1 * before


# --- the method -------------------------------------------------------------------------------------------------------


def test_the_trajectories_of_the_target_are_made_once_and_paid_by_all(task, monkeypatch):
    first = collected(task, None, 5, 4)
    spent = dict(task.budget.spent)
    assert spent["generated_tokens"] == first.generated
    monkeypatch.setattr("kdbench.tracks.decoding.blocks.trajectories.collect", None)  # not called again
    again = collected(task, None, 5, 4)
    assert again == first
    assert task.budget.spent["generated_tokens"] == 2 * spent["generated_tokens"]
    assert task.budget.spent["flops"] == 2 * spent["flops"]


def test_rounds_have_blocks_twice_as_long_and_share_the_steps(task):
    decoder = train(task, JacobiForcingParams(block=8, rounds=3, trajectories=4, batch_size=2, steps_fraction=1.0))
    assert decoder.window == Window(8, 2, 0.85, 4)
    assert task.budget.spent["steps"] == 4
    task.flush()
    names = {name for line in (task.folder / "curve.jsonl").read_text().splitlines() for name in json.loads(line)}
    assert {"n2/iterations", "n4/iterations", "n8/iterations", "n8/consistency", "n8/ar"} <= names


def test_the_target_stays_and_its_copy_changes(task):
    before = [parameter.clone() for parameter in task.teacher().parameters()]
    decoder = train(task, JacobiForcingParams(trajectories=4, batch_size=2, decode_block=5, blocks=3))
    assert isinstance(decoder, JacobiModel)
    assert decoder.window.block == 5
    pairs = list(zip(before, task.teacher().parameters(), decoder.model.parameters(), strict=True))
    assert all(torch.equal(old, kept) for old, kept, _ in pairs)
    assert any(not torch.equal(old, new) for old, _, new in pairs)


@pytest.mark.parametrize("slug", ["jacobi_forcing", "jacobi_vanilla"])
def test_a_job_says_how_guesses_settle_and_writes_what_its_weights_write(run, tmp_path, slug):
    params = {"trajectories": 4, "batch_size": 2} if slug == "jacobi_forcing" else {}
    outcome = run(f"decoding/{slug}", "arith", **params).outcome
    values = outcome.metrics | outcome.extra
    assert values["identity_errors"] == 0
    assert values["lossless"] == 1 or slug == "jacobi_forcing"
    assert values["block_efficiency"] == values["block_efficiency/both"] >= 1
    assert values["iterations"] > 0
    assert 0 <= values["stationary_prefix"] <= 8
    table = json.loads(next(tmp_path.rglob("windows.json")).read_text())
    assert set(table) == {"single", "recycling", "blocks", "both"}
    assert table["both"]["tokens"] == table["single"]["tokens"]
    assert math.isclose(table["single"]["tokens"] / table["single"]["forwards"], values["block_efficiency/single"])
