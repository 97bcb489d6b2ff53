"""Prompts and answers as token ids, and padded batches of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.functional import pad

from expunge.data.forms import QUESTIONS, Question, Template
from expunge.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids, of which those from `answer_start` on are the answer; `answer_start` is at least 1."""

    ids: tuple[int, ...]
    answer_start: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded rows; `answer_mask` marks the answer's own tokens (predicted one position earlier).

    `index` says which item of the caller's list each row is.
    """

    input_ids: Int[Tensor, "batch time"]
    attention_mask: Int[Tensor, "batch time"]
    answer_mask: Bool[Tensor, "batch time"]
    index: Int[Tensor, " batch"]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.index)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`."""
        return Batch(*(t.to(device) for t in self._tensors()))

    def rows(self, which: slice) -> Batch:
        """The rows of a slice, at the width of the whole batch."""
        return Batch(*(t[which] for t in self._tensors()))

    def _tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.input_ids, self.attention_mask, self.answer_mask, self.index


@dataclass(frozen=True, slots=True)
class _Tokens:
    """Ids and, for each, the character after its last one (0 for a special token that stands for no text)."""

    ids: list[int]
    ends: list[int]

    def from_character(self, position: int) -> int:
        """Index of the first token that ends after `position`; the number of tokens if there is none."""
        return next((i for i, end in enumerate(self.ends) if end > position), len(self.ids))


class Encoder:
    """Turns a prompt and an answer into ids with a known boundary between them.

    Prompt and answer are tokenised together, with a space between them unless one side has white space there, because
    byte-pair and sentence-piece tokenizers give " Paris" other ids than "Paris"; the boundary is then found by
    character offsets. Special tokens in front are those that the tokenizer puts there by itself, which for a chat
    template are the template's; nothing follows the answer.

    Args:
        tokenizer: a fast tokenizer (slow ones know no offsets).
        template: "plain" takes the prompt as it is; "chat" makes it a user turn of the tokenizer's chat template.
        max_length: longest sequence in tokens; longer prompts lose their beginning, then longer answers their end.
        begun: words that the model is made to begin its answer with; they count as prompt.

    Raises:
        InputError: the tokenizer is slow, has no chat template though one is asked for, or the template is unknown.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: Template = "plain",
        max_length: int = 512,
        begun: str = "",
    ) -> None:
        if not tokenizer.is_fast:
            raise InputError(
                "A fast tokenizer is needed.", type(tokenizer).__name__, "Add tokenizer.json to the model."
            )
        if template not in ("plain", "chat"):
            raise InputError("There is no such template.", repr(template), 'Known: "plain", "chat".')
        if template == "chat" and not tokenizer.chat_template:
            raise InputError("This tokenizer has no chat template.", tokenizer.name_or_path, 'Use template "plain".')
        if max_length < 2:
            raise InputError("max_length must be at least 2.", f"max_length={max_length}")
        self.tokenizer, self.template, self.max_length, self.begun = tokenizer, template, max_length, begun
        self._warned_of_cut = False

    @property
    def pad_id(self) -> int:
        """The id to pad with; any will do where the tokenizer has none, as padding is masked."""
        known = [i for i in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id) if i is not None]
        return int(known[0]) if known else 0

    def describe(self) -> dict[str, str | int]:
        """What was decided about the text, for the record: template, max_length, and the tokens put in front (bos); a
        chat template by a hash of its words."""
        tokens = self._tokens("a", special=True)
        front = " ".join(self.tokenizer.convert_ids_to_tokens(tokens.ids[: tokens.from_character(0)])) or "none"
        bos = front if self.template == "plain" else "as the chat template says"
        words = sha256(str(self.tokenizer.chat_template).encode()).hexdigest()[:16]
        chat = {"chat_template": words} if self.template == "chat" else {}
        return {"template": self.template, "max_length": self.max_length, "bos": bos, **chat}

    @property
    def question(self) -> Question:
        """Makes a prompt of a bare question: "Question: ...\\nAnswer:", or itself under a chat template."""
        return QUESTIONS[self.template]

    def encode(self, prompt: str, answer: str) -> Encoded:
        """Ids of prompt and answer; an empty prompt makes the answer plain text.

        Raises:
            InputError: the answer gives no token that could be predicted.
        """
        if not prompt:
            return self.encode_text(answer)
        head = self._prompt_text(prompt)
        spaced = _spaced(head, answer)
        tokens = self._tokens(spaced + answer, special=self.template == "plain")
        # A prompt that melts into the first token leaves nothing to predict that token from.
        start = max(tokens.from_character(len(head)), 1)
        if not answer.strip() or max(tokens.from_character(len(spaced)), start) >= len(tokens.ids):
            raise InputError("This answer tokenises to nothing.", f"{answer!r} after {prompt[:60]!r}", "Correct it.")
        return self._fit(tokens, start)

    def encode_text(self, text: str) -> Encoded:
        """Ids of plain text, its end cut at `max_length`; every token after the first is predicted.

        Raises:
            InputError: there are fewer than two tokens.
        """
        tokens = self._tokens(text, special=True)
        if len(tokens.ids) < 2:
            raise InputError("This text has no token to predict.", repr(text[:60]), "Use a longer one.")
        if len(tokens.ids) > self.max_length:
            self._warn_of_cut()
        return Encoded(tuple(tokens.ids[: self.max_length]), 1)

    def encode_prompt(self, prompt: str) -> tuple[int, ...]:
        """Ids to generate from, without the space that would precede the answer."""
        tokens = self._tokens(self._prompt_text(prompt), special=self.template == "plain")
        if not tokens.ids:
            raise InputError("This prompt tokenises to nothing.", repr(prompt[:60]), "Correct it.")
        return self._fit(tokens, len(tokens.ids)).ids

    def beginning(self, words: str) -> Encoder:
        """The same, but for the words that begin the model's answer."""
        return Encoder(self.tokenizer, self.template, self.max_length, words)

    def _prompt_text(self, prompt: str) -> str:
        text = prompt
        if self.template == "chat":
            turn = [{"role": "user", "content": prompt}]
            text = str(self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
        return _spaced(text, self.begun) + self.begun if self.begun else text

    def _tokens(self, text: str, *, special: bool) -> _Tokens:
        """Tokens of `text`; an end-of-sequence token that some tokenizers append is left out."""
        out = self.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
        ends = [end for _, end in out["offset_mapping"]]
        length = max((i + 1 for i, end in enumerate(ends) if end), default=0)
        return _Tokens(out["input_ids"][:length], ends[:length])

    def _fit(self, tokens: _Tokens, start: int) -> Encoded:
        """The tokens within `max_length`: special ones in front stay, then goes the prompt's beginning."""
        excess = len(tokens.ids) - self.max_length
        if excess <= 0:
            return Encoded(tuple(tokens.ids), start)
        self._warn_of_cut()
        front = tokens.from_character(0)
        answer = tokens.ids[start:][: max(self.max_length - front - min(1, start - front), 1)]
        kept = self.max_length - front - len(answer)
        return Encoded((*tokens.ids[:front], *tokens.ids[start - kept : start], *answer), front + kept)

    def _warn_of_cut(self) -> None:
        if not self._warned_of_cut:
            logger.warning("Some examples are longer than max_length=%d tokens and are cut.", self.max_length)
        self._warned_of_cut = True


def _spaced(head: str, tail: str) -> str:
    """`head` with a space after it, unless one side has white space there."""
    return head if head[-1:].isspace() or tail[:1].isspace() else head + " "


def collate(encoded: Sequence[Encoded], pad_id: int, index: Sequence[int] | None = None) -> Batch:
    """A Batch of the rows, padded on the right to the longest; `index` defaults to 0, 1, 2 ..."""
    if not encoded:
        raise InputError("A batch needs at least one row.")
    lengths = torch.tensor([len(e.ids) for e in encoded])
    starts = torch.tensor([e.answer_start for e in encoded])
    places = torch.arange(int(lengths.max()))
    filled = places < lengths[:, None]
    ids = torch.full(filled.shape, pad_id)
    ids[filled] = torch.tensor([i for e in encoded for i in e.ids])
    rows = torch.arange(len(encoded)) if index is None else torch.tensor(list(index))
    return Batch(ids, filled.long(), filled & (places >= starts[:, None]), rows)


def join(a: Batch, b: Batch, pad_id: int) -> Batch:
    """The rows of `a`, then the rows of `b`, at the width of the wider one."""
    width = max(a.input_ids.shape[1], b.input_ids.shape[1])

    def stack(x: Tensor, y: Tensor, value: int) -> Tensor:
        return torch.cat([pad(t, (0, width - t.shape[1]), value=value) for t in (x, y)])

    return Batch(
        stack(a.input_ids, b.input_ids, pad_id),
        stack(a.attention_mask, b.attention_mask, 0),
        stack(a.answer_mask, b.answer_mask, 0),
        torch.cat([a.index, b.index]),
    )
