"""Activation patching: against models put together by hand, where the patched function is an ordinary model's."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from transformers import LlamaForCausalLM

from expunge.audit.patching import (
    Positions,
    depth,
    knowledge_recovery,
    patched_log_probs,
    unlearning_depth,
)
from expunge.data.collate import Encoder
from expunge.data.example import Example
from expunge.errors import InputError
from tiny import make_tiny_examples, make_tiny_model, make_tiny_tokenizer

ENCODER = Encoder(make_tiny_tokenizer())
EXAMPLES = (*make_tiny_examples(), Example("where does ada live ?", "in oslo the town", ("in lima",)))


def double(seed: int, **changes: object) -> LlamaForCausalLM:
    return make_tiny_model(seed, tie_word_embeddings=False, **changes).double()


@pytest.fixture(scope="module")
def models() -> tuple[LlamaForCausalLM, LlamaForCausalLM, LlamaForCausalLM]:
    return double(0), double(1), double(2)


def log_prob(model: LlamaForCausalLM, example: Example) -> float:
    """Mean over the answer's tokens, one example at a time, through the model's own forward."""
    encoded = ENCODER.encode(example.prompt, example.answer)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([encoded.ids])).logits[0]
    found = logits.log_softmax(-1)[range(len(encoded.ids) - 1), encoded.ids[1:]]
    return float(found[encoded.answer_start - 1 :].mean())


def joined(source: LlamaForCausalLM, original: LlamaForCausalLM, block: int) -> LlamaForCausalLM:
    """The source up to `block`, the original after it: what patching the residual at all positions computes."""
    model = copy.deepcopy(original)
    model.model.embed_tokens.load_state_dict(source.model.embed_tokens.state_dict())
    for i in range(block + 1):
        model.model.layers[i].load_state_dict(source.model.layers[i].state_dict())
    return model


def test_patching_every_position_is_the_two_models_joined(
    models: tuple[LlamaForCausalLM, LlamaForCausalLM, LlamaForCausalLM],
) -> None:
    original, source, _ = models
    plain, patched = patched_log_probs(original, source, ENCODER, EXAMPLES, "all", batch_size=4)
    for block in range(2):
        hybrid = joined(source, original, block)
        assert [row[block] for row in patched] == pytest.approx([log_prob(hybrid, e) for e in EXAMPLES])
    assert plain == pytest.approx([log_prob(original, e) for e in EXAMPLES])


def test_patching_the_answers_positions_leaves_the_others(
    models: tuple[LlamaForCausalLM, LlamaForCausalLM, LlamaForCausalLM],
) -> None:
    """After the last block nothing reads other positions, so both ways agree there and not before."""
    original, source, _ = models
    _, where = patched_log_probs(original, source, ENCODER, EXAMPLES, "answer")
    _, everywhere = patched_log_probs(original, source, ENCODER, EXAMPLES, "all")
    assert [row[1] for row in where] == pytest.approx([row[1] for row in everywhere])
    assert all(abs(one[0] - other[0]) > 1e-3 for one, other in zip(where, everywhere, strict=True))


def test_depth_by_hand() -> None:
    assert depth([1.0, 3.0], [0.5, 3.0]) == pytest.approx((0.5 + 3) / 4)
    assert depth([1.0, 0.04, -2.0], [0.25, 9.0, 9.0]) == pytest.approx(0.25)
    assert depth([2.0, 2.0], [-1.0, 5.0]) == pytest.approx(0.5)
    assert math.isnan(depth([0.05, 0.0], [1.0, 1.0]))
    assert depth([0.05], [0.025], least=0.01) == pytest.approx(0.5)


@pytest.mark.parametrize("positions", ["answer", "all"])
def test_depth_is_nought_for_the_original_and_one_for_the_retrained(
    models: tuple[LlamaForCausalLM, LlamaForCausalLM, LlamaForCausalLM], positions: Positions
) -> None:
    original, retrained, _ = models
    for unlearned, wanted in ((original, 0.0), (retrained, 1.0)):
        found = unlearning_depth(original, unlearned, retrained, ENCODER, EXAMPLES, positions=positions)
        held = [score for score in found.examples if not math.isnan(score)]
        assert held and held == pytest.approx([wanted] * len(held))
        assert found.value == pytest.approx(wanted)


def test_depth_does_not_see_what_comes_after_the_last_block(
    models: tuple[LlamaForCausalLM, LlamaForCausalLM, LlamaForCausalLM],
) -> None:
    """The blind side of the score in the other direction: a head that is silenced is called hidden, all of it."""
    original, retrained, _ = models
    silenced = copy.deepcopy(original)
    torch.nn.init.zeros_(silenced.lm_head.weight)
    assert unlearning_depth(original, silenced, retrained, ENCODER, EXAMPLES).value == 0


def test_recovery_is_whole_where_the_difference_lies_before_the_patch_and_none_behind_it(
    models: tuple[LlamaForCausalLM, LlamaForCausalLM, LlamaForCausalLM],
) -> None:
    original, other, _ = models
    before, behind = copy.deepcopy(original), copy.deepcopy(original)
    before.model.layers[1].mlp.gate_proj.load_state_dict(other.model.layers[1].mlp.gate_proj.state_dict())
    behind.model.layers[1].mlp.down_proj.load_state_dict(other.model.layers[1].mlp.down_proj.state_dict())
    found = knowledge_recovery(original, before, ENCODER, EXAMPLES, window=1, new_tokens=4)
    assert [w.blocks for w in found.windows] == [(0,), (1,)]
    assert [w.krs for w in found.windows] == pytest.approx([0, 1])
    assert found.windows[1].kl == pytest.approx(0, abs=1e-12) and found.windows[0].kl == pytest.approx(found.kl)
    nothing = knowledge_recovery(original, behind, ENCODER, EXAMPLES, window=1, new_tokens=4)
    assert [w.krs for w in nothing.windows] == pytest.approx([0, 0])
    attention = knowledge_recovery(original, before, ENCODER, EXAMPLES, sites="attention", window=1, new_tokens=4)
    assert [w.krs for w in attention.windows] == pytest.approx([0, 0])


def test_recovery_is_whole_when_all_that_differs_is_patched(
    models: tuple[LlamaForCausalLM, LlamaForCausalLM, LlamaForCausalLM],
) -> None:
    """Attention and MLP inputs of all blocks, with the original's own down projections behind."""
    original, other, _ = models
    changed = copy.deepcopy(original)
    for block, theirs in zip(changed.model.layers, other.model.layers, strict=True):
        block.self_attn.load_state_dict(theirs.self_attn.state_dict())
        block.mlp.up_proj.load_state_dict(theirs.mlp.up_proj.state_dict())
    found = knowledge_recovery(original, changed, ENCODER, EXAMPLES, sites="both", new_tokens=3)
    assert [w.blocks for w in found.windows] == [(0, 1)]
    assert found.mean == pytest.approx(1)


def test_recovery_by_a_forward_written_out(
    models: tuple[LlamaForCausalLM, LlamaForCausalLM, LlamaForCausalLM],
) -> None:
    """MSE and KL over the original's greedy tokens, one example at a time; the patch is an ordinary model here too.

    In the last block the input of down is the original's, and down the unlearned one's: the hybrid adds the original's
    MLP term, through the unlearned down, to the residual of the unlearned model after attention.
    """
    original, unlearned, _ = models
    squares = plain = kl = 0.0
    for example in EXAMPLES:
        ids = list(ENCODER.encode_prompt(example.prompt))
        start = len(ids)
        with torch.no_grad():
            for _ in range(3):
                ids.append(int(original(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
                assert ids[-1] != ENCODER.tokenizer.eos_token_id
            whole = torch.tensor([ids[:-1]])
            wanted, found = (m(input_ids=whole).logits[0, start - 1 :] for m in (original, unlearned))
            inner = [
                m.model(input_ids=whole, output_hidden_states=True).hidden_states[1] for m in (original, unlearned)
            ]
            residual = _after_attention(unlearned, inner[1])
            theirs = _after_attention(original, inner[0])
            block = original.model.layers[1]
            x = block.post_attention_layernorm(theirs)
            hidden = torch.nn.functional.silu(block.mlp.gate_proj(x)) * block.mlp.up_proj(x)
            states = unlearned.model.norm(residual + unlearned.model.layers[1].mlp.down_proj(hidden))
            patched = unlearned.lm_head(states)[0, start - 1 :]
        plain += float((wanted - found).square().sum())
        squares += float((wanted - patched).square().sum())
        p, q = wanted.log_softmax(-1), patched.log_softmax(-1)
        kl += float((p.exp() * (p - q)).sum())
    result = knowledge_recovery(original, unlearned, ENCODER, EXAMPLES, window=1, new_tokens=3, batch_size=4)
    assert result.windows[1].krs == pytest.approx(1 - squares / plain)
    assert result.windows[1].kl == pytest.approx(kl / (3 * len(EXAMPLES)))
    assert result.mse == pytest.approx(plain / (3 * len(EXAMPLES) * 96))


def _after_attention(model: LlamaForCausalLM, hidden: torch.Tensor) -> torch.Tensor:
    """The residual between attention and MLP of the last block."""
    block, seen = model.model.layers[1], []
    handle = block.post_attention_layernorm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    positions = torch.arange(hidden.shape[1])[None]
    block(hidden, position_embeddings=model.model.rotary_emb(hidden, positions), position_ids=positions)
    handle.remove()
    return seen[0]


def test_continuations_end_at_the_end_of_sequence() -> None:
    """A model that says nothing but the end is compared at one position a prompt, and one that never ends at all."""
    for said, ends in ((ENCODER.tokenizer.eos_token_id, True), (9, False)):
        saying = double(0)
        saying.lm_head.bias = torch.nn.Parameter(1e3 * torch.eye(96, dtype=torch.float64)[said])
        other = copy.deepcopy(saying)
        other.lm_head.weight.data[5] += 1
        one, many = (knowledge_recovery(saying, other, ENCODER, EXAMPLES[:3], new_tokens=n).mse for n in (1, 6))
        assert (one == pytest.approx(many, rel=1e-9)) is ends


def test_equal_models_leave_recovery_undefined_and_strangers_are_refused(tiny_model: LlamaForCausalLM) -> None:
    found = knowledge_recovery(tiny_model, tiny_model, ENCODER, EXAMPLES, new_tokens=2)
    assert found.mse == 0 and math.isnan(found.mean)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tiny_model.modules())
    with pytest.raises(InputError, match="do not fit"):
        knowledge_recovery(tiny_model, make_tiny_model(num_hidden_layers=3), ENCODER, EXAMPLES)
    with pytest.raises(InputError, match="no example"):
        patched_log_probs(tiny_model, tiny_model, ENCODER, [])
