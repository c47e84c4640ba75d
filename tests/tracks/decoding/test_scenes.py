"""Scenes: pictures and questions, targets that read them, and drafts on the features of such targets."""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations

import numpy as np
import pytest
import torch
from transformers import LlavaForConditionalGeneration

from kdbench.errors import JobError, UsageError
from kdbench.registry import Registry, discover
from kdbench.tracks.decoding.blocks.drafting import Drafting
from kdbench.tracks.decoding.blocks.eagle import Eagle, eagle_loss, parts_of, predicted, teach
from kdbench.tracks.decoding.blocks.offline import OfflineTeacher
from kdbench.tracks.decoding.data.pictures import Pictured, SceneBatch
from kdbench.tracks.decoding.data.problems import split_of
from kdbench.tracks.decoding.data.scenes import QUESTIONS, Scene, make_crowds, make_scenes, render
from kdbench.tracks.decoding.data.specs import ScenesData
from kdbench.tracks.decoding.decoders.autoregressive import Autoregressive
from kdbench.tracks.decoding.decoders.session import Session
from kdbench.tracks.decoding.decoders.tree import Shape, TreeDecoder
from kdbench.tracks.decoding.networks.vlm import load
from kdbench.tracks.decoding.task import DecodingTask
from kdbench.tracks.llm.networks.models import scored_logits
from kdbench.tracks.llm.spec import Hub


@lru_cache(maxsize=1)
def registry() -> Registry:
    return discover()


@pytest.fixture
def task(tmp_path):
    spec = registry().task("decoding/scenes", "smoke", None)
    return DecodingTask(spec, seed=0, method="decoding/probe", folder=tmp_path)


# --- data -------------------------------------------------------------------------------------------------------------


def test_answers_are_what_the_picture_shows():
    items = make_scenes(ScenesData(), "train", 200)
    assert {item.level for item in items} == set(QUESTIONS)
    for item in items:
        shown = {(shape.row, shape.column): shape.code for shape in item.shapes}
        every = [[shown.get((row, column), "..") for column in range(4)] for row in range(4)]
        if item.level == "map":
            assert [line.split() for line in item.response.splitlines()[1:]] == every
        elif item.level == "count":
            assert str(len(item.shapes)) in item.response
        elif item.level in ("colours", "forms"):
            part = ("colours", "forms").index(item.level)
            assert item.response.splitlines() == ["".join(code[part] for code in row) for row in every]
        else:
            name = item.prompt.rstrip("?\n")[-1]
            line = every[int(name) - 1] if item.level == "row" else [row["abcd".index(name)] for row in every]
            assert item.response == f"In {item.level} {name}: {' '.join(line)}"
        assert item.check(f" {item.response}\n")
        assert not item.check(item.response[:-2])
        assert Scene.from_json(item.to_json()) == item


def test_splits_show_different_pictures_and_pictures_show_the_shapes():
    splits = {name: make_scenes(ScenesData(), name, 60) for name in ("train", "val", "test")}
    shown = [{item.content for item in items} for items in splits.values()]
    assert all(not one & other for one, other in combinations(shown, 2))
    item = next(item for item in splits["val"] if len(item.shapes) == 1)
    shape, picture = item.shapes[0], render(item)
    assert np.array_equal(picture, render(item))
    spread = np.ptp(picture.reshape(3, 4, 12, 4, 12).transpose(1, 3, 0, 2, 4).reshape(4, 4, -1), axis=2)
    assert np.unravel_index(spread.argmax(), (4, 4)) == (shape.row, shape.column)


def test_crowded_pictures_have_up_to_a_shape_in_every_cell():
    items = make_crowds(ScenesData(), 150)
    assert {len(item.shapes) for item in items} == set(range(1, 17))
    assert {split_of(item.content) for item in items} == {"train"}
    full = next(item for item in items if len(item.shapes) == 16 and item.level == "map")
    assert "." not in full.response


def test_pictures_travel_with_rows_and_prompts(task):
    batch = next(iter(task.train_loader()))
    assert isinstance(batch, SceneBatch)
    rows = task.split("train").rows
    expected = np.stack([render(rows[index]) for index in batch.index.tolist()])
    assert np.array_equal(batch.pictures.numpy(), expected)
    assert np.array_equal(batch.rows(torch.tensor([2, 0])).pictures.numpy(), expected[[2, 0]])
    prompts = task.prompts_of("val", torch.arange(2)).ids
    cut = prompts[1][:-1]
    assert isinstance(cut, Pictured)
    assert torch.equal(cut.picture, task.split("val").sequences.pictures[1])
    assert isinstance(prompts[1][0], int)


# --- targets ----------------------------------------------------------------------------------------------------------


def test_a_target_reads_pictures_as_transformers_does(task):
    target, batch = task.teacher(), next(iter(task.train_loader()))
    with torch.no_grad():
        whole = LlavaForConditionalGeneration.forward(
            target,
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            pixel_values=target.pixels(batch.pictures),
        ).logits[:, :-1][batch.scored]
        torch.testing.assert_close(scored_logits(target, batch), whole, rtol=1e-4, atol=1e-5)
        batch.pictures = batch.pictures.flip(0)
        assert not torch.allclose(scored_logits(target, batch), whole, atol=1e-4)
        batch.pictures = None
        with pytest.raises(JobError, match="visual tokens"):
            scored_logits(target, batch)


def test_decoding_reads_the_picture_of_the_prompt(task):
    target, prompts = task.teacher(), task.prompts_of("val", torch.arange(3)).ids
    written = task.decode(Autoregressive(), prompts, max_new=5).tokens
    for prompt, response in zip(prompts, written, strict=True):
        ids = torch.tensor([[*prompt, *response]])
        with torch.no_grad():
            embeddings = target.embed(ids, prompt.picture[None])
            body, head = target.body_and_head()
            best = head(body(inputs_embeds=embeddings).last_hidden_state).argmax(-1)[0, len(prompt) - 1 : -1]
        assert best.tolist() == response
    with pytest.raises(JobError, match="visual tokens"):
        task.decode(Autoregressive(), [list(prompt) for prompt in prompts])


def test_a_target_is_loaded_by_name(task, tmp_path):
    target = task.teacher()
    plain = LlavaForConditionalGeneration(target.config)
    plain.load_state_dict(target.state_dict())
    plain.save_pretrained(tmp_path / "llava")
    loaded = load(Hub(name=str(tmp_path / "llava")), torch.device("cpu")).eval()
    batch = next(iter(task.train_loader()))
    with torch.no_grad():
        assert torch.equal(scored_logits(loaded, batch), scored_logits(target, batch))
    target.save_pretrained(tmp_path / "ours")
    theirs = LlavaForConditionalGeneration.from_pretrained(tmp_path / "ours").state_dict()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in target.state_dict().items())
    loaded.config.get_text_config().save_pretrained(tmp_path / "llama")
    with pytest.raises(JobError, match="type llava"):
        load(Hub(name=str(tmp_path / "llama")), torch.device("cpu"))


def test_a_task_takes_its_target_by_name(task, tmp_path):
    task.teacher().save_pretrained(tmp_path / "llava")
    task.tokenizer.save_pretrained(tmp_path / "llava")
    overrides = {
        "data": {"train": 8, "val": 2, "test": 2, "counts": [1], "length": 128},
        "teacher": {"name": str(tmp_path / "llava"), "dtype": "float32"},
        "student": {"stages": [], "layers": 1, "width": 16, "heads": 2},
        "evaluation": {"max_new": 6, "timed": 1},
    }
    spec = registry().task("decoding/hf-scenes", "paper", overrides)
    named = DecodingTask(spec, seed=0, method="decoding/probe", folder=tmp_path)
    prompts = named.prompts_of("val", torch.arange(2)).ids
    assert "USER:" in named.tokenizer.decode(prompts[0])
    written = named.decode(Autoregressive(), prompts)
    decoder = TreeDecoder(Eagle(named.teacher(), ("pool",)), Shape(2, 2, 4))
    assert named.decode(decoder, prompts).tokens == written.tokens
    assert task.teacher_vocabulary == named.teacher_vocabulary


def test_samples_of_a_target_keep_their_pictures(task):
    prompts = task.prompts_of("train", torch.arange(3))
    batch = task.rollout(task.teacher(), prompts, max_new=4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(batch.pictures[1], prompts.ids[1].picture)
    assert task.tokens(task.student(), batch).teacher.shape[0] == int(batch.scored.sum())
    assert 0 < task.acceptance(task.student()) <= 1


# --- drafts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ways", [("none",), ("prune", "pool", "conv", "resampler")])
def test_a_draft_decodes_from_what_it_was_trained_on(task, ways):
    """Proposals after true features are those of the forward that trains, position by position."""
    target = task.teacher()
    torch.manual_seed(0)
    draft = Eagle(target, ways).eval()
    _, head = parts_of(target)
    batch = task.split("val").sequences.batch(torch.arange(2), "val")
    guessed = []
    kept = head.register_forward_hook(lambda module, args, output: guessed.append(output))
    with torch.no_grad():
        taught = teach(target, batch)
        guessed.clear()
        eagle_loss(draft, head, batch, taught, w_cls=1.0, w_reg=1.0)
    kept.remove()
    wanted = predicted(batch)
    places = wanted.nonzero().tolist()
    starts = task.split("val").sequences.starts.tolist()
    for row in range(2):
        mine = [guessed[0][place] for place, (r, _) in enumerate(places) if r == row]
        ids = batch.input_ids[row].tolist()
        prompt = Pictured(ids[: starts[row]], batch.pictures[row])
        drafting = Drafting(draft, target)
        drafting.start(Session(target).prefill([prompt[:-1]], 0), torch.tensor([prompt[-1]]))
        for step in range(3):
            logits, _ = drafting.begin()
            torch.testing.assert_close(logits[0], mine[step], rtol=1e-4, atol=1e-4)
            place = starts[row] - 1 + step
            drafting.commit(
                torch.tensor([[ids[place + 1]]]),
                taught.features[row : row + 1, place : place + 1],
                torch.ones(1, 1).bool(),
            )


def test_a_draft_that_predicts_the_features_has_nothing_left_to_learn(task, monkeypatch):
    target = task.teacher()
    draft = Eagle(target, ("drop",))
    _, head = parts_of(target)
    batch = task.split("val").sequences.batch(torch.arange(3), "val")
    taught = teach(target, batch)
    count = draft.visual_tokens

    def oracle(self, inputs, mask, positions):
        from types import SimpleNamespace

        return SimpleNamespace(last_hidden_state=taught.features[:, 1 + count :])

    monkeypatch.setattr(Eagle, "forward", oracle)
    losses, _ = eagle_loss(draft, head, batch, taught, w_cls=2.0, w_reg=1.0)
    log_p = taught.logits.log_softmax(-1)
    assert float(losses["reg"]) == 0.0
    torch.testing.assert_close(losses["cls"], -2 * (log_p.exp() * log_p).sum(-1).mean())


def test_a_draft_keeps_its_precision_beside_a_target_of_less(task):
    target = task.teacher(trainable=True).requires_grad_(False).eval().to(torch.bfloat16)
    draft = Eagle(target, ("pool",))
    batch = task.split("val").sequences.batch(torch.arange(2), "val")
    losses, _ = eagle_loss(draft, parts_of(target)[1], batch, teach(target, batch), w_cls=0.1, w_reg=1.0)
    sum(losses.values()).backward()
    assert {part.dtype for part in losses.values()} == {torch.float32}
    assert draft.fusion.weight.grad.dtype == torch.float32
    prompts = task.prompts_of("val", torch.arange(1)).ids
    written = TreeDecoder(draft, Shape(2, 2, 4)).decode(target, prompts, max_new=4, eos=-1, pad=0)
    assert len(written.tokens[0]) == 4


def test_a_stored_target_says_what_it_said(task, tmp_path):
    rows = task.split("train").sequences.rows(torch.arange(3))
    seen = []
    stored = OfflineTeacher(task.teacher(), rows, tmp_path, 2, task.device, seen.append)
    batch = rows.batch(torch.tensor([2, 0]))
    for kept, said in zip(stored(batch), teach(task.teacher(), batch), strict=True):
        present = said.abs() > 0 if said.dim() == 3 else torch.ones_like(said, dtype=torch.bool)
        if said.dim() == 3:  # nothing is stored of padding
            present &= batch.attention_mask.bool()[..., None]
        torch.testing.assert_close(kept[present], said[present], rtol=2e-3, atol=2e-3)
    assert seen == [2, 1]
    assert stored.bytes == sum(np.load(path).nbytes for path in tmp_path.glob("*.npy"))


def test_only_the_draft_learns(task):
    target, batch = task.teacher(), next(iter(task.train_loader()))
    draft = Eagle(target, ("prune", "pool", "conv", "resampler"))
    generator = torch.Generator().manual_seed(0)
    for _ in range(8):  # every way is taken at least once
        losses, read = eagle_loss(
            draft,
            parts_of(target)[1],
            batch,
            teach(target, batch),
            w_cls=0.1,
            w_reg=1.0,
            noise=0.1,
            generator=generator,
        )
        (sum(losses.values()) + read.price).backward()
    assert all(parameter.grad is not None and bool(parameter.grad.abs().sum() > 0) for parameter in draft.parameters())
    assert all(parameter.grad is None for parameter in target.parameters())
    assert not any(name.startswith(("head", "embed")) for name, _ in draft.named_parameters())


def test_specifications_that_cannot_be():
    with pytest.raises(UsageError, match="once each"):
        registry().task("decoding/scenes", "smoke", {"data": {"template": "{question}"}})
    with pytest.raises(UsageError, match="multiple of patch"):
        registry().task("decoding/scenes", "smoke", {"teacher": {"patch": 7}})
