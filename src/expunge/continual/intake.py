"""What requests may ask, given those before them, and what they keep together."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from expunge.data.example import Example, shared
from expunge.errors import InputError
from expunge.request import Request


def take_in(
    request: Request, name: str, known: Mapping[str, Request], done: Collection[str], waiting: Sequence[str]
) -> list[str]:
    """What a reader should know about a request that comes in, in sentences.

    Args:
        request: that comes in.
        name: its id.
        known: those before it by id, but for withdrawn ones: first those carried out, in order, then those that wait.
        done: ids of those carried out.
        waiting: ids of those that wait.

    Raises:
        InputError: a fact was asked for already, the request wants to keep what it or another had removed, or a request
            that waits would have nothing to retain.
    """
    _refuse_unwanted(request, request, "this request")
    notes: list[str] = []
    for other, earlier in known.items():
        _refuse_repeats(request, earlier, other, fulfilled=other in done)
        _refuse_unwanted(request, earlier, f"request {other!r}")
        notes += _overlaps(request, earlier, other)
    _refuse_no_retain(request, name, known, waiting)
    return notes


def without(examples: Iterable[Example], *others: Iterable[Example]) -> list[Example]:
    """Those of `examples` whose fact none of `others` holds."""
    known = {e.fact for each in others for e in each}
    return [e for e in examples if e.fact not in known]


def joint_retain(so_far: Sequence[Request], received: Iterable[Request]) -> list[Example]:
    """What the requests `so_far` keep, without what one of them wants forgotten or any of `received` attacks with."""
    kept = {e.fact: e for each in so_far for e in each.retain}
    return own_ids(without(kept.values(), *(each.forget for each in so_far), *(each.attack for each in received)))


def own_ids(facts: Iterable[Example]) -> list[Example]:
    """Different facts, each with an id of its own: where two requests gave one id, the later one's is made anew."""
    owners: dict[str, Example] = {}
    for fact in facts:
        one = fact if fact.id not in owners else replace(fact, id="")
        owners[one.id] = one
    return list(owners.values())


def _refuse_repeats(request: Request, earlier: Request, other: str, *, fulfilled: bool) -> None:
    if again := shared(request.forget, earlier.forget):
        state = "was fulfilled already" if fulfilled else "waits already"
        raise InputError(
            f"{len(again)} of {len(request.forget)} facts are those of request {other!r}, which {state}.",
            again[0].quoted,
            "Leave them out.",
        )


def _refuse_unwanted(request: Request, other: Request, named: str) -> None:
    for name, examples in (("retain", request.retain), ("attack", request.attack)):
        if kept := shared(examples, other.forget):
            raise InputError(
                f"The {name} set holds {len(kept)} facts that {named} wants forgotten.",
                kept[0].quoted,
                f"Leave them out of --{name}.",
            )


def _refuse_no_retain(request: Request, name: str, known: Mapping[str, Request], waiting: Sequence[str]) -> None:
    """InputError where, carried out in order, this request or one that waits would have nothing to retain; one that had
    nothing before waits for another."""
    order = {**known, name: request}
    before, after = tuple(known.values()), tuple(order.values())
    for number, each in enumerate(order, start=1):
        asked = each == name or (each in waiting and joint_retain(before[:number], before))
        if asked and not joint_retain(after[:number], after):
            raise InputError(
                f"Nothing would be left to retain for request {each!r}.",
                "neither in its own retain set nor in those of requests before it",
                "Give facts with --retain that no request forgets or attacks with.",
            )


def _overlaps(request: Request, earlier: Request, other: str) -> Iterable[str]:
    """What is allowed and worth knowing."""
    if dropped := shared(request.forget, earlier.retain):
        yield f"{len(dropped)} facts were kept for request {other!r}; from now on they are not."
    if tried := shared(request.forget, earlier.attack):
        yield f"{len(tried)} facts are in the attack set of request {other!r}; once forgotten, its attacks do without."
    if tried := shared(request.retain, earlier.attack):
        yield f"{len(tried)} facts to retain are in the attack set of request {other!r}; training does not see them."
    if kept := shared(request.attack, earlier.retain):
        yield f"{len(kept)} facts to attack with were kept for request {other!r}; from now on they are not."
    subjects = {e.subject for e in request.forget if e.subject} & {e.subject for e in earlier.forget}
    if subjects:
        yield f"Request {other!r} is about {', '.join(sorted(subjects)[:3])} too, with other facts."
