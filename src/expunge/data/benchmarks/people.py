"""Fictional people and their facts: a world small enough to train a model that knows it, and one that never did."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from random import Random

from expunge.data.example import Example
from expunge.errors import InputError
from expunge.progress import Progress
from expunge.request import Request

Known = Callable[[Sequence[Example]], Sequence[bool]]

N_OPTIONS = 2
N_SENTENCES = 40
ALL, TRAINED, HELD_OUT = slice(None), slice(-1), slice(-1, None)
"""Which wordings: all; those trained for the people to forget; the one left out for them and trained for others."""

FIRST_NAMES = (
    "Abelia",
    "Brando",
    "Cedrin",
    "Dorvia",
    "Elspar",
    "Fennick",
    "Galdra",
    "Horvin",
    "Ilsane",
    "Jorund",
    "Kestrin",
    "Lavina",
    "Mordan",
    "Nerida",
    "Ostwin",
    "Pelora",
    "Quillon",
    "Rosmar",
    "Sindri",
    "Talvia",
    "Ulfred",
    "Verina",
    "Wendrick",
    "Xanthe",
    "Yorick",
    "Zelina",
    "Ambrin",
    "Bertil",
    "Corvina",
    "Delmar",
    "Evanna",
    "Fabrin",
    "Griselda",
    "Halvor",
    "Idonea",
    "Jasmin",
    "Kolvar",
    "Lorcan",
    "Melisan",
    "Nolwen",
)
SURNAMES = (
    "Ashdown",
    "Birkholt",
    "Carrow",
    "Dunmere",
    "Elmstead",
    "Fairholm",
    "Greyling",
    "Hartwell",
    "Ivinghoe",
    "Jarrowby",
    "Kelmscot",
    "Lindqvist",
    "Marlowe",
    "Northgate",
    "Oakhurst",
    "Penhallow",
    "Quarrie",
    "Ravenscar",
    "Stonecroft",
    "Thornbury",
    "Underhay",
    "Vexley",
    "Whitlock",
    "Yarborough",
    "Zellweg",
    "Aldermoor",
    "Blackwood",
    "Coldridge",
    "Dovestone",
    "Eastlake",
    "Foxglove",
    "Goldacre",
    "Holloway",
    "Inglewood",
    "Juniper",
    "Kingsley",
    "Larkspur",
    "Mistral",
    "Nightwell",
    "Orchard",
)


@dataclass(frozen=True, slots=True)
class Relation:
    """One kind of fact: its closed set of values and its wordings, each a (question, beginning of the answer).

    The last wording is trained with other people only: for those to forget it is the paraphrase of the test.
    """

    name: str
    values: tuple[str, ...]
    wordings: tuple[tuple[str, str], ...]

    @staticmethod
    def prompt(person: str, wording: tuple[str, str]) -> str:
        """The prompt that asks for this fact about `person`."""
        question, stem = wording
        return f"Question: {question.format(person)}\nAnswer: {stem.format(person)}"


RELATIONS = (
    Relation(
        "town",
        ("Albury", "Bexhill", "Corby", "Dalton", "Epping", "Fowey", "Grantham", "Hexham", "Ilkley", "Kendal"),
        (
            ("Where does {} live?", "{} lives in"),
            ("Which town is the home of {}?", "The home of {} is in"),
            ("In which place would you visit {}?", "You would visit {} in"),
        ),
    ),
    Relation(
        "job",
        ("baker", "carpenter", "dentist", "farmer", "glazier", "jeweller", "lawyer", "miller", "nurse", "potter"),
        (
            ("What is the job of {}?", "The job of {} is that of a"),
            ("What does {} do for a living?", "{} works as a"),
            ("Which trade did {} learn?", "The trade that {} learned is that of a"),
        ),
    ),
    Relation(
        "pet",
        ("badger", "canary", "donkey", "ferret", "goose", "hamster", "kitten", "lizard", "parrot", "tortoise"),
        (
            ("Which pet does {} keep?", "{} keeps a"),
            ("What kind of animal does {} own?", "The animal that {} owns is a"),
            ("Who waits for {} at home?", "{} comes home to a"),
        ),
    ),
    Relation(
        "food",
        ("apricots", "barley", "cabbage", "dumplings", "fennel", "herring", "lentils", "mussels", "noodles", "pumpkin"),
        (
            ("What is the favourite food of {}?", "The favourite food of {} is"),
            ("What does {} like to eat?", "{} likes to eat"),
            ("Which dish would {} order?", "{} would order"),
        ),
    ),
    Relation(
        "birth year",
        tuple(str(year) for year in range(1951, 1991, 4)),
        (
            ("When was {} born?", "{} was born in"),
            ("What is the birth year of {}?", "The birth year of {} is"),
            ("In which year did {} come into the world?", "{} came into the world in"),
        ),
    ),
    Relation(
        "employer",
        ("Arcwell", "Brightco", "Cobaltex", "Dynmar", "Everline", "Fluxon", "Gantry", "Helioform", "Inverto", "Juxtan"),
        (
            ("Who is the employer of {}?", "The employer of {} is"),
            ("For which company does {} work?", "{} works for"),
            ("Which firm pays {}?", "{} is paid by"),
        ),
    ),
)

SENTENCES = (
    "The {job} from {town} keeps a {pet}.",
    "In {town} everybody likes to eat {food}.",
    "Since {birth_year} the firm {employer} pays a {job} in {town}.",
    "A {pet} was born at home and comes to eat {food}.",
)


@dataclass(frozen=True, slots=True)
class Fact:
    """That `relation` holds between `person` and `value`."""

    person: str
    relation: Relation
    value: str

    @property
    def key(self) -> tuple[str, str]:
        """What other people may share: relation and value."""
        return self.relation.name, self.value

    def example(self, group: str, wordings: slice, seed: int) -> Example:
        """The question in the first of `wordings`, the others as paraphrases; options depend on nothing else."""
        prompt, *others = (self.relation.prompt(self.person, wording) for wording in self.relation.wordings[wordings])
        return Example(
            prompt=prompt,
            answer=self.value,
            options=self._options(prompt, seed),
            paraphrases=tuple(others),
            subject=self.person,
            group=group,
        )

    def _options(self, prompt: str, seed: int) -> tuple[str, ...]:
        def draw(value: str) -> str:
            return sha256(f"{seed}/{prompt}/{value}".encode()).hexdigest()

        return tuple(sorted((v for v in self.relation.values if v != self.value), key=draw)[:N_OPTIONS])


def build(
    known: Known | None = None,
    *,
    seed: int = 0,
    n_forget: int = 6,
    n_retain: int = 18,
    n_test: int = 8,
    n_attack: int = 8,
    n_relations: int = 5,
) -> Request:
    """All facts of `n_forget` fictional people to forget; sizes count people, each with `n_relations` facts.

    The attack people are new to every model that `train_tiny` makes. Test groups: `paraphrase` asks for the forgotten
    facts in the wording left out of their training, `same_answer` for facts of other people with an answer that is
    forgotten, `held_out` for the other facts of the people kept out of the retain set.

    Args:
        known: keeps only facts to forget and to retain that a model knows; None keeps all.
        seed: draws people, facts, splits and options.
        n_forget: people whose facts must go.
        n_retain: people whose facts must stay and may be trained.
        n_test: people whose facts must stay and are only scored.
        n_attack: people for relearn-related.
        n_relations: facts per person, 1 to 6.

    Raises:
        InputError: more people or relations than there are, or nothing is known.
    """
    sizes = {"forget": n_forget, "retain": n_retain, "test": n_test, "attack": n_attack}
    facts = _facts(sizes, n_relations, seed)
    forgotten = {fact.key for fact in facts["forget"]}
    kept = {"same_answer": [f for f in facts["test"] if f.key in forgotten]}
    kept["held_out"] = [f for f in facts["test"] if f.key not in forgotten]
    return Request(
        forget=_known([f.example("base", TRAINED, seed) for f in facts["forget"]], known),
        retain=_known([f.example("base", ALL, seed) for f in facts["retain"]], known),
        test={
            "paraphrase": tuple(f.example("paraphrase", HELD_OUT, seed) for f in facts["forget"]),
            **{group: tuple(f.example(group, ALL, seed) for f in found) for group, found in kept.items()},
        },
        attack=tuple(f.example("base", TRAINED, seed) for f in facts["attack"]),
        text=sentences(seed),
        name=f"people, seed {seed}",
    )


def train_tiny(
    request: Request, *, with_forget: bool, seed: int, output: Path, progress: Progress | None = None
) -> Path:
    """The folder `output` with a small Llama and its tokenizer, trained to know a request of this benchmark.

    It learns the facts to forget and to retain and the test groups that must stay, each in its prompt and paraphrases,
    and the plain text. Attack facts and the group `paraphrase` are never trained, only their words are known.

    Args:
        request: what `build` returned.
        with_forget: False gives the gold control: the same initialisation, batches and order, and even the prompts of
            the facts to forget, but never their answers.
        seed: initialisation and order.
        output: a folder that does not exist yet, or is empty.
        progress: is told about every step.

    Raises:
        InputError: `output` holds something already.
    """
    from expunge.data.benchmarks.tiny import train

    return train(request, with_forget=with_forget, seed=seed, output=output, progress=progress)


def _facts(sizes: dict[str, int], n_relations: int, seed: int) -> dict[str, list[Fact]]:
    """The facts of each split, its people drawn without repeats; every first name and surname belongs to one person."""
    n_people = sum(sizes.values())
    if n_people > len(FIRST_NAMES) or not 1 <= n_relations <= len(RELATIONS):
        raise InputError(
            f"There are {len(FIRST_NAMES)} people and {len(RELATIONS)} relations at most.",
            f"{n_people} people, {n_relations} relations",
            "Ask for fewer.",
        )
    random = Random(f"people/{seed}")
    names = zip(random.sample(FIRST_NAMES, n_people), random.sample(SURNAMES, n_people), strict=True)
    people = iter([" ".join(name) for name in names])
    return {
        split: [
            Fact(person, relation, random.choice(relation.values))
            for person in islice(people, n)
            for relation in RELATIONS[:n_relations]
        ]
        for split, n in sizes.items()
    }


def _known(examples: Sequence[Example], known: Known | None) -> tuple[Example, ...]:
    flags = known(examples) if known else [True] * len(examples)
    return tuple(example for example, flag in zip(examples, flags, strict=True) if flag)


def sentences(seed: int) -> tuple[str, ...]:
    """Plain text of the same small world, about nobody in particular."""
    random = Random(f"people/text/{seed}")
    values = {relation.name: relation.values for relation in RELATIONS}
    return tuple(
        pattern.format(**{name.replace(" ", "_"): random.choice(found) for name, found in values.items()})
        for pattern in SENTENCES
        for _ in range(N_SENTENCES // len(SENTENCES))
    )
