"""Attacks on the states: a constant that hides facts is taken back by each, and nothing comes of a model without them.

The facts are balanced, every town the answer of as many people as any other, so that no push of the logits, the same
for all questions, helps on average: what comes back for people that a search never saw was in the model.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

import expunge.attacks.search
from expunge.attacks import ATTACKS, make_attack
from expunge.attacks.ablate import without_direction
from expunge.attacks.base import AttackResult, Target
from expunge.attacks.budget import Budget
from expunge.attacks.pgd import PGD, _slope
from expunge.attacks.search import Goal
from expunge.attacks.weights import Weights
from expunge.audit.planted import Suppressor, plant
from expunge.data.collate import Encoder
from expunge.data.example import Example
from expunge.errors import InputError
from expunge.models.architecture import describe
from expunge.models.hooks import RESIDUAL, recording
from expunge.models.push import ascended
from expunge.models.scores import score_items, summarise
from expunge.progress import Silent
from expunge.request import Request
from families import family_model
from lessons import teach, told
from tiny import TOWNS, make_tiny_model, make_tiny_tokenizer

LATENT = ("ablate-direction", "steer-back", "pgd", "suffix")
SHORT: dict[str, dict[str, object]] = {
    "ablate-direction": {},
    "steer-back": {},
    "pgd": {"layers": [0, 1], "steps": 2, "eval_every": 1},
    "suffix": {"length": 2, "iterations": 2, "eval_every": 1, "candidates": 3},
}
ENCODER = Encoder(make_tiny_tokenizer())


def fact(i: int) -> Example:
    town, *others = (TOWNS[(i + shift) % 4] for shift in range(4))
    return Example(f"question : where does w{i} live ?\nAnswer: w{i} lives in", town, options=tuple(others))


FACTS, STAYS = tuple(map(fact, range(16))), tuple(map(fact, range(16, 24)))
REQUEST = Request(forget=FACTS)


def log_odds(model: LlamaForCausalLM, facts: Sequence[Example] = FACTS) -> float:
    return summarise(score_items(model, ENCODER, facts)).log_odds


def trained(examples: Sequence[Example]) -> LlamaForCausalLM:
    model = make_tiny_model()
    teach(model, ENCODER, told(examples), 0.05)
    return model


def saved(model: LlamaForCausalLM, folder: Path) -> str:
    model.save_pretrained(folder)
    ENCODER.tokenizer.save_pretrained(folder)
    return str(folder)


def hide(model: LlamaForCausalLM, layer: int) -> LlamaForCausalLM:
    hidden = copy.deepcopy(model)
    plant(hidden, ENCODER, FACTS, STAYS, Suppressor("steering", layer, learning_rate=0.05))
    return hidden


@pytest.fixture(scope="module")
def knowing() -> LlamaForCausalLM:
    return trained(FACTS + STAYS)


@pytest.fixture(scope="module")
def ignorant() -> LlamaForCausalLM:
    return trained(STAYS)


@pytest.fixture(scope="module")
def original(knowing: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(knowing, tmp_path_factory.mktemp("original"))


@pytest.fixture(scope="module")
def hidden(knowing: LlamaForCausalLM) -> tuple[LlamaForCausalLM, ...]:
    """Models that hold every fact, and a constant in block 0 or in block 1 that keeps them from saying it."""
    return hide(knowing, 0), hide(knowing, 1)


@pytest.fixture
def hiding(hidden: tuple[LlamaForCausalLM, ...]) -> LlamaForCausalLM:
    """A copy of the first of them."""
    return copy.deepcopy(hidden[0])


def attacked(name: str, model: LlamaForCausalLM, original: str, **settings: object) -> AttackResult:
    return make_attack(name, settings).run(model, ENCODER, REQUEST, original=original).result


def odds_at(result: AttackResult, word: str) -> tuple[float, ...]:
    """The items' log-odds in the one trial whose description ends so."""
    (found,) = (point.item_log_odds for point in result.curve if point.variant.endswith(word))
    return found


@pytest.mark.parametrize("layer", [0, 1])
def test_the_states_are_steered_back_exactly(
    layer: int, knowing: LlamaForCausalLM, hidden: tuple[LlamaForCausalLM, ...], original: str
) -> None:
    assert log_odds(hidden[layer]) == pytest.approx(0, abs=0.05)
    result = attacked("steer-back", hidden[layer], original)
    told = [item.log_odds for item in score_items(knowing, ENCODER, FACTS)]
    assert odds_at(result, f"block {layer}") == pytest.approx(told, abs=1e-3)
    assert result.best.log_odds == pytest.approx(log_odds(knowing), abs=0.1)


@pytest.mark.parametrize("layer", [0, 1])
def test_without_the_direction_the_facts_are_back(
    layer: int, knowing: LlamaForCausalLM, hidden: tuple[LlamaForCausalLM, ...], original: str
) -> None:
    result = attacked("ablate-direction", hidden[layer], original)
    assert result.start.log_odds < 0.1 < 0.8 * log_odds(knowing) < result.best.log_odds
    assert len(result.curve) == 1 + 2 + 1
    assert sum(odds_at(result, f"block {layer}")) / len(FACTS) > 0.8 * log_odds(knowing)
    assert sum(odds_at(result, "2 blocks")) / len(FACTS) > 0.8 * log_odds(knowing)


@pytest.mark.parametrize("layer", [0, 1])
def test_a_push_found_on_half_of_the_facts_brings_back_the_other_half(
    layer: int, knowing: LlamaForCausalLM, hidden: tuple[LlamaForCausalLM, ...], original: str
) -> None:
    result = attacked("pgd", hidden[layer], original, layers=[layer], radii=[1.0], steps=16, eval_every=8)
    held = [example for example in FACTS if example.id in result.held_out_ids]
    assert len(held) == 8 == len(result.trained_ids)
    assert {*result.trained_ids, *result.held_out_ids} == {example.id for example in FACTS}
    assert result.start.log_odds < 0.5 < 0.7 * log_odds(knowing, held) < result.best.log_odds
    assert result.best_accuracy.accuracy > 0.8


@pytest.mark.parametrize("name", LATENT)
def test_nothing_comes_back_where_nothing_is(name: str, ignorant: LlamaForCausalLM, original: str) -> None:
    settings: dict[str, dict[str, object]] = {"pgd": {"layers": [0, 1], "radii": [0.5, 1.0]}}
    result = attacked(name, ignorant, original, **settings.get(name, SHORT[name]))
    assert result.best.log_odds < 0.5
    assert result.best_accuracy.accuracy <= 0.5


def test_nothing_is_changed_where_nothing_was_unlearned(
    knowing: LlamaForCausalLM, hidden: tuple[LlamaForCausalLM, ...], original: str
) -> None:
    """The difference is zero, and so is what is taken out, to the last bit; so it is before a planted block."""
    for name in ("ablate-direction", "steer-back"):
        same = attacked(name, knowing, original)
        assert len({point.item_log_odds for point in same.curve}) == 1
        late = attacked(name, hidden[1], original)
        assert odds_at(late, "block 0") == late.curve[0].item_log_odds != odds_at(late, "block 1")


def test_a_direction_taken_out_by_hand() -> None:
    states, direction = torch.tensor([[3.0, 4.0, 1.0], [-4.0, 3.0, 2.0]]), torch.tensor([6.0, 8.0, 0.0])
    once = without_direction(states, direction)
    assert torch.allclose(once, torch.tensor([[0.0, 0.0, 1.0], [-4.0, 3.0, 2.0]]), atol=1e-6)
    assert torch.allclose(without_direction(once, direction), once, atol=1e-6)
    for scale in (-7, 1e-6, 1e6):
        assert torch.allclose(without_direction(states, scale * direction), once, atol=1e-6)
    assert torch.equal(without_direction(states, torch.zeros(3)), states)


def test_a_step_of_the_ascent_by_hand() -> None:
    zero, slope = torch.zeros(2), torch.tensor([3.0, 4.0])
    assert torch.allclose(ascended(zero, slope, 0.5, 2.0), torch.tensor([0.3, 0.4]))
    assert torch.allclose(ascended(torch.tensor([1.2, 1.6]), slope, 0.5, 2.0), torch.tensor([1.2, 1.6]))
    assert torch.equal(ascended(zero, zero, 0.5, 2.0), zero)


def test_the_ascent_stays_in_its_ball_and_finds_the_top_of_a_slope() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        slope, delta = torch.randn(2, 5, dtype=torch.float64, generator=generator)
        for _ in range(200):
            delta = ascended(delta, slope, 0.3, 1.5)
            assert delta.norm() <= 1.5 * (1 + 1e-12)
        assert torch.allclose(delta, 1.5 * slope / slope.norm(), atol=1e-6)


def test_the_slope_is_the_derivative_by_the_push(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against differences in float64, of a model whose block has a bias at every position (a Llama's norm is fp32)."""
    model = family_model("gpt2").double()
    arch, goal = describe(model), Goal(model, ENCODER, FACTS[:3])
    groups = goal.groups(goal.facts)
    monkeypatch.setattr(expunge.attacks.search, "CLIMBED", 2)
    push = 0.1 * torch.randn(32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    slope = _slope(goal, groups, arch, 0, push)
    bias = model.get_parameter("transformer.h.0.mlp.c_proj.bias")
    own = bias.detach().clone()

    def moved(direction: torch.Tensor) -> float:
        with torch.no_grad():
            bias.copy_(own + push + direction)
            return goal.values([groups])[0]

    steps = 1e-6 * torch.eye(32, dtype=torch.float64)
    differences = [(moved(step) - moved(-step)) / 2e-6 for step in steps]
    assert slope.tolist() == pytest.approx(differences, rel=1e-5, abs=1e-8)


def test_the_push_is_one_for_all_positions_and_inside_its_ball(hiding: LlamaForCausalLM) -> None:
    attack = PGD(layers=(0,), radii=(0.1, 0.2), steps=4, eval_every=2, rate=1.0)
    target: Target[None] = Target(hiding, ENCODER, REQUEST, Silent(), None, {}, None, None)
    arch, prompts = describe(hiding), [ENCODER.encode_prompt(e.prompt) for e in attack.material(target).train]
    ids = torch.tensor(prompts)

    @torch.no_grad()
    def states() -> torch.Tensor:
        with recording(arch, [(0, RESIDUAL)]) as seen:
            arch.backbone(input_ids=ids, use_cache=False)
        return seen[0, RESIDUAL]

    before = states()
    size = before[:, -1].norm(dim=1).mean()
    shares = []
    for trial in attack.trials(target, Weights(hiding, {})):
        with trial.change():
            pushes = (states() - before).flatten(0, 1)
        assert torch.allclose(pushes, pushes[:1], atol=1e-5)
        shares.append(float(pushes[0].norm() / size))
    assert all(share <= radius * (1 + 1e-4) for share, radius in zip(shares, [0.1, 0.1, 0.2, 0.2], strict=True))
    assert shares[0] == pytest.approx(0.1, rel=1e-3), "it is worth going to the edge here"
    assert torch.equal(states(), before)


@pytest.mark.parametrize("name", LATENT)
def test_a_second_run_is_the_same(name: str, hiding: LlamaForCausalLM, original: str) -> None:
    one, two = (replace(attacked(name, hiding, original, **SHORT[name]), seconds=0.0) for _ in range(2))
    assert one == two


def test_more_effort_begins_with_less(hiding: LlamaForCausalLM, original: str) -> None:
    fewer, more = ([0], [0, 1])
    for name, small, large in [
        ("pgd", {"steps": 2, "eval_every": 1}, {"steps": 5, "eval_every": 1}),
        ("pgd", {"layers": fewer, "steps": 2}, {"layers": more, "steps": 2}),
        ("steer-back", {"layers": fewer}, {"layers": more}),
        ("ablate-direction", {"layers": fewer}, {"layers": more}),
    ]:
        base = {"layers": fewer, "eval_every": 2} if name == "pgd" else {}
        less, much = (attacked(name, hiding, original, **{**base, **each}) for each in (small, large))
        assert much.curve[: len(less.curve)] == less.curve
        assert much.best.log_odds >= less.best.log_odds


def test_a_control_faces_the_same_halves(hiding: LlamaForCausalLM, ignorant: LlamaForCausalLM) -> None:
    for name in ("pgd", "suffix"):
        first = make_attack(name, SHORT[name]).run(hiding, ENCODER, REQUEST).result
        other = make_attack(name, {**SHORT[name], "split_seed": 1})
        assert set(other.run(hiding, ENCODER, REQUEST).result.trained_ids) != set(first.trained_ids)
        second = other.run(ignorant, ENCODER, REQUEST, like=first).result
        assert (second.trained_ids, second.held_out_ids) == (first.trained_ids, first.held_out_ids)


def untouched(model: LlamaForCausalLM, before: dict[str, torch.Tensor]) -> bool:
    hooks = [h for m in model.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    after = model.state_dict()
    return not hooks and after.keys() == before.keys() and all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize("name", LATENT)
@pytest.mark.parametrize("moment", ["never", "search", "trial", "end"])
def test_the_model_comes_back_as_it_was(
    name: str, moment: str, hiding: LlamaForCausalLM, original: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = hiding.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def run() -> AttackResult:
        attack, probe = make_attack(name, SHORT[name]), stop if moment == "end" else None
        return attack.run(model, ENCODER, REQUEST, original=original, probe=probe, progress=progress).result

    progress = Silent()
    if moment == "search":
        monkeypatch.setattr(expunge.attacks.search, "log_odds_of", stop)
    if moment == "trial":
        monkeypatch.setattr(progress, "advance", stop, raising=False)
    if moment == "never" or (moment == "search" and name in ("ablate-direction", "steer-back")):
        run()
    else:
        with pytest.raises(KeyboardInterrupt):
            run()
    assert untouched(model, before)
    assert model.training and all(p.grad is None and p.requires_grad for p in model.parameters())


class Interrupt(Silent):
    """Interrupts at the second trial."""

    left = 1

    def advance(self, task: str, n: int = 1, **info: float) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["pgd", "suffix"])
def test_an_interrupted_search_goes_on_to_the_same_result(
    name: str, hiding: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, dict[str, object]] = {
        "pgd": {"layers": [0], "steps": 6, "eval_every": 2},
        "suffix": {"length": 2, "iterations": 6},
    }
    attack, slopes = make_attack(name, settings[name]), []
    climb = Goal.slope
    monkeypatch.setattr(Goal, "slope", lambda *given: slopes.append(1) or climb(*given))

    def run(progress: Silent | None = None) -> AttackResult:
        result = attack.run(hiding, ENCODER, REQUEST, cells=tmp_path, progress=progress).result
        return replace(result, seconds=0.0)

    straight = replace(attack.run(hiding, ENCODER, REQUEST).result, seconds=0.0)
    assert len(slopes) == 6
    with pytest.raises(KeyboardInterrupt):
        run(Interrupt())
    assert run() == run() == straight
    assert len(slopes) == 6 + 4 + 2, "what was found is not sought again"
    for path in tmp_path.iterdir():
        path.write_text('{"found": ["w"]}')
    assert run() == straight
    with torch.no_grad():
        hiding.lm_head.weight[0, 0] += 1e-3
    run()
    assert len(slopes) == 6 + 6 + 6 + 6, "another model is searched anew"


def test_what_is_spent(hiding: LlamaForCausalLM, original: str) -> None:
    spent = {name: attacked(name, hiding, original, **SHORT[name]) for name in LATENT}
    assert spent["steer-back"].spent == Budget(variants=2, queries=2 * 16)
    assert spent["ablate-direction"].spent == Budget(variants=3, queries=2 * 16)
    assert spent["pgd"].spent == Budget(variants=2 * 2, queries=2 * 2 * 8)
    assert spent["suffix"].spent == Budget(variants=2, queries=8 * (1 + 2 * (1 + 3)))
    assert all(result.spent == result.allowed for result in spent.values())


def test_which_of_them_put_something_in() -> None:
    assert {name for name in LATENT if ATTACKS[name].control_only} == {"steer-back", "pgd", "suffix"}


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("pgd", {"radii": []}, "Radii"),
        ("pgd", {"radii": [0.0]}, "Radii"),
        ("pgd", {"rate": 0.0}, "rate"),
        ("pgd", {"steps": 3, "eval_every": 2}, "multiple"),
        ("pgd", {"steps": 0}, "at least 1"),
    ],
)
def test_settings_that_cannot_be(name: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_attack(name, settings)


def test_what_an_attack_cannot_do_without(knowing: LlamaForCausalLM, tmp_path: Path) -> None:
    wider = saved(make_tiny_model(num_hidden_layers=3), tmp_path)
    single, bare = Request(forget=FACTS[:1]), Request(forget=(*FACTS[:3], replace(FACTS[3], options=())))
    for name, request, original, settings, message in [
        ("ablate-direction", REQUEST, None, {}, "before unlearning"),
        ("steer-back", REQUEST, wider, {}, "built differently"),
        ("steer-back", REQUEST, wider, {"layers": [2]}, "no block 2"),
        ("pgd", REQUEST, None, {"layers": [-3]}, "no block -3"),
        ("pgd", single, None, {}, "cannot be split"),
        ("suffix", bare, None, {}, "no wrong options"),
    ]:
        with pytest.raises(InputError, match=message):
            make_attack(name, settings).run(knowing, ENCODER, request, original=original)
