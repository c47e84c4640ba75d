"""Decoding under an automaton: the distribution, the guarantee, pruning, and forwards that are saved."""

from __future__ import annotations

import itertools

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from kdbench.errors import JobError
from kdbench.tracks.decoding.blocks.automata import DEAD, token_texts
from kdbench.tracks.decoding.blocks.hmm import HMM
from kdbench.tracks.decoding.blocks.templates import Slot, template
from kdbench.tracks.decoding.data.formats import Format
from kdbench.tracks.decoding.decoders.autoregressive import Autoregressive
from kdbench.tracks.decoding.decoders.constrained import Constrained
from tests.helpers.causal import chi_square, exact, frequencies, llama

END, PROMPTS = 0, [[1, 2, 3], [4], [2, 2, 1]]
OPTIONS = {"eos": END, "pad": END}


@pytest.fixture(scope="module")
def tokenizer():
    words = {"<eos>": 0, "a": 1, "b": 2, "ab": 3, "c": 4}
    made = Tokenizer(models.WordLevel(words, unk_token="c"))
    made.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>")


@pytest.fixture(scope="module")
def model():
    return HMM.random(6, 5, torch.Generator().manual_seed(3))


def required(*parts) -> Format:
    return Format("-".join(map(str, parts)), "", template(*parts), "")


SIMPLE = required(Slot(stop=("ab",)), Slot("x", "bc", 1, 2))


def test_tokens_are_known_by_their_texts(tokenizer):
    assert token_texts(tokenizer) == ["", "a", "b", "ab", "c"]


def test_without_a_format_it_writes_what_the_target_writes(target, tokenizer, model):
    for decoder in (Constrained(tokenizer), Constrained(tokenizer, model), Constrained(tokenizer, model, eps=0.3)):
        plain = Autoregressive().decode(target, PROMPTS, max_new=12, **OPTIONS)
        done = decoder.decode(target, PROMPTS, max_new=12, **OPTIONS)
        assert done.tokens == plain.tokens
        assert done.forwards == [len(text) for text in done.tokens]


def test_where_all_is_accepted_samples_are_the_targets(target, tokenizer, model):
    responses, wanted = exact(target, PROMPTS[0], 3)
    generator = torch.Generator().manual_seed(0)
    done = Constrained(tokenizer, model).decode(
        target, [PROMPTS[0]] * 2000, max_new=3, eos=-1, pad=0, temperature=1.0, generator=generator
    )
    assert chi_square(frequencies(responses, done.tokens), wanted) > 1e-4


def stepwise(target, decoder, prompt, length, factor):
    """Probability of every response of ``length`` tokens, if each is drawn as p(v) factor(text so far, v)."""
    found = {(): 1.0}
    for _ in range(length):
        after = {}
        for text, weight in found.items():
            if END in text:
                after[(*text, END)] = weight
                continue
            with torch.no_grad():
                p = target(torch.tensor([[*prompt, *text]])).logits[0, -1].double().softmax(-1)
            share = [float(p[v]) * factor(text, v) for v in range(5)]
            for v, value in enumerate(share):
                if value:
                    after[(*text, v)] = weight * value / sum(share)
        found = after
    return found


def test_samples_are_p_times_the_probability_that_the_format_is_met(target, tokenizer, model):
    length, count = 4, 3000
    decoder = Constrained(tokenizer, model, jump=False).in_format(SIMPLE)
    automaton = decoder.automaton()

    def met(text, v):
        """C(v) by enumeration."""
        whole = [[*text, v, *rest] for rest in itertools.product(range(5), repeat=length - len(text) - 1)]
        p = model.log_likelihood(torch.tensor(whole)).double().exp()
        return float(p[[automaton.accepts(row) for row in whole]].sum() / p.sum())

    def masked(text, v):
        return float(automaton.walk([*text, v]) != DEAD)

    generator = torch.Generator().manual_seed(1)
    done = decoder.decode(target, [PROMPTS[0]] * count, max_new=length, temperature=1.0, generator=generator, **OPTIONS)
    texts = [tuple(text + [END] * (length - len(text))) for text in done.tokens]
    for factor, right in ((met, True), (masked, False)):
        wanted = stepwise(target, decoder, PROMPTS[0], length, factor)
        responses, values = list(wanted), torch.tensor(list(wanted.values())).numpy()
        assert set(texts) <= set(responses)
        assert (chi_square(frequencies(responses, texts), values) > 1e-4) == right


TEMPLATES = [
    SIMPLE,
    required("abab"),
    required(Slot(stop=("cc", "bab")), ["a", "ab"]),
    required(Slot("x", "a", 2, 3, stop=("b",)), Slot("y", "c", 1, 4)),
    required(Slot(least=3, stop=("ac",))),
]


@pytest.mark.parametrize("eps", [0.0, 0.05, 0.9])
def test_the_format_is_met_whenever_it_can_be(tokenizer, model, eps):
    for seed, made in itertools.product((1, 2), TEMPLATES):
        target = llama(seed=seed)
        decoder = Constrained(tokenizer, model, eps=eps).in_format(made)
        shortest = int(decoder.automaton().distance[0])
        for length, temperature in ((shortest, 0.0), (shortest + 1, 1.0), (shortest + 6, 0.0)):
            generator = torch.Generator().manual_seed(seed)
            done = decoder.decode(
                target, PROMPTS, max_new=length, temperature=temperature, generator=generator, **OPTIONS
            )
            for text in done.tokens:
                assert len(text) <= length
                assert made.template.read(tokenizer.decode(text, skip_special_tokens=True)) is not None


def test_the_mask_alone_keeps_the_steps_but_not_the_promise(target, tokenizer):
    made = required(Slot(stop=("cacacac",)))
    free = Constrained(tokenizer, reserve=False).in_format(made)
    done = free.decode(target, PROMPTS, max_new=10, **OPTIONS)
    for text in done.tokens:
        assert free.automaton().walk(text) != DEAD
        assert not free.automaton().accepts(text)
    kept = Constrained(tokenizer, reserve=True).in_format(made).decode(target, PROMPTS, max_new=10, **OPTIONS)
    assert all(free.automaton().accepts(text) for text in kept.tokens)


def test_rows_do_not_touch_each_other(target, tokenizer, model):
    decoder = Constrained(tokenizer, model, eps=0.1).in_format(SIMPLE)
    together = decoder.decode(target, PROMPTS, max_new=9, **OPTIONS)
    for place, prompt in enumerate(PROMPTS):
        alone = decoder.decode(target, [prompt], max_new=9, **OPTIONS)
        assert alone.tokens == [together.tokens[place]]
        assert alone.forwards == [together.forwards[place]]


def test_tokens_without_a_choice_take_no_forward_and_change_nothing(target, tokenizer, model):
    made = required(Slot(stop=("ca",)), "bcbcbc")
    fast, slow = (Constrained(tokenizer, model, jump=jump).in_format(made) for jump in (True, False))
    quick, plain = (decoder.decode(target, PROMPTS, max_new=14, **OPTIONS) for decoder in (fast, slow))
    assert quick.tokens == plain.tokens
    assert plain.forwards == [len(text) for text in plain.tokens]
    for text, forwards, forced in zip(quick.tokens, quick.forwards, quick.extra["forced"]):
        assert forwards + forced == len(text)
        assert forced >= len("bcbcbc")  # the end as well, but the first of them can come with the stop literal


def test_pruning_is_counted(target, tokenizer, model):
    whole, some = (
        Constrained(tokenizer, model, eps=eps).in_format(SIMPLE).decode(target, PROMPTS, max_new=9, **OPTIONS)
        for eps in (0.0, 0.3)
    )
    assert whole.extra["kept"] == [6.0] * 3
    assert all(1 <= number < 6 for number in some.extra["kept"])


def test_a_model_of_prompt_and_response_reads_the_prompt(target, tokenizer, model):
    decoder = Constrained(tokenizer, model, reads_prompt=True, jump=False).in_format(SIMPLE)
    seen = []
    ahead = decoder.lookahead(6, torch.device("cpu"))
    plain = ahead.reweigh
    ahead.reweigh = lambda message, *rest: seen.append(message) or plain(message, *rest)
    decoder.decode(target, [[4, 1, 2, 3]], max_new=6, **OPTIONS)
    assert torch.allclose(seen[0], model(torch.tensor([[1, 2, 3]])).following)


def test_what_is_saved_decodes_alike(target, tokenizer, model, tmp_path):
    class Task:
        device = torch.device("cpu")

    Task.tokenizer = tokenizer
    for decoder in (Constrained(tokenizer, model, eps=0.2), Constrained(tokenizer, reserve=False, jump=False)):
        folder = tmp_path / str(decoder.eps)
        decoder.save(folder)
        again = Constrained.load(folder, Task)
        assert (again.eps, again.reserve, again.jump) == (decoder.eps, decoder.reserve, decoder.jump)
        first, second = (
            one.in_format(SIMPLE).decode(target, PROMPTS, max_new=9, **OPTIONS) for one in (decoder, again)
        )
        assert first.tokens == second.tokens
        assert set(again.networks()) == set(decoder.networks())


def test_what_cannot_be_done_is_said(target, tokenizer, model):
    decoder = Constrained(tokenizer, model).in_format(required("abcabc"))
    with pytest.raises(JobError, match="at least 4 tokens"):
        decoder.decode(target, PROMPTS, max_new=3, **OPTIONS)
    with pytest.raises(ValueError, match="generator"):
        decoder.decode(target, PROMPTS, max_new=8, temperature=1.0, **OPTIONS)
