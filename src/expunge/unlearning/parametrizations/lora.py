"""A low-rank update of each chosen linear map is trained: W + (alpha / rank) B A, B = 0 at the start.

arXiv:2106.09685, section 4.1. The adapters are put inside the model (`peft.inject_adapter_in_model`), so that its class
stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from expunge.errors import InputError, nearest
from expunge.models.architecture import describe
from expunge.unlearning.parametrizations.base import Material, Parametrization, Trained
from expunge.unlearning.parametrizations.layers import chosen_blocks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class LoRA(Parametrization):
    """Low-rank adapters on the linear maps of the blocks.

    Args:
        rank: of each update.
        alpha: scale; the update counts alpha / rank times.
        modules: short names of linear maps (`architecture.MODULES`, or the model's fused ones); empty for all.
        layers: indices of blocks; negative ones count from the end; empty for all.
    """

    rank: int = 8
    alpha: float = 16.0
    modules: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError("The rank must be at least 1.", f"rank={self.rank}")
        if not 0 < self.alpha < float("inf"):
            raise InputError("alpha must be a finite number above 0.", f"alpha={self.alpha}")

    def bind(self, model: PreTrainedModel, seed: int, material: Material | None = None) -> Trained:
        """The adapters' parameters, A drawn with `seed`; InputError without peft, or for a map that is not there."""
        peft = _peft()
        flags = [(p, p.requires_grad) for p in model.parameters()]
        targets = self.targets(model)
        config = peft.LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=list(targets),
            fan_in_fan_out=not any(isinstance(m, nn.Linear) for m in targets.values()),
        )
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            peft.inject_adapter_in_model(config, model)
        for parameter, required in flags:  # peft has frozen them; `Trained` must see them as they were
            parameter.requires_grad_(required)
        trained = (name for name, _ in model.named_parameters() if ".lora_A." in name or ".lora_B." in name)
        return Trained(model, trained, partial(_merge, model))

    def targets(self, model: PreTrainedModel) -> dict[str, nn.Module]:
        """The chosen linear maps by their names in the model."""
        arch = describe(model)
        names = {id(module): name for name, module in model.named_modules()}
        targets: dict[str, nn.Module] = {}
        for block in chosen_blocks(arch, self.layers):
            maps = arch.linears[block]
            for short in self.modules or maps:
                if short not in maps:
                    raise InputError(f"Block {block} has no linear map {short!r}.", "modules", nearest(short, maps))
                targets[names[id(maps[short])]] = maps[short]
        return targets


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise InputError("LoRA needs the package peft.", fix="Install it: pip install peft.") from error
    return peft


def _merge(model: PreTrainedModel) -> None:
    """Add each update to its weight and put the plain linear map back in its place."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            model.set_submodule(name, module.get_base_layer())
    del model.peft_config
