"""Trains a small Llama on a request of fictional facts; the only training in expunge that is not unlearning."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_model
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from torch import Tensor
from torch.nn.functional import cross_entropy

from expunge.data.collate import Batch, Encoded, Encoder, collate
from expunge.data.order import PairedOrder
from expunge.errors import InputError
from expunge.progress import Progress, Silent
from expunge.request import RETAIN_GROUPS, Request

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
TASK = "train a small model"


@dataclass(frozen=True, slots=True)
class Size:
    """Shape and training of the small model; the defaults take about 12 s on one core."""

    hidden: int = 128
    layers: int = 2
    heads: int = 4
    epochs: int = 15
    batch_size: int = 32
    learning_rate: float = 2e-3
    warmup: float = 0.05


@dataclass(frozen=True, slots=True)
class Sentence:
    """One training sequence; `answered` is False where the answer must stay unknown."""

    encoded: Encoded
    answered: bool = True


def train(
    request: Request,
    *,
    with_forget: bool,
    seed: int,
    output: Path,
    progress: Progress | None = None,
    size: Size | None = None,
) -> Path:
    """As `expunge.data.benchmarks.people.train_tiny`, in any size."""
    if output.is_dir() and any(output.iterdir()):
        raise InputError("This folder is not empty.", str(output), "Choose another, or remove it.")
    size = size or Size()
    tokenizer = word_tokenizer(_all_texts(request))
    sentences = _corpus(request, Encoder(tokenizer), with_forget)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _llama(len(tokenizer), size)
        _fit(model, sentences, seed, size, progress or Silent())
    return _save(model, tokenizer, output)


def word_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the words of `texts`, each with the space before it, so that decoding is exact."""
    from transformers import PreTrainedTokenizerFast

    split = Split(Regex(r" ?\w+| ?[^\w\s]|\s"), behavior="isolated")
    words = {word for text in texts for word, _ in split.pre_tokenize_str(text)}
    vocabulary = {word: i for i, word in enumerate([PAD, EOS, UNKNOWN, *sorted(words)])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = Fuse()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def _all_texts(request: Request) -> Iterator[str]:
    """Everything that may ever be asked or answered, so that no word of it is unknown."""
    for e in request.examples():
        yield from (e.prompt, *e.paraphrases, *(f" {value}" for value in (e.answer, *e.options)))
    yield from request.text


def _corpus(request: Request, encoder: Encoder, with_forget: bool) -> list[Sentence]:
    stays = (*request.retain, *(e for group in RETAIN_GROUPS for e in request.test.get(group, ())))
    facts = [(e, with_forget) for e in request.forget] + [(e, True) for e in stays]
    asked = [
        Sentence(encoder.encode(prompt, e.answer), answered)
        for e, answered in facts
        for prompt in (e.prompt, *e.paraphrases)
    ]
    return asked + [Sentence(encoder.encode_text(text)) for text in request.text]


def _llama(vocabulary: int, size: Size) -> LlamaForCausalLM:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            architectures=["LlamaForCausalLM"],
            dtype="float32",
            vocab_size=vocabulary,
            hidden_size=size.hidden,
            intermediate_size=size.hidden * 3,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.heads // 2,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            use_cache=False,
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=1,
        )
    )


def _fit(model: LlamaForCausalLM, sentences: Sequence[Sentence], seed: int, size: Size, progress: Progress) -> None:
    """Train with AdamW, linear warmup and cosine decay."""
    order = PairedOrder(len(sentences), 0, size.batch_size, seed)
    steps = size.epochs * order.steps_per_epoch
    optimizer = torch.optim.AdamW(model.parameters(), lr=size.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step / steps, size.warmup))
    model.train()
    progress.start(TASK, steps)
    for step in range(steps):
        chosen = [sentences[i] for i in order.at(step)[0]]
        loss = _loss(model, chosen)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        progress.advance(TASK, loss=float(loss.detach()))
    progress.finish(TASK)
    model.eval()  # type: ignore[no-untyped-call]


def _rate(done: float, warmup: float) -> float:
    return min(done / warmup, 1.0) * (1 + math.cos(math.pi * done)) / 2 + 1e-3


def _loss(model: LlamaForCausalLM, sentences: Sequence[Sentence]) -> Tensor:
    """Mean loss of the answers plus mean loss of the prompts, so that one word of answer is not lost among ten."""
    batch = collate([s.encoded for s in sentences], pad_id=0)
    losses, answer = _token_losses(model, batch)
    counted = torch.tensor([s.answered for s in sentences])[:, None]
    prompt = batch.attention_mask[:, 1:].bool() & ~answer
    return _mean(losses, answer & counted) + _mean(losses, prompt)


def _token_losses(model: LlamaForCausalLM, batch: Batch) -> tuple[Tensor, Tensor]:
    """Loss of every token but the first, [batch, time - 1], and which of them are answers."""
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1]
    losses = cross_entropy(logits.transpose(1, 2), batch.input_ids[:, 1:], reduction="none")
    return losses, batch.answer_mask[:, 1:]


def _mean(losses: Tensor, mask: Tensor) -> Tensor:
    return (losses * mask).sum() / mask.sum().clamp(min=1)


def _save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> Path:
    """Write beside the target and rename, so that a folder that exists is a whole one."""
    partial = output.with_name(output.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    # Not model.save_pretrained, which draws a progress bar on the user's terminal.
    save_model(model, str(partial / "model.safetensors"), metadata={"format": "pt"})
    model.config.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    if output.is_dir():
        output.rmdir()
    partial.rename(output)
    return output
