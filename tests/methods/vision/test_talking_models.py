"""Talking models: the way of a message, controls of equal size, foreign labels, and what is left without words."""

import pytest
import torch

from kdbench.errors import UsageError
from kdbench.tracks.vision.models import build
from kdbench_methods.vision import talking_models as method


def talk(student="rn(4,1)", teacher="rn(6,1)", **changes):
    torch.manual_seed(0)
    one, other = build(student, 5), build(teacher, 7).eval()  # another label space
    other.requires_grad_(False)
    made = method.Conversation(one, other, method.TalkingModelsParams(**changes))
    x = torch.randn(3, 3, 16, 16)
    made.codecs = method.make_codecs(changes.get("mode", "two-way"), made.widths(x), made.params)
    return made, one, other, x


@pytest.mark.parametrize(
    "pair", [("rn(4,1)", "vit(16,2,2)"), ("vit(16,2,2)", "mixer(16,2)"), ("mixer(16,1)", "rn(4,1)")]
)
def test_families_understand_each_other(pair):
    made, _, _, x = talk(*pair)
    plain, replies, messages, states, (said, theirs) = made(x)
    assert plain.shape == replies[0].shape == (3, 5)
    assert said.shape == theirs.shape == (3, 16, 32)
    assert all(torch.isfinite(term) for term in (*messages, *states))


def test_the_message_passes_through_the_teachers_upper_blocks():
    made, student, teacher, x = talk()
    _, (reply,), _, _, _ = made(x)
    reply.sum().backward()
    for name in ("student_low", "to_teacher", "teacher_high", "to_student"):
        assert all(parameter.grad.abs().sum() > 0 for parameter in made.codecs[name].parameters()), name
    assert student.stem[0].weight.grad.abs().sum() > 0  # through the teacher back into the student
    assert all(parameter.grad is None for parameter in teacher.parameters())
    with torch.no_grad():
        teacher.stages[2][0].conv1.weight.add_(1.0)  # an upper block has a say in the reply
        assert not torch.allclose(made(x)[1][0], reply)


def test_a_student_that_only_listens_sends_nothing():
    made, student, _, x = talk(mode="one-way")
    _, (reply,), messages, states, _ = made(x)
    reply.sum().backward()
    assert student.stem[0].weight.grad is None
    assert student.fc.weight.grad.abs().sum() > 0
    assert len(messages) == len(states) == 1


def test_rounds_go_on_with_what_was_understood():
    made, _, _, x = talk(rounds=2)
    _, replies, messages, states, _ = made(x)
    assert len(replies) == 2
    assert len(messages) == len(states) == 4
    torch.testing.assert_close(replies[0], talk(rounds=1)[0](x)[1][0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(replies[0], replies[1])


@pytest.mark.parametrize("mode", ["one-way", "hint"])
def test_controls_have_as_many_parameters(mode):
    def size(mode):
        return sum(parameter.numel() for parameter in talk(mode=mode)[0].codecs.parameters())

    assert size(mode) == pytest.approx(size("two-way"), rel=0.02)


def test_plain_logits_are_those_of_the_student_alone():
    for student in ("rn(4,1)", "vit(16,2,2)", "mixer(16,2)"):
        made, one, _, x = talk(student)
        one.eval()
        torch.testing.assert_close(made(x)[0], one(x))


def test_decoded_states_leave_the_running_statistics_alone():
    made, student, _, x = talk(student_high=2)
    made(x)
    assert student.stages[2][0].bn1.num_batches_tracked == 1
    assert student.stages[2][0].bn1.training


def test_blocks_that_are_not_there_are_named():
    with pytest.raises(UsageError, match="student_low 1 and student_high 4: expected 0 <= low < high <= 3"):
        talk(student_high=4)


def test_without_words_it_is_no_distillation(smoke):
    silent = smoke("talking_models", "related", {"w_interact": 0.0, "w_mc": 0.0, "w_sc": 0.0})
    assert silent.metrics == smoke("no_kd", "related").metrics


@pytest.mark.parametrize("params", [{"rounds": 2}, {"mode": "one-way"}, {"mode": "hint"}, {"finetune": True}])
def test_a_teacher_of_other_labels(smoke, params):
    outcome = smoke("talking_models", "related", params)
    assert outcome.status == "ok", outcome.error
    assert outcome.cost["teacher_queries"] == outcome.cost["samples"]
    if params.get("mode") != "hint":
        assert 0 <= outcome.extra["interactive_val_top1"] <= 1
        assert -1 <= outcome.extra["message_cosine"] <= 1
