"""Fixtures shared by all tests: a tokenizer and a model small enough to train in a blink."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.data.example import Example
from tiny import make_tiny_examples, make_tiny_model, make_tiny_tokenizer


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer that knows the words of `tiny_examples`."""
    return make_tiny_tokenizer()


@pytest.fixture
def tiny_model() -> LlamaForCausalLM:
    """A fresh tiny Llama, the same for every test."""
    return make_tiny_model()


@pytest.fixture(scope="session")
def tiny_examples() -> tuple[Example, ...]:
    """Eight people and the town each lives in, with two wrong towns."""
    return make_tiny_examples()
