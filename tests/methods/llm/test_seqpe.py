"""SeqPE: what each part adds to training, what the comparisons are, and the two identities."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from kdbench.errors import UsageError
from kdbench.tracks.llm.data.specs import LengthsData
from kdbench.tracks.llm.spec import Hub, Net
from kdbench_methods.llm.seqpe import SeqPeParams, encoding_options, network, options_of


def test_a_job_trains_both_networks_and_measures_the_code(run):
    result = run("seqpe", "text-lengths")
    outcome = result.outcome
    assert outcome.cost["steps"] == 4
    assert outcome.cost["aux_steps"] == 1
    assert outcome.extra["collisions"] == 0
    assert {f"image_accuracy/{n}x{n}" for n in (4, 6, 8)} <= set(outcome.extra)
    assert all(0 <= outcome.extra[f"contrast_accuracy{part}"] <= 1 for part in ("", "/window", "/edits"))
    assert {"lm", "contrast", "transfer"} <= set(result.curve[0])
    assert result.column("images/transfer")


def test_sinusoids_have_no_transfer_loss_and_no_further_losses(run):
    result = run("seqpe", "text-lengths", encoding="sinusoidal", images=0.0)
    assert abs(result.outcome.extra["transfer_loss"]) < 1e-6
    assert not {"contrast", "transfer"} & set(result.curve[0])


def test_every_part_changes_the_network(run):
    """Also shifted positions, which seed 0 draws within four steps at this rate."""
    changes = [{"contrast": 0.0}, {"transfer": 0.0}, {"contrast": 0.0, "shift_rate": 0.9}, {"encoding": "learned"}]
    runs = [run("seqpe", "text-lengths", images=0.0, **change) for change in changes]
    assert len({one.outcome.metrics["perplexity/256"] for one in runs}) == len(runs)
    assert "transfer" not in runs[1].curve[0]
    assert "contrast" not in runs[0].curve[0]


def test_other_text_and_other_precision(run):
    metrics = run("seqpe", "text", overrides={"recipe": {"precision": "bfloat16"}}, images=0.0).outcome.metrics
    assert 1 < metrics["perplexity"] < 1000


def test_a_pretrained_student_gives_no_sizes():
    task = SimpleNamespace(spec=SimpleNamespace(student=Hub(name="owner/name")))
    with pytest.raises(UsageError, match="a network of its own"):
        network(task, SeqPeParams(layers=2))


def test_rows_longer_than_the_positions_are_refused():
    rows = SimpleNamespace(sequences=SimpleNamespace(ids=torch.zeros(3, 64)))
    spec = SimpleNamespace(student=Net(layers=1, width=16), data=LengthsData())
    task = SimpleNamespace(spec=spec, tokenizer=None, split=lambda name: rows)
    with pytest.raises(UsageError, match="512 tokens"):
        network(task, SeqPeParams(max_position=300))


def test_parameters_reach_what_they_name():
    params = SeqPeParams(loss_scale=2.0, outside=0.25, scalar_scale=3.0, base=16)
    assert (options_of(params).scale, options_of(params).outside) == (2.0, 0.25)
    assert (encoding_options(params)["scale"], encoding_options(params)["base"]) == (3.0, 16)
