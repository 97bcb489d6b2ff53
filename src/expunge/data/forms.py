"""One row of anybody's data to one Example: the forms of TRL, TOFU, Alpaca and multiple-choice sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from expunge.data.example import Example
from expunge.errors import InputError

Row = Mapping[str, Any]
Question = Callable[[str], str]

FORMS = "question+answer, prompt+completion (or answer), messages, instruction+output, text"
_OPTION_KEYS = ("options", "choices", "perturbed_answer", *(f"option{i}" for i in range(1, 10)))
_ROLES = ("system", "user", "assistant")


def plain_question(text: str) -> str:
    """The prompt that asks `text` of a model without a chat template."""
    return f"Question: {text}\nAnswer:"


def bare_question(text: str) -> str:
    """The question as it stands, which is the user's turn under a chat template."""
    return text


Template = Literal["plain", "chat"]

QUESTIONS: Final[dict[Template, Question]] = {"plain": plain_question, "chat": bare_question}
"""How a bare question becomes a prompt under each template."""


@dataclass(frozen=True)
class Record:
    """One row together with the place it came from, so that every error can name it.

    Args:
        row: the fields as parsed.
        place: file and line, or data set and row.
        question: turns a bare question into a prompt.
    """

    row: Row
    place: str
    question: Question

    def example(self) -> Example:
        """The Example in this row, its form found by its keys.

        Raises:
            InputError: no form is recognised, or a field is missing, empty or of the wrong type.
        """
        for keys, read in _READERS.items():
            if set(keys) <= {k for k, v in self.row.items() if v is not None}:
                return read(self)
        nulls = [[key for key in keys if self.row[key] is None] for keys in _READERS if set(keys) <= self.row.keys()]
        if nulls:
            raise self.error(f"{min(nulls, key=len)[0]!r} is null.")
        fields = ", ".join(sorted(map(str, self.row))) or "none"
        raise self.error(f"No known form of record has these fields: {fields}.", f"Use one of: {FORMS}.")

    @property
    def unanswered(self) -> bool:
        """Whether this is an instruction with an empty output, of which Alpaca itself has some."""
        output = self.row.get("output")
        return "instruction" in self.row and isinstance(output, str) and not output.strip()

    def error(self, what: str, fix: str = "") -> InputError:
        """An InputError at this place."""
        return InputError(what, self.place, fix)

    def text(self, key: str) -> str:
        """The non-empty string under `key`."""
        value = self.row[key]
        if not isinstance(value, str):
            raise self.error(f"{key!r} must be text, not {_kind(value)}.")
        if not value.strip():
            raise self.error(f"{key!r} is empty.")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """The strings under `key`, which may be one string, a list of them, or absent."""
        value = self.row.get(key)
        if value is None:
            return ()
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not all(isinstance(v, str) and v.strip() for v in values):
            raise self.error(f"{key!r} must be a list of non-empty texts.")
        return tuple(values)

    def build(self, prompt: str, answer: str, ask: Question = str) -> Example:
        """The Example of (prompt, answer) with the optional fields of this row; `ask` shapes the paraphrases.

        White space at the end of an answer goes: no option has it, and its tokens would tell the answer from them.
        """
        answer = answer.rstrip()
        paraphrases = self.texts("paraphrases") + self.texts("paraphrased_question")
        return Example(
            prompt=prompt,
            answer=answer,
            options=self.options(answer),
            paraphrases=tuple(dict.fromkeys(map(ask, paraphrases))),
            answer_paraphrases=self.texts("answer_paraphrases") + self.texts("paraphrased_answer"),
            subject=self.label("subject"),
            group=self.label("group"),
            id=self.label("id"),
        )

    def options(self, answer: str) -> tuple[str, ...]:
        """The wrong answers of this row: full choice lists lose the right one, repeats are dropped."""
        found = dict.fromkeys(option.strip() for key in _OPTION_KEYS for option in self.texts(key))
        right = {answer.strip()}
        if not right & found.keys():
            # Only then is a difference in case a slip: some questions ask for nothing but the capitals of a title.
            right = {option for option in found if option.casefold() == answer.strip().casefold()}
        return tuple(option for option in found if option not in right)

    def label(self, key: str) -> str:
        """The value under `key` as text, empty if absent."""
        value = self.row.get(key)
        if value is None:
            return ""
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise self.error(f"{key!r} must be text or a whole number, not {_kind(value)}.")
        return str(value)


def _kind(value: object) -> str:
    return "empty" if value is None else type(value).__name__


def _answer(record: Record) -> str:
    """The answer as text; multiple-choice sets give its 0-based position among the choices instead."""
    value = record.row["answer"]
    if isinstance(value, bool) or not isinstance(value, int):
        return record.text("answer")
    choices = record.texts("choices") or record.texts("options")
    if not 0 <= value < len(choices):
        raise record.error(f"'answer' is {value}, which is no position among {len(choices)} choices.")
    return choices[value]


def _question_answer(record: Record) -> Example:
    return record.build(record.question(record.text("question")), _answer(record), record.question)


def _prompt_answer(record: Record) -> Example:
    return record.build(record.text("prompt"), _answer(record))


def _prompt_completion(record: Record) -> Example:
    prompt, completion = record.row["prompt"], record.row["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        return _conversation(record, [*prompt, *completion])
    return record.build(record.text("prompt"), record.text("completion"))


def _instruction(record: Record) -> Example:
    parts = [record.text("instruction"), record.label("input")]
    return record.build(record.question("\n".join(filter(None, parts))), record.text("output"))


def _messages(record: Record) -> Example:
    messages = record.row["messages"]
    if not isinstance(messages, list):
        raise record.error(f"'messages' must be a list, not {_kind(messages)}.")
    return _conversation(record, messages)


def _conversation(record: Record, messages: Sequence[object]) -> Example:
    """The last assistant turn as answer to all that came before; longer talks are written out turn by turn."""
    turns = [_turn(record, number, message) for number, message in enumerate(messages, start=1)]
    if len(turns) < 2 or turns[-1][0] != "assistant" or all(role != "user" for role, _ in turns):
        raise record.error("A conversation must hold a user turn and end with an assistant turn.")
    before = turns[:-1]
    system = [content for role, content in before if role == "system"]
    talk = [(role, content) for role, content in before if role != "system"]
    asked = talk[0][1] if len(talk) == 1 else "\n".join(f"{role.capitalize()}: {content}" for role, content in talk)
    return record.build(record.question("\n\n".join([*system, asked])), turns[-1][1], record.question)


def _turn(record: Record, number: int, message: object) -> tuple[str, str]:
    if not isinstance(message, Mapping) or message.get("role") not in _ROLES:
        raise record.error(f"Message {number} must be an object with a role among {', '.join(_ROLES)}.")
    content = message.get("content")
    if not isinstance(content, str) or not content.strip():
        raise record.error(f"Message {number} must have a non-empty text as content.")
    return str(message["role"]), content


def _text(record: Record) -> Example:
    return record.build("", record.text("text"))


_READERS: dict[tuple[str, ...], Callable[[Record], Example]] = {
    ("messages",): _messages,
    ("question", "answer"): _question_answer,
    ("prompt", "completion"): _prompt_completion,
    ("prompt", "answer"): _prompt_answer,
    ("instruction", "output"): _instruction,
    ("text",): _text,
}
