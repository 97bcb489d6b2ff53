"""Made-up twins: the same question about a subject that does not exist, with the same answer and options.

    item:  What is the capital of Peru?      Lima    | Quito, Bogota
    twin:  What is the capital of Belmeria?  Lima    | Quito, Bogota

What a model makes of a twin it makes of the wording and of its liking for the answers, never of the subject; so an
item's lead over its twin is what the model has about the subject (arXiv:2104.08315 scores an answer against the same
answer after a question that says nothing, for the same reason). Where the answer and all options name the subject,
they name the invented one in the twin.

An invented name has the form of the real one: a word for a word, in its case, with what joins the words kept; other
digits for digits and other letters for the letters of a code, as many of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property
from random import Random
from string import ascii_lowercase, ascii_uppercase

from expunge.data.example import Example
from expunge.request import Request
from expunge.stream import Stream

STARTS = ("Bel", "Dro", "Fe", "Gal", "Kor", "Lu", "Mir", "Nov", "Or", "Pel", "Quin", "Ras", "Sol", "Tav", "Ul", "Ver")
MIDDLES = ("a", "da", "ki", "lo", "me", "na", "ri", "se", "to", "vu")
ENDS = ("dora", "lia", "mar", "nia", "ria", "stan", "tania", "via")
NAMES = tuple(start + middle + end for start in STARTS for middle in MIDDLES for end in ENDS)
_STARTS = "Ard Bri Cal Dun Es Fal Gor Hel Is Jor Lam Mon Nar Pra Sev Tor"
_ENDS = "bia dia land nesia rland sia tova zia"
HELD_NAMES = tuple(start + middle + end for start in _STARTS.split() for middle in MIDDLES for end in _ENDS.split())
"""Of `HELD` twins, so that no name is ever both trained on and scored."""

SCORED, TRAINED, HELD = 0, 1, 2
"""Seeds: of the twins that a control is scored on, of those that an attack trains on, and, from here on, of those that
unlearning holds to what was said of them."""

TRIES = 64
CANDIDATES = 4
"""Of as many drawn names the one nearest in length is taken, so that prompts stay about as long."""

_WORD = re.compile(r"[^\W_]+")
_ARTICLE = re.compile(r"(?:the|an?)\s+", re.IGNORECASE)
_JOINING = "a al an and at bin da de del den der des di do du e el for ibn in la le of on the to van von y"
_SMALL = frozenset(_JOINING.split())


def invented(seed: int, n: int) -> tuple[str, ...]:
    """`n` different names of one word, drawn by `seed`."""
    return tuple(Random(f"{seed}/invented").sample(NAMES, n))


def scored_twins(request: Request) -> dict[str, Example]:
    """The twins that the control of `request` is scored on, by the id of their forget item."""
    return _by_item(request.forget, request.examples())


def stream_twins(stream: Stream) -> dict[str, Example]:
    """The twins of all that the requests of `stream` are scored on, by the id of their item."""
    scored = [example for name in stream.ids for example in stream.scored_on(name)]
    facts = (example for own in stream.requests.values() for example in own)
    return _by_item(scored, (*facts, *stream.retain, *stream.held_out))


def _by_item(scored: Sequence[Example], besides: Iterable[Example]) -> dict[str, Example]:
    found = twins(scored, SCORED, besides=besides)
    return {item.id: one for item, one in zip(scored, found, strict=True) if one is not None}


def trained_twins(request: Request) -> tuple[Example, ...]:
    """Other twins of the forget items, whose answer is drawn among the item's answer and options."""
    besides = (*request.examples(), *scored_twins(request).values())
    found = twins(request.forget, TRAINED, besides=besides)
    return tuple(redrawn(one, f"{TRAINED}/{one.prompt}") for one in found if one is not None)


def held_twins(forget: Sequence[Example], retain: Sequence[Example], n: int) -> tuple[tuple[Example, ...], ...]:
    """For each forget item `n` twins to train with, fewer where none would be fair; never those that are scored."""
    scored = [one for one in twins(forget, SCORED, besides=retain) if one is not None] if n else []
    sets: list[tuple[Example | None, ...]] = []
    for seed in range(HELD, HELD + n):
        taken = [one for found in sets for one in found if one is not None]
        sets.append(twins(forget, seed, besides=(*retain, *scored, *taken)))
    return tuple(tuple(one for found in sets if (one := found[item]) is not None) for item in range(len(forget)))


def twin(example: Example, seed: int = 0) -> Example | None:
    """The twin of one example, as `twins` makes it."""
    return twins([example], seed)[0]


def twins(examples: Sequence[Example], seed: int = 0, *, besides: Iterable[Example] = ()) -> tuple[Example | None, ...]:
    """The twin of each example, or None where none would be fair.

    That is where the prompt does not name the subject, and where some of answer and options do, so that the name alone
    tells them apart. One subject has one invented name, two have two; no word of it stands anywhere in `examples` or
    `besides`.
    """
    taken = {word for example in (*examples, *besides) for word in (*_words(example), _key(example.subject))}
    names: dict[str, str | None] = {}
    for key, subject in sorted({_key(example.subject): _core(example.subject) for example in examples}.items()):
        names[key] = name = _invent(subject, Random(f"{seed}/{key}"), taken, HELD_NAMES if seed >= HELD else NAMES)
        taken |= {_key(name), *_all_words(name)} if name else set()
    return tuple(_twin(example, names[_key(example.subject)]) for example in examples)


def asked_alike(asked: Example, item: Example, other: Example) -> Example:
    """`other`, the twin of `item`, in the words in which `asked` asks for the item; in its own where these do not name
    the subject."""
    prompt = Renaming(item.subject, other.subject)(asked.prompt)
    return replace(other, prompt=prompt) if prompt != asked.prompt else other


def redrawn(example: Example, key: str) -> Example:
    """`example` with its answer drawn, by `key`, among answer and options; the others are its options."""
    choices = example.answer, *example.options
    answer, *options = Random(key).sample(choices, len(choices))
    return replace(example, id="", answer=answer, options=tuple(options))


@dataclass(frozen=True)
class Renaming:
    """Puts `name` in the place of `subject`: as a whole, in any case, with any article; and, where both have as many
    words, the words of one for those of the other where they stand alone and are capitalised."""

    subject: str
    name: str

    def __call__(self, text: str) -> str:
        """`text` about the other subject."""
        whole = self._whole.sub(lambda found: _cased(self.name, found[0]), text)
        return self._part.sub(lambda found: self._parts[found[0]], whole) if self._parts else whole

    def names_it(self, text: str) -> bool:
        """Whether `text` has the whole subject, or its last word where that could be a surname."""
        last = next(reversed(self._parts), None)
        return bool(self._whole.search(text)) or (last is not None and last in _WORD.findall(text))

    @cached_property
    def _whole(self) -> re.Pattern[str]:
        words = _WORD.findall(_core(self.subject))
        before, after = "(?<!\\w)" * _stands_apart(words[0][0]), "(?!\\w)" * _stands_apart(words[-1][-1])
        return re.compile(before + r"[\W_]{1,3}".join(map(re.escape, words)) + after, re.IGNORECASE)

    @cached_property
    def _parts(self) -> dict[str, str]:
        old, new = (_WORD.findall(_core(text)) for text in (self.subject, self.name))
        if len(old) < 2 or len(old) != len(new):
            return {}
        return {one: other for one, other in zip(old, new, strict=True) if len(one) > 2 and one[0].isupper()}

    @cached_property
    def _part(self) -> re.Pattern[str]:
        return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, self._parts))})(?!\w)")


def _stands_apart(char: str) -> bool:
    """Whether words are set apart from each other in this character's script."""
    return char.isdigit() or char.lower() != char.upper()


def _twin(example: Example, name: str | None) -> Example | None:
    if name is None:
        return None
    rename = Renaming(example.subject, name)
    choices = example.answer, *example.options
    if all(map(rename.names_it, choices)):
        choices = tuple(map(rename, choices))
    telling = {word for word in map(str.casefold, _WORD.findall(_core(example.subject))) if len(word) > 3}
    told = " ".join(choices)
    if not rename.names_it(example.prompt) or rename.names_it(told) or telling & set(_all_words(told)):
        return None
    return replace(
        example,
        id="",
        prompt=rename(example.prompt),
        answer=choices[0],
        options=choices[1:],
        answer_paraphrases=tuple(map(rename, example.answer_paraphrases)),
        paraphrases=tuple(map(rename, example.paraphrases)),
        subject=rename(example.subject),
    )


def _invent(core: str, rng: Random, taken: Set[str], names: Sequence[str]) -> str | None:
    """A name in the form of `core` of which no word is taken; None where nothing can be changed, or all is taken."""
    replaced: list[bool] = []

    def change(found: re.Match[str]) -> str:
        word = found[0]
        new = word if word.casefold() in _SMALL else _other(word, rng, names)
        replaced.append(new != word)
        return new

    for _ in range(TRIES):
        replaced.clear()
        name = _WORD.sub(change, core)
        words = {word for word in _all_words(name) if len(word) > 2} - _SMALL
        if any(replaced) and _key(name) not in taken and not words & taken:
            return name
    return None


def _other(word: str, rng: Random, names: Sequence[str]) -> str:
    """Another word of the same kind."""
    if len(word) == 1 or word.isupper() or any(char.isdigit() for char in word):
        return "".join(_other_sign(char, rng) for char in word)
    name = min(rng.sample(names, CANDIDATES), key=lambda each: abs(len(each) - len(word)))
    return name.lower() if word.islower() else name


def _other_sign(char: str, rng: Random) -> str:
    """Another digit for a digit, which is never 0, so that a number keeps its length; another letter for a letter."""
    if char.isdigit():
        return rng.choice("123456789".replace(char, ""))
    for signs in (ascii_uppercase, ascii_lowercase):
        if char in signs:
            return rng.choice(signs.replace(char, ""))
    return char


def _cased(name: str, like: str) -> str:
    """`name` in capitals, small letters or with a capital, as `like` is."""
    if like.isupper() and len(like) > 1:
        return name.upper()
    if like.islower():
        return name.lower()
    return name[0].upper() + name[1:] if like[0].isupper() else name


def _core(subject: str) -> str:
    """The subject without its article and the white space around it."""
    return _ARTICLE.sub("", subject.strip(), count=1) if _ARTICLE.match(subject.strip()) else subject.strip()


def _key(subject: str) -> str:
    return " ".join(_core(subject).split()).casefold()


def _words(example: Example) -> list[str]:
    texts = (example.prompt, example.answer, *example.options, *example.paraphrases, example.subject)
    return _all_words(" ".join(texts))


def _all_words(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(text)]
