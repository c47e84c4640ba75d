"""Tiny causal models, and exact distributions of what they write."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM


def llama(vocabulary: int = 5, width: int = 16, layers: int = 2, seed: int = 0, sharp: float = 8.0):
    """A small Llama whose distributions are far from uniform."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=128,
        use_cache=False,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(sharp)
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.mul_(20)
            layer.self_attn.o_proj.weight.mul_(20)
    return model


def gpt2(vocabulary: int = 5, seed: int = 0):
    """A small GPT-2."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocabulary,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=128,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        model.transformer.wte.weight.mul_(20)
    return model


@torch.no_grad()
def exact(model, prompt, length, temperature=1.0):
    """Probability of every response of ``length`` tokens after ``prompt``, by enumeration."""
    vocabulary = model.config.vocab_size
    responses = list(itertools.product(range(vocabulary), repeat=length))
    ids = torch.tensor([[*prompt, *response] for response in responses])
    logprobs = (model(ids).logits.double() / temperature).log_softmax(-1)[:, len(prompt) - 1 : -1]
    total = logprobs.gather(-1, ids[:, len(prompt) :, None]).squeeze(-1).sum(1)
    return responses, total.exp().numpy()


def frequencies(responses, written):
    """Counts of each response in what was written."""
    place = {response: i for i, response in enumerate(responses)}
    return np.bincount([place[tuple(text)] for text in written], minlength=len(responses))


def chi_square(counts, expected, least=5.0):
    """p-value of counts under probabilities; rare outcomes are put together."""
    from scipy.stats import chisquare

    expected = expected / expected.sum() * counts.sum()
    rare = expected < least
    observed = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    if wanted[-1] < least:  # too little even together
        observed = np.append(observed[:-2], observed[-2:].sum())
        wanted = np.append(wanted[:-2], wanted[-2:].sum())
    return float(chisquare(observed, wanted).pvalue)
