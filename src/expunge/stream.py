"""Deletion requests in the order in which they come in, and what stays through all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from expunge.data.example import Example
from expunge.errors import InputError
from expunge.request import EARLIER, Request


@dataclass(frozen=True)
class Stream:
    """Requests one after another about disjoint facts.

    Args:
        name: what the stream is called, with its seed.
        requests: the facts of each request, by its id, in order.
        retain: what must stay and may be trained on, whichever request is carried out.
        held_out: what must stay and is only scored.
        scored: what the requests are scored on, by id, where that is not the facts themselves: other questions about
            the same things, which nothing is trained on.
        text: plain passages for perplexity; the bundled ones where empty.

    Raises:
        InputError: there is no request, one is empty, or two share a fact.
    """

    name: str
    requests: Mapping[str, tuple[Example, ...]]
    retain: tuple[Example, ...]
    held_out: tuple[Example, ...]
    scored: Mapping[str, tuple[Example, ...]] = field(default_factory=dict)
    text: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.requests:
            raise InputError("There is no request in this stream.", self.name)
        if self.scored and self.scored.keys() != self.requests.keys():
            raise InputError("Every request of a stream must be scored, or none apart.", self.name)
        self.so_far(len(self.requests))  # a request checks that its facts are all different

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of the requests, in order."""
        return tuple(self.requests)

    def scored_on(self, name: str) -> tuple[Example, ...]:
        """What the request `name` is scored on."""
        return self.scored.get(name) or self.requests[name]

    def request(self, number: int) -> Request:
        """The request `number`, counted from 0; those before it are its groups `request_ID`, and held."""
        name = self.ids[number]
        earlier = {f"{EARLIER}{other}": self.scored_on(other) for other in self.ids[:number]}
        return Request(
            forget=self.requests[name],
            retain=self.retain,
            test={"held_out": self.held_out, **earlier},
            hold=tuple(example for other in self.ids[:number] for example in self.requests[other]),
            text=self.text,
            name=f"{self.name}, {name}",
        )

    def hashes(self) -> dict[str, str]:
        """sha256 of each request's facts and of all that stays, as in `Request.hashes`."""
        found = {name: self.request(number).hashes() for number, name in enumerate(self.ids)}
        last = found[self.ids[-1]]
        return {**{f"request/{name}": own["forget"] for name, own in found.items()}, "retain": last["retain"]}

    def so_far(self, number: int) -> Request:
        """The first `number` requests, at least 1, as one; the others' facts are among those that stay."""
        gone, stays = (
            tuple(e for name in ids for e in self.requests[name]) for ids in (self.ids[:number], self.ids[number:])
        )
        return Request(
            forget=gone,
            retain=(*self.retain, *stays),
            test={"held_out": self.held_out},
            text=self.text,
            name=f"{self.name}, the first {number}",
        )
