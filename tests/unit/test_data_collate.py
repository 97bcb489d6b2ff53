"""Ids have the boundary where the answer begins, whatever the tokenizer does around it."""

from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE, WordLevel
from transformers import PreTrainedTokenizerFast

from expunge.data.collate import Encoded, Encoder, collate, join
from expunge.errors import InputError

CHAT = "{% for m in messages %}<u>{{ m['content'] }}</u>{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"


def byte_level(front: bool = False, back: bool = False) -> PreTrainedTokenizerFast:
    """One token per byte, but " P" and "ar" merged: so a space belongs to the word after it, as in real models."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate(["<s>", "</s>", *alphabet, "ĠP", "ar", "ĠPar"])}
    tokenizer = Tokenizer(BPE(vocabulary, [("Ġ", "P"), ("a", "r"), ("ĠP", "ar")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if front or back:
        single = ("<s> " if front else "") + "$A" + (" </s>" if back else "")
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def parts(encoder: Encoder, encoded: Encoded) -> tuple[str, str]:
    decode = encoder.tokenizer.decode
    return decode(encoded.ids[: encoded.answer_start]), decode(encoded.ids[encoded.answer_start :])


words = st.text("Paris abc.é", min_size=1, max_size=12).filter(str.strip)


@given(words, words)
def test_the_ids_are_those_of_the_whole_text_and_the_answer_begins_after_the_prompt(prompt: str, answer: str) -> None:
    encoder = Encoder(byte_level())
    gap = "" if prompt[-1].isspace() or answer[0].isspace() else " "
    encoded = encoder.encode(prompt, answer)
    assert list(encoded.ids) == encoder.tokenizer(prompt + gap + answer)["input_ids"]
    before, after = parts(encoder, encoded)
    assert before + after == prompt + gap + answer
    # Only a token that straddles the boundary, such as a space and "P", may carry prompt text into the answer.
    assert after.strip() == answer.strip() and prompt.startswith(before)


@pytest.mark.parametrize(
    ("prompt", "answer", "expected"),
    [
        ("It is", "Paris", " Paris"),
        ("It is ", "Paris", " Paris"),
        ("It is", " Paris", " Paris"),
        ("is\n", "Paris", "Paris"),
    ],
)
def test_one_space_at_most_stands_between(prompt: str, answer: str, expected: str) -> None:
    encoder = Encoder(byte_level())
    assert parts(encoder, encoder.encode(prompt, answer))[1] == expected


def test_special_tokens_stay_in_front_and_never_follow() -> None:
    encoder = Encoder(byte_level(front=True, back=True))
    encoded = encoder.encode("It is", "Paris")
    assert encoded.ids[0] == 0 and 1 not in encoded.ids
    assert parts(encoder, encoded)[1] == " Paris"
    assert encoder.encode_prompt("It is") == encoded.ids[: encoded.answer_start]
    assert encoder.describe() == {"template": "plain", "max_length": 512, "bos": "<s>"}
    assert Encoder(byte_level()).describe()["bos"] == "none"


def test_a_chat_template_wraps_the_prompt_and_adds_no_second_bos() -> None:
    tokenizer = byte_level(front=True)
    tokenizer.chat_template = CHAT
    encoder = Encoder(tokenizer, template="chat")
    encoded = encoder.encode("Where?", "Paris")
    assert parts(encoder, encoded) == ("<u>Where?</u><a>", " Paris")
    assert parts(encoder, Encoded(encoder.encode_prompt("Where?"), 0))[1] == "<u>Where?</u><a>"
    assert encoder.question("Where?") == "Where?"
    assert Encoder(tokenizer).question("Where?") == "Question: Where?\nAnswer:"


def test_plain_text_predicts_every_token_after_the_first() -> None:
    encoder = Encoder(byte_level())
    assert encoder.encode_text("abc").answer_start == 1
    assert encoder.encode("", "abc") == encoder.encode_text("abc")
    with pytest.raises(InputError, match="no token to predict"):
        encoder.encode_text("a")


@pytest.mark.parametrize("answer", ["", " ", "\n"])
def test_an_answer_of_nothing_is_refused(answer: str) -> None:
    with pytest.raises(InputError, match="tokenises to nothing"):
        Encoder(byte_level()).encode("It is", answer)


def test_an_answer_that_the_tokenizer_drops_is_refused(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    from tokenizers.normalizers import Replace

    tokenizer = Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a"))
    tokenizer.normalizer = Replace("x", "")
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(InputError, match="tokenises to nothing"):
        Encoder(PreTrainedTokenizerFast(tokenizer_object=tokenizer)).encode("a b", "xx")
    assert Encoder(tiny_tokenizer).encode("where does ada live ?", "oslo").answer_start == 5


@given(st.integers(2, 30))
def test_cutting_keeps_specials_and_as_much_of_the_answer_as_fits(length: int) -> None:
    whole = Encoder(byte_level(front=True)).encode("abcdefghij", "klmnopqrst")
    cut = Encoder(byte_level(front=True), max_length=length).encode("abcdefghij", "klmnopqrst")
    assert len(cut.ids) == min(length, len(whole.ids))
    assert cut.ids[0] == whole.ids[0] and 1 <= cut.answer_start < len(cut.ids)
    answer, kept = whole.ids[whole.answer_start :], cut.ids[cut.answer_start :]
    assert kept == answer[: len(kept)]
    prompt = cut.ids[1 : cut.answer_start]
    assert whole.ids[whole.answer_start - len(prompt) : whole.answer_start] == prompt
    assert kept == answer or len(prompt) <= 1


def test_cutting_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    encoder = Encoder(byte_level(), max_length=4)
    with caplog.at_level(logging.WARNING):
        encoder.encode("abcdef", "g")
        encoder.encode("abcdef", "h")
    assert len(caplog.records) == 1


def test_what_cannot_work_is_refused_at_once() -> None:
    with pytest.raises(InputError, match="no chat template"):
        Encoder(byte_level(), template="chat")
    with pytest.raises(InputError, match="no such template"):
        Encoder(byte_level(), template="poem")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="max_length"):
        Encoder(byte_level(), max_length=1)


rows = st.lists(
    st.lists(st.integers(1, 9), min_size=2, max_size=7).flatmap(
        lambda ids: st.integers(1, len(ids) - 1).map(lambda start: Encoded(tuple(ids), start))
    ),
    min_size=1,
    max_size=5,
)


@given(rows)
def test_a_batch_holds_its_rows_and_masks_the_padding(encoded: list[Encoded]) -> None:
    batch = collate(encoded, pad_id=0)
    for i, e in enumerate(encoded):
        assert batch.input_ids[i][batch.attention_mask[i].bool()].tolist() == list(e.ids)
        assert batch.input_ids[i][batch.answer_mask[i]].tolist() == list(e.ids[e.answer_start :])
        assert batch.attention_mask[i].tolist() == sorted(batch.attention_mask[i].tolist(), reverse=True)
    assert batch.input_ids.dtype == batch.attention_mask.dtype == batch.index.dtype == torch.int64
    assert batch.answer_mask.dtype == torch.bool and batch.index.tolist() == list(range(len(encoded)))


@given(rows, rows)
def test_joining_equals_collating_at_once(a: list[Encoded], b: list[Encoded]) -> None:
    joined = join(collate(a, 0), collate(b, 0), pad_id=0)
    whole = collate([*a, *b], 0, index=[*range(len(a)), *range(len(b))])
    for name in ("input_ids", "attention_mask", "answer_mask", "index"):
        assert torch.equal(getattr(joined, name), getattr(whole, name))


def test_rows_and_device_move_every_tensor() -> None:
    batch = collate([Encoded((1, 2, 3), 1), Encoded((4, 5), 1)], pad_id=0, index=[7, 9])
    second = batch.rows(slice(1, 2)).to("cpu")
    assert len(second) == 1 and second.index.tolist() == [9] and second.input_ids.tolist() == [[4, 5, 0]]
    assert batch.to("meta").answer_mask.device.type == "meta"


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(InputError, match="at least one row"):
        collate([], 0)


def test_two_chat_templates_are_told_apart() -> None:
    """What an attack kept under one template is not taken for what it would find under another."""
    one, other = byte_level(), byte_level()
    one.chat_template, other.chat_template = CHAT, CHAT.replace("<a>", "<b>")
    assert other.chat_template != CHAT
    assert Encoder(one, template="chat").describe() != Encoder(other, template="chat").describe()
    assert Encoder(one).describe() == Encoder(other).describe(), "plain prompts do not meet them"
