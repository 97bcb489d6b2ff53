"""The attribution penalty is eq. 12 to 14 of arXiv:2509.22263, however its gradient is gained."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from expunge.unlearning.transforms import attribution_ride
from expunge.unlearning.transforms.attribution import AttributionPenalty
from expunge.unlearning.transforms.attribution_paths import BoundAttributionPenalty
from expunge.unlearning.transforms.base import Site

STRONG = 1e5
"""A strength at which the penalty's gradient is about as large as the loss's."""

Loss = Callable[[Tensor, Tensor, int], Tensor]
"""(s of forget rows, s of retain rows, forget rows of the whole step) -> this micro-batch's part of the loss."""

LOSSES: dict[str, Loss] = {
    "ga": lambda forget, retain, n: forget.sum() / n,
    "graddiff": lambda forget, retain, n: (forget.sum() - 0.7 * retain.sum()) / n,
    "npo": lambda forget, retain, n: (-20 * nn.functional.logsigmoid(-0.1 * (forget + 9.0)).sum() - retain.sum()) / n,
}


@dataclass
class Step:
    """Token ids [rows, T] of forget and retain examples whose last two tokens are the answer."""

    forget: Tensor
    retain: Tensor

    def split(self, sizes: Sequence[int]) -> Iterator[Step]:
        for forget, retain in zip(self.forget.split(list(sizes)), self.retain.split(list(sizes)), strict=True):
            yield Step(forget, retain)


def make_steps(model: nn.Module, count: int = 3, rows: int = 4) -> list[Step]:
    """Random prompts of four tokens and answers of two, which the model believes in: where P vanishes, so does g."""
    random = torch.Generator().manual_seed(7)
    ids = torch.randint(0, 96, (count, 2, rows, 4), generator=random).flatten(0, 2)
    for _ in range(2):
        with torch.no_grad():
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
    return [Step(*both) for both in ids.view(count, 2, rows, 6)]


def sequence_log_prob(model: nn.Module, ids: Tensor) -> Tensor:
    scores = model(input_ids=ids).logits[:, 3:-1].log_softmax(-1)
    return scores.gather(2, ids[:, 4:, None]).squeeze(2).sum(1)


def blocks_of(model: nn.Module) -> nn.ModuleList:
    return model.transformer.h if isinstance(model, GPT2LMHeadModel) else model.get_decoder().layers


def bind(model: nn.Module, strength: float = STRONG, **site: object) -> BoundAttributionPenalty:
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    settings = {"reduce": lambda x: x, "world": 1, **site}
    here = Site(model=model, arch=SimpleNamespace(blocks=blocks_of(model), linears=()), parameters=trained, **settings)
    return AttributionPenalty(strength, measure_every=1).bind(here)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def ridden_step(
    model: nn.Module, bound: BoundAttributionPenalty, step: Step, loss: Loss, sizes: Sequence[int] = (), total: int = 0
) -> dict[str, float]:
    """One step of the loop, without the optimizer: one fused forward and one backward for each micro-batch."""
    model.zero_grad()
    parts = list(step.split(sizes or [len(step.forget)]))
    for part in parts:
        n = len(part.forget)
        with bound.watch(n):
            both = sequence_log_prob(model, torch.cat([part.forget, part.retain]))
        forget = both[:n]
        value = loss(forget, both[n:], total or len(step.forget))
        bound.before_backward(value, SimpleNamespace(sequence=forget), last=part is parts[-1])
        value.backward()
    return bound.apply()


def naive_step(model: nn.Module, previous: dict[str, Tensor], step: Step, loss: Loss) -> dict[str, Tensor]:
    """The same by separate graphs, eq. 12 to 14 written down; updates `previous` and returns the penalty's gradient."""
    model.zero_grad()
    loss(sequence_log_prob(model, step.forget), sequence_log_prob(model, step.retain), len(step.forget)).backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    maps = {name: p for name, p in trained.items() if p.ndim == 2 and ("layers." in name or ".h." in name)}
    g = torch.autograd.grad(sequence_log_prob(model, step.forget).exp().sum(), list(maps.values()))
    penalties = {}
    for (name, weight), slope in zip(maps.items(), g, strict=True):
        a = weight.detach() * slope
        change = (a < 0) * (a - previous.get(name, a))
        previous[name] = a
        penalties[name] = 2 * STRONG * change * slope
        weight.grad += penalties[name]
    return penalties


def sgd(model: nn.Module) -> None:
    with torch.no_grad():
        for p in model.parameters():
            if p.grad is not None:
                p -= 0.01 * p.grad / (p.grad.norm() + 1e-12)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / (b.norm() + 1e-30))


def norm(tensors: dict[str, Tensor]) -> float:
    return float(torch.stack([t.norm() for t in tensors.values()]).norm())


class OneMap(nn.Module):
    """A softmax over four words of one linear map in one block: P(y | x) = softmax(W x)_y."""

    def __init__(self, weight: np.ndarray) -> None:
        super().__init__()
        self.map = nn.Linear(3, 4, bias=False, dtype=torch.float64)
        self.map.weight.data.copy_(torch.from_numpy(weight))
        self.layers = nn.ModuleList([self.map])

    def get_decoder(self) -> nn.Module:
        return self


def test_eq_14_on_a_hand_case() -> None:
    random = np.random.default_rng(3)
    weight = random.normal(size=(4, 3))
    model = OneMap(weight)
    bound = bind(model, strength=2.5)
    previous = None
    for _ in range(3):
        x, y = random.normal(size=(3, 3)), random.integers(0, 4, 3)
        p = np.exp(x @ weight.T)
        p /= p.sum(1, keepdims=True)
        error = np.eye(4)[y] - p
        picked = p[np.arange(3), y]
        loss_gradient = error.T @ x  # of sum log P
        g = (error * picked[:, None]).T @ x  # of sum P
        a = weight * g
        penalty = np.zeros_like(a) if previous is None else 2 * 2.5 * (a < 0) * (a - previous) * g
        drop = np.zeros_like(a) if previous is None else (a < 0) * (a - previous)
        previous = a

        model.zero_grad()
        with bound.watch(3):
            scores = model.map(torch.from_numpy(x)[:, None]).log_softmax(-1)[:, 0]
        s = scores[torch.arange(3), torch.from_numpy(y)]
        loss = s.sum()
        bound.before_backward(loss, SimpleNamespace(sequence=s), last=True)
        loss.backward()
        metrics = bound.apply()

        found = model.map.weight.grad.numpy()
        np.testing.assert_allclose(found, loss_gradient + penalty, rtol=1e-12, atol=1e-14)
        if metrics:
            assert metrics["attribution_penalty"] == pytest.approx(2.5 * (drop**2).sum(), rel=1e-9)
            ratio = np.linalg.norm(penalty) / np.linalg.norm(loss_gradient)
            assert metrics["attribution_gradient_ratio"] == pytest.approx(ratio, rel=1e-9)
        weight = weight - 0.3 * found
        model.map.weight.data.copy_(torch.from_numpy(weight))


@pytest.mark.parametrize("name", LOSSES)
def test_equals_a_naive_second_backward(name: str, tiny_model: LlamaForCausalLM) -> None:
    check_against_naive(tiny_model, LOSSES[name])


def test_equals_the_naive_way_on_conv1d() -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=16, initializer_range=0.2)
    check_against_naive(GPT2LMHeadModel(config).eval(), LOSSES["graddiff"])


def test_equals_the_naive_way_on_lora(tiny_model: LlamaForCausalLM) -> None:
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], lora_dropout=0.0)
    model = peft.inject_adapter_in_model(settings, tiny_model).eval()
    check_against_naive(model, LOSSES["graddiff"])


def check_against_naive(model: nn.Module, loss: Loss) -> None:
    bound, previous = bind(model), {}
    for t, step in enumerate(make_steps(model)):
        penalties = naive_step(model, previous, step, loss)
        expected = gradients(model)
        metrics = ridden_step(model, bound, step, loss)
        found = gradients(model)
        assert max(relative(found[name], expected[name]) for name in expected) < 1e-5
        if t:
            ratio = norm(penalties) / norm({k: expected[k] - penalties[k] for k in penalties})
            assert 0.01 < ratio < 100, "the penalty must matter, or this test shows nothing"
            assert metrics["attribution_gradient_ratio"] == pytest.approx(ratio, rel=1e-3)
        sgd(model)


def test_moves_only_what_has_negative_attribution(tiny_model: LlamaForCausalLM) -> None:
    first, second, _ = make_steps(tiny_model)
    loss = LOSSES["graddiff"]
    bound = bind(tiny_model)
    ridden_step(tiny_model, bound, first, loss)
    without = bind(tiny_model, strength=0.0)
    ridden_step(tiny_model, without, first, loss)
    sgd(tiny_model)

    ridden_step(tiny_model, without, second, loss)
    plain = gradients(tiny_model)
    ridden_step(tiny_model, bound, second, loss)
    penalised = gradients(tiny_model)
    kept = bound.state()
    for name, gradient in plain.items():
        changed = penalised[name] != gradient
        if name not in kept:
            assert not changed.any(), f"{name} is no linear map inside a block"
            continue
        negative = kept[name] < 0
        assert not changed[~negative].any()
        assert changed[negative].float().mean() > 0.9
    assert "model.embed_tokens.weight" in plain.keys() - kept.keys(), "trained, tied, not penalised"


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 5)])
def test_micro_batches_change_nothing(sizes: tuple[int, ...], tiny_model: LlamaForCausalLM) -> None:
    whole, parts = bind(tiny_model), bind(tiny_model)
    for step in make_steps(tiny_model, rows=6):
        one = ridden_step(tiny_model, whole, step, LOSSES["npo"])
        expected = gradients(tiny_model)
        many = ridden_step(tiny_model, parts, step, LOSSES["npo"], sizes)
        found = gradients(tiny_model)
        assert max(relative(found[name], expected[name]) for name in expected) < 1e-5
        assert many == pytest.approx(one, rel=1e-3)
        sgd(tiny_model)


def test_two_processes_change_nothing(tiny_model: LlamaForCausalLM) -> None:
    """Two threads stand for two processes: they only meet in `reduce`."""
    models = [tiny_model, copy.deepcopy(tiny_model)]
    steps, loss = make_steps(tiny_model), LOSSES["graddiff"]
    alone = copy.deepcopy(tiny_model)
    bound, expected, metrics = bind(alone), [], []
    for step in steps:
        metrics.append(ridden_step(alone, bound, step, loss))
        expected.append(gradients(alone))
        sgd(alone)

    meet, offered = threading.Barrier(2, timeout=30), [torch.empty(0)] * 2

    def reduce(rank: int, x: Tensor) -> Tensor:
        offered[rank] = x
        meet.wait()
        total = offered[0] + offered[1]
        meet.wait()
        return x.copy_(total)

    def work(rank: int) -> None:
        model = models[rank]
        bound = bind(model, reduce=partial(reduce, rank), world=2)
        for step, gradient, numbers in zip(steps, expected, metrics, strict=True):
            mine = list(step.split([1, 3]))[rank]
            measured = ridden_step(model, bound, mine, loss, total=4)
            for name, parameter in model.named_parameters():
                if parameter.grad is not None:
                    reduce(rank, parameter.grad)
                    errors.append(relative(parameter.grad, gradient[name]))
            assert measured == pytest.approx(numbers, rel=1e-3)
            sgd(model)
        finished.append(rank)

    errors: list[float] = []
    finished: list[int] = []
    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(finished) == [0, 1]
    assert max(errors) < 1e-5


def test_blocks_change_nothing(tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, blocks = bind(tiny_model), bind(tiny_model)
    for step in make_steps(tiny_model):
        ridden_step(tiny_model, whole, step, LOSSES["graddiff"])
        expected = gradients(tiny_model)
        with monkeypatch.context() as patch:
            patch.setattr(attribution_ride, "_BLOCK", 96)
            ridden_step(tiny_model, blocks, step, LOSSES["graddiff"])
        found = gradients(tiny_model)
        assert max(relative(found[name], expected[name]) for name in expected) < 1e-6
        sgd(tiny_model)


def test_resumed_equals_straight(tiny_model: LlamaForCausalLM) -> None:
    first, second, third = make_steps(tiny_model)
    straight = bind(tiny_model)
    for step in (first, second):
        ridden_step(tiny_model, straight, step, LOSSES["graddiff"])
        sgd(tiny_model)
    resumed = bind(tiny_model)
    resumed.load_state({name: x.clone() for name, x in straight.state().items()})

    one = ridden_step(tiny_model, straight, third, LOSSES["graddiff"])
    expected = gradients(tiny_model)
    two = ridden_step(tiny_model, resumed, third, LOSSES["graddiff"])
    assert one == two
    assert all(torch.equal(found, expected[name]) for name, found in gradients(tiny_model).items())
    assert straight.state().keys() == resumed.state().keys()
