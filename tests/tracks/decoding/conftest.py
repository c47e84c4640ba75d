"""A target and a draft that disagree about small vocabularies."""

from __future__ import annotations

import pytest

from tests.helpers.causal import llama


@pytest.fixture(scope="module")
def target():
    return llama(seed=1)


@pytest.fixture(scope="module")
def draft():
    return llama(seed=2, width=8, layers=1)
