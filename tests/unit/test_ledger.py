"""The ledger alone, without models: whose facts are whose, which file is whose, and one chain of models."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from expunge.continual.fulfil import Requests, verify
from expunge.continual.intake import joint_retain
from expunge.continual.ledger import ADAPTERS, MLP_ROWS, Entry, Ledger
from expunge.data.example import Example
from expunge.errors import InputError
from expunge.models.tensors import save_tensors
from expunge.recipe import Recipe
from expunge.request import Request

A, B, C, D, E, F = (Example(f"Where is {name} ?", town) for name, town in zip("ABCDEF", "uvwxyz", strict=True))


def ledger_of(folder: Path, **requests: Request) -> Ledger:
    ledger = Ledger(folder / "ledger")
    for name, request in requests.items():
        ledger.add(request, name)
    return ledger


def models(before: str, after: str) -> dict[str, object]:
    return {"run": f"runs/{after}", "model_before": {"w": before}, "model_after": {"w": after}}


TWO = {"first": Request((A,), (D,)), "second": Request((B,), (E,))}


def test_an_entry_of_the_first_ledgers_has_the_hash_that_it_had() -> None:
    """Digests as the code gave them that knew neither of the later fields."""
    entry = Entry(kind="fulfilled", request="a", time="2026", previous="", before=5.0, removed="00")
    assert entry.digest() == "e2af7eb4c28523584832ae12e83320d82ac2afed639cc35615412f269668a2d2"
    known = entry.model_copy(update={"lead": 0.0})
    assert known.digest() == "82b3992f04bb879fceed7c8ec5b5e4bd3fd99ee8309a79077bf64d5044961336"
    changes: tuple[Mapping[str, object], ...] = ({"carries": "adapters"}, {"beside": {"config.json": "0"}})
    assert all(entry.model_copy(update=change).digest() != entry.digest() for change in changes)


def test_a_run_that_began_with_another_model_than_the_last_is_not_entered(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, **TWO)
    ledger.fulfil("first", models("start", "one"))
    with pytest.raises(InputError, match="another model than this run began with") as caught:
        ledger.fulfil("second", models("start", "two"))
    assert "runs/two" in caught.value.where and "runs/one/model" in caught.value.fix
    assert ledger.pending() == ("second",)
    ledger.fulfil("second", models("one", "two"))


def test_of_two_runs_of_one_request_the_second_is_entered_only_if_it_was_meant_to_be(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, **TWO)
    ledger.fulfil("first", models("start", "one"))
    with pytest.raises(InputError, match="does not wait"):
        ledger.fulfil("first", models("start", "other"))
    with pytest.raises(InputError, match="does not wait"):
        ledger.fulfil("second", models("one", "two"), time=2)
    with pytest.raises(InputError, match="began with another model the first time"):
        ledger.fulfil("first", models("elsewhere", "other"), time=2)
    ledger.fulfil("first", models("start", "other"), time=2)
    with pytest.raises(InputError, match="does not wait"):
        ledger.fulfil("first", models("start", "third"), time=2)
    assert ledger.fulfilled()["first"].model_after == {"w": "other"} and ledger.times("first") == 2
    ledger.fulfil("second", models("other", "two"))
    with pytest.raises(InputError, match="'second' was carried out after 'first'"):
        ledger.fulfil("first", models("start", "third"), time=3)
    assert len(ledger.entries()) == 5


def test_verify_reads_the_whole_chain_of_models(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, **TWO)
    for name, values in (("first", models("start", "one")), ("second", models("start", "two"))):
        ledger._append({"kind": "fulfilled", "request": name, **values})  # as a ledger did that did not compare
    with pytest.raises(InputError, match="'second' did not begin with the model that request 'first' left"):
        verify(ledger, str(tmp_path))


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"\xff", "cannot be read: it is not UTF-8 text"), (b"{", "not a ledger"), (b"[]", "not a ledger")],
)
def test_a_damaged_ledger_is_told_without_a_parser_s_words(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "ledger.json").write_bytes(content)
    with pytest.raises(InputError, match=says) as told:
        Ledger(tmp_path).entries()
    assert told.value.where == str(tmp_path / "ledger.json")


SAME = replace(A, prompt=" where is  a ?", answer="U\n", id="other")


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (Request((SAME,), (E,)), "1 of 1 facts are those of request 'first', which waits"),
        (Request((B,), (SAME,)), "retain set holds 1 facts that request 'first' wants forgotten"),
        (Request((B,), (E,), attack=(SAME,)), "attack set holds 1 facts that request 'first' wants forgotten"),
        (Request((B,), (replace(B, answer="V", id="other"),)), "retain set holds 1 facts that this request wants"),
    ],
)
def test_case_and_white_space_make_no_other_fact(request_: Request, says: str, tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, first=TWO["first"])
    with pytest.raises(InputError, match=says):
        ledger.add(request_, "second")
    ledger.add(Request((replace(A, prompt="A is where ?", id="other"),), (E,)), "paraphrased")


@pytest.mark.parametrize(
    ("earlier", "later", "fault"),
    [
        ({}, Request((A,)), "second"),
        ({}, Request((A,), attack=(B,)), "second"),
        (TWO, Request((D, E)), "third"),
        (TWO, Request((C,), (F,), attack=(D,)), "first"),
        ({"first": TWO["first"]}, Request((B,), attack=(D,)), "first"),
    ],
)
def test_a_request_that_leaves_nothing_to_retain_is_refused(
    earlier: dict[str, Request], later: Request, fault: str, tmp_path: Path
) -> None:
    ledger = ledger_of(tmp_path, **earlier)
    name = "third" if len(earlier) == 2 else "second"
    with pytest.raises(InputError, match=f"Nothing would be left to retain for request '{fault}'"):
        ledger.add(later, name)
    assert list(ledger.received()) == list(earlier)


def test_what_an_earlier_one_retains_is_enough(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, **TWO, third=Request((C, D)))
    assert joint_retain([ledger.request(name) for name in ledger.received()], ()) == [E]


def test_one_that_had_nothing_to_retain_before_hinders_no_other(tmp_path: Path) -> None:
    """Older ledgers took such requests in."""
    ledger = Ledger(tmp_path)
    bare = Request((A,))
    bare.save(tmp_path / "requests" / "bare")
    ledger._append({"kind": "received", "request": "bare", "data": bare.hashes()})
    ledger.add(TWO["second"], "second")
    with pytest.raises(InputError, match="Nothing is left to retain"):
        Requests(ledger, tmp_path / "runs", {})._recipe("bare", bare, "model")


def test_attack_facts_of_any_request_are_not_trained_on_and_that_is_told(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, first=Request((A,), (D,), attack=(E, F)))
    (note,) = ledger.add(Request((B,), (C, E)), "second")
    assert "1 facts to retain are in the attack set of request 'first'" in note
    (note,) = ledger.add(Request((F,), (C,)), "third")
    assert "1 facts are in the attack set of request 'first'" in note
    notes = ledger.add(Request((replace(A, prompt="?", id="x"),), (D,), attack=(C,)), "fourth")
    assert notes == [
        f"1 facts to attack with were kept for request {other!r}; from now on they are not."
        for other in ("second", "third")
    ]
    ledger.fulfil("first", models("start", "one"))
    recipe = Requests(ledger, tmp_path / "runs", {})._recipe("second", ledger.request("second"), "model")
    assert recipe.data.retain is not None
    assert [json.loads(line)["prompt"] for line in Path(recipe.data.retain).read_text().splitlines()] == [D.prompt]


def test_a_fact_that_was_forgotten_first_is_not_taught_by_the_attacks_of_a_later_run(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, first=Request((A,), (D,), attack=(E, F)), second=Request((F,), (C,)))
    made = Requests(ledger, tmp_path / "runs", {})
    whole = made._recipe("first", ledger.request("first"), "model").data.attack
    ledger.fulfil("second", models("start", "one"))
    fewer = made._recipe("first", ledger.request("first"), "model").data.attack
    assert whole is not None and fewer is not None
    told = [[json.loads(line)["prompt"] for line in Path(each).read_text().splitlines()] for each in (whole, fewer)]
    assert told == [[E.prompt, F.prompt], [E.prompt]]


ROWS = {"block.1": torch.eye(2)}
STATE = {f"{kind}.q": torch.eye(2) for kind in ("start", "gram", "moved")}


@pytest.fixture
def kept(tmp_path: Path) -> Callable[..., Ledger]:
    """A ledger with one entry for each file of tensors and its kind, or None where the run left no file."""

    def make(*left: tuple[dict[str, torch.Tensor], str] | None) -> Ledger:
        towns = (A, B, C, D)[: len(left)]
        ledger = ledger_of(tmp_path, **{f"r{i}": Request((fact,), (E,)) for i, fact in enumerate(towns)})
        for number, each in enumerate(left):
            file = tmp_path / f"{number}.safetensors"
            if each is not None:
                save_tensors(file, {name: value + number for name, value in each[0].items()})
            values = {**models(f"m{number}", f"m{number + 1}"), "carries": each[1] if each else ""}
            ledger.fulfil(f"r{number}", values, file if each else None)
        return ledger

    return make


def test_each_kind_has_its_own_last_file(kept: Callable[..., Ledger]) -> None:
    ledger = kept((ROWS, MLP_ROWS), (STATE, ADAPTERS), (ROWS, "rows at block"), None)
    found = {kind: ledger.carried(kind) for kind in (MLP_ROWS, ADAPTERS, "rows at block", "LoRA")}
    assert {kind: each and each[0].request for kind, each in found.items()} == {
        MLP_ROWS: "r0",
        ADAPTERS: "r1",
        "rows at block": "r2",
        "LoRA": None,
    }


def test_in_old_ledgers_the_tensors_tell_the_kind_and_a_copy_is_not_whose_run_it_lies_with(
    kept: Callable[..., Ledger],
) -> None:
    ledger = kept((ROWS, ""), (STATE, ""), None)
    rows, adapters = ledger.carried(MLP_ROWS), ledger.carried(ADAPTERS)
    assert rows and adapters and (rows[0].request, adapters[0].request) == ("r0", "r1")
    # An old ledger kept the last file again with each entry, whatever method that was of.
    ledger.add(Request((F,), (E,)), "again")
    ledger.fulfil("again", models("m3", "m4"), adapters[1])
    found = ledger.carried(ADAPTERS)
    assert found and found[0].request == "r1" and found[1].name == "again.safetensors"
    with pytest.raises(InputError, match=r"'r2', by , came after the adapters of request 'r1'"):
        _recipe(ledger, "eul")
    assert _recipe(ledger, "mrp").settings["parametrization.earlier"] == str(rows[1])
    assert "parametrization.earlier" not in _recipe(ledger, "mrp_code").settings
    assert not _recipe(ledger, "graddiff").settings
    rows[1].write_bytes(b"else")
    with pytest.raises(InputError, match="missing or was changed"):
        _recipe(ledger, "mrp")


def _recipe(ledger: Ledger, method: str) -> Recipe:
    made = Requests(ledger, ledger.folder / "runs", {"method": method})
    return made._recipe("next", Request((replace(A, prompt="?", id="x"),), (E,)), "model")
