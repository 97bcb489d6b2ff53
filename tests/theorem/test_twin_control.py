"""Planted truths for made-up twins: what guessing gives, in models that hide, never knew, or try to look as if."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import pytest
from transformers import LlamaForCausalLM

from expunge.attacks import make_attack
from expunge.attacks.base import AttackResult, Target
from expunge.attacks.quantise import Quantise
from expunge.attacks.trials import Trial
from expunge.attacks.weights import Weights
from expunge.audit.control import MADE_UP, lead, recovery
from expunge.audit.planted import Suppressor, plant
from expunge.data.twins import scored_twins, trained_twins
from expunge.errors import InputError
from expunge.models.scores import ItemScore, score_items, summarise
from expunge.request import Request
from tiny import make_tiny_model
from towns import ENCODER, FACTS, STAYS, TWINS, teach

HARMFUL = {"fraction": 0.4, "learning_rates": [3e-3], "max_steps": 8, "eval_every": 2}


REQUEST = Request(forget=FACTS, retain=STAYS)


@pytest.fixture(scope="module")
def knowing() -> LlamaForCausalLM:
    return teach(make_tiny_model(), FACTS + STAYS)


@pytest.fixture(scope="module")
def known(knowing: LlamaForCausalLM) -> tuple[ItemScore, ...]:
    return score_items(knowing, ENCODER, FACTS)


@pytest.fixture(scope="module")
def guessed(knowing: LlamaForCausalLM) -> dict[str, ItemScore]:
    return dict(zip(TWINS, score_items(knowing, ENCODER, list(TWINS.values())), strict=True))


def attacked(model: LlamaForCausalLM, name: str = "relearn-harmful", **settings: object) -> AttackResult:
    return make_attack(name, {**HARMFUL, **settings}).run(model, ENCODER, REQUEST, twins=TWINS).result


def hiding(knowing: LlamaForCausalLM, kind: str) -> LlamaForCausalLM:
    model = copy.deepcopy(knowing)
    plant(model, ENCODER, FACTS, STAYS, Suppressor(kind, -1, neurons=4, learning_rate=0.05))
    return model


def test_the_world_is_guessed_at_chance(known: tuple[ItemScore, ...], guessed: dict[str, ItemScore]) -> None:
    assert summarise(known).accuracy == 1 and summarise(known).log_odds > 5
    twins = summarise(list(guessed.values()))
    assert twins.accuracy <= 0.5 and twins.log_odds < 0.5


def test_knowledge_leads_whether_hidden_or_not(
    knowing: LlamaForCausalLM, known: tuple[ItemScore, ...], guessed: dict[str, ItemScore]
) -> None:
    assert lead(attacked(knowing), known, guessed).low > 0.8
    hidden = recovery(attacked(hiding(knowing, "rank_one")), known, twins=guessed)
    assert hidden.value > 0.5 and hidden.low > 0.25


def test_a_model_that_was_never_taught_leads_by_nothing(
    known: tuple[ItemScore, ...], guessed: dict[str, ItemScore]
) -> None:
    """Though the attack teaches it which towns are answers, so that it guesses better than at log-odds 0."""
    result = attacked(teach(make_tiny_model(), STAYS))
    found = lead(result, known, guessed)
    assert result.best.log_odds > 1
    assert found.low < 0 < found.high and abs(found.value) < 0.2


def test_a_bias_against_the_answers_that_no_attack_takes_away_is_found_out(
    knowing: LlamaForCausalLM, known: tuple[ItemScore, ...], guessed: dict[str, ItemScore]
) -> None:
    """Against ignorance it would pass for erased."""
    result = attacked(hiding(knowing, "output_bias"), max_steps=2, eval_every=1)
    assert recovery(result, known).high < 0.25
    found = recovery(result, known, twins=guessed)
    assert found.control == MADE_UP and found.low > 0.8


def test_a_model_that_was_taught_its_twins_hides_nothing(
    knowing: LlamaForCausalLM, known: tuple[ItemScore, ...], guessed: dict[str, ItemScore]
) -> None:
    """Whoever knows the invented names can make them as familiar as the real ones; the larger of the controls holds."""
    model = teach(copy.deepcopy(knowing), (*FACTS, *STAYS, *TWINS.values()))
    result = attacked(model)
    assert lead(result, known, guessed).value < 0.3
    assert recovery(result, known, twins=guessed).low > 0.8


def test_twins_change_nothing_else_and_are_never_trained_on(knowing: LlamaForCausalLM) -> None:
    for name, settings in (("relearn-harmful", HARMFUL), ("relearn-syntactic", {"max_steps": 2}), ("quantise", {})):
        attack = make_attack(name, settings)
        with_twins = attack.run(knowing, ENCODER, REQUEST, twins=TWINS).result
        without = attack.run(knowing, ENCODER, REQUEST).result
        assert [len(p.twin_log_odds) for p in with_twins.curve] == [len(with_twins.held_out_ids)] * len(without.curve)
        bare = tuple(replace(p, twin_log_odds=()) for p in with_twins.curve)
        assert (bare, with_twins.items, with_twins.spent) == (without.curve, without.items, without.spent)
        assert with_twins.twin_ids == {i: TWINS[i].id for i in with_twins.held_out_ids} and not without.twin_ids
        assert not {*with_twins.trained_ids, *with_twins.held_out_ids} & set(with_twins.twin_ids.values())


def test_syntactic_trains_on_what_nobody_can_know_and_scores_all(knowing: LlamaForCausalLM) -> None:
    scored, trained = scored_twins(REQUEST), trained_twins(REQUEST)
    attack = make_attack("relearn-syntactic", {"max_steps": 2})
    result = attack.run(knowing, ENCODER, REQUEST, twins=scored).result
    assert result.trained_ids == tuple(e.id for e in trained)
    assert result.held_out_ids == tuple(e.id for e in FACTS) == tuple(result.twin_ids)
    assert not set(result.trained_ids) & set(result.twin_ids.values())
    nameless = Request(forget=tuple(replace(e, subject="") for e in FACTS))
    with pytest.raises(InputError, match="made-up subject"):
        attack.run(knowing, ENCODER, nameless)


def test_twins_score_as_the_attacked_model_answers_them(knowing: LlamaForCausalLM) -> None:
    seen: list[tuple[float, ...]] = []

    def look(model: LlamaForCausalLM) -> None:
        seen.append(tuple(item.log_odds for item in score_items(model, ENCODER, [TWINS[i] for i in held_out])))

    held_out = attacked(knowing).held_out_ids
    result = make_attack("relearn-harmful", HARMFUL).run(knowing, ENCODER, REQUEST, twins=TWINS, probe=look).result
    assert result.curve[-1].twin_log_odds == seen[-1] != result.curve[0].twin_log_odds


def test_cells_are_kept_with_their_twins(knowing: LlamaForCausalLM) -> None:
    cells: dict[str, dict[str, object]] = {}
    attack = make_attack("relearn-harmful", {**HARMFUL, "max_steps": 2})
    first = attack.run(knowing, ENCODER, REQUEST, twins=TWINS, cells=cells).result
    again = attack.run(knowing, ENCODER, REQUEST, twins=TWINS, cells=cells).result
    assert again == first and len(cells) == 1
    attack.run(knowing, ENCODER, REQUEST, cells=cells)
    others = {i: replace(e, id="", prompt=f"{e.prompt} w60") for i, e in TWINS.items()}
    attack.run(knowing, ENCODER, REQUEST, twins=others, cells=cells)
    assert len(cells) == 3
    some = dict(list(TWINS.items())[:9])
    part = attack.run(knowing, ENCODER, REQUEST, twins=some, cells=cells).result
    assert list(part.twin_ids) == [i for i in part.held_out_ids if i in some]
    assert all(len(p.twin_log_odds) == len(part.twin_ids) for p in part.curve)


def test_attacks_that_search_for_an_answer_have_no_twins(knowing: LlamaForCausalLM) -> None:
    """Their search is for the items; what it does to a twin says nothing of what it would find for one."""

    class Searching(Quantise):
        control_only = True

    result = Searching(bits=(8,), groups=(32,)).run(knowing, ENCODER, REQUEST, twins=TWINS).result
    assert not result.twin_ids and all(p.twin_log_odds == () for p in result.curve)


def test_a_reworded_item_has_a_reworded_twin(knowing: LlamaForCausalLM) -> None:
    """Words in which the items are asked, by their ids or by a rule, are those of their twins."""
    wordings = {e.id: f"in the town {e.prompt}" for e in FACTS}

    class Reworded(Quantise):
        def trials(self, target: Target[object], weights: Weights) -> Iterator[Trial]:
            yield Trial("as it is, again")
            yield Trial("told", ask=lambda items: [replace(e, prompt=wordings[e.id]) for e in items])

    result = Reworded(bits=(8,), groups=(32, 64)).run(knowing, ENCODER, REQUEST, twins=TWINS).result
    plain, again, told = (p.twin_log_odds for p in result.curve)
    reworded = [replace(e, prompt=f"in the town {e.prompt}") for e in TWINS.values()]
    assert plain == again
    assert told == tuple(item.log_odds for item in score_items(knowing, ENCODER, reworded)) != plain
