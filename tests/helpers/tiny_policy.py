"""A model of two small layers and a plain task, for trainers of other packages."""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from llds_core.losses import llds_penalty

VOCABULARY, PROMPT, FIRST, SEEN, WIDTH = 100, 3, 4, 2, 10
PROMPTS, GROUP = 4, 4  # of a rollout, and responses to each
HALVES = (slice(0, 8), slice(8, 16))  # its mini-batches
LEARNING_RATE = 0.01
Tensors = dict[str, torch.Tensor]


def save_qwen2(folder: Path) -> str:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = Qwen2Config(
        vocab_size=VOCABULARY, initializer_range=0.2, tie_word_embeddings=False, **sizes, **heads
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return str(folder)


def positions_of(mask: torch.Tensor) -> torch.Tensor:
    return (mask.cumsum(1) - 1).clamp(min=0)


@torch.no_grad()
def sample(logits_of: Callable[..., torch.Tensor], generator: torch.Generator) -> Tensors:
    """Sixteen responses: an action, an observation and an action of unequal length.

    Prompts are padded on the left, responses on the right. The reward is the share of even tokens
    among those that the policy wrote; `logits_of` takes the arguments of transformers' models.
    """
    rows = PROMPTS * GROUP
    prompts = torch.randint(2, VOCABULARY, (PROMPTS, PROMPT), generator=generator)
    prompt_mask = torch.ones_like(prompts)
    prompt_mask[1::2, 0] = 0
    tokens = (prompts * prompt_mask).repeat_interleave(GROUP, 0)
    mask = prompt_mask.repeat_interleave(GROUP, 0)
    ends = torch.randint(FIRST + SEEN + 1, WIDTH + 1, (rows,), generator=generator)
    for place in range(WIDTH):
        is_observation = FIRST <= place < FIRST + SEEN
        if is_observation:
            column = torch.full((rows,), place)
        else:
            places = positions_of(mask)
            logits = logits_of(input_ids=tokens, attention_mask=mask, position_ids=places)
            column = logits[:, -1].softmax(-1).multinomial(1, generator=generator)[:, 0]
        alive = (place < ends).long()
        tokens = torch.cat([tokens, (column * alive)[:, None]], 1)
        mask = torch.cat([mask, alive[:, None]], 1)
    policy_mask = mask[:, PROMPT:].clone()
    policy_mask[:, FIRST : FIRST + SEEN] = 0
    even = (tokens[:, PROMPT:] % 2 == 0) * policy_mask
    rewards = even.sum(1) / policy_mask.sum(1)
    return {"tokens": tokens, "mask": mask, "policy_mask": policy_mask, "rewards": rewards}


def logprobs(model: torch.nn.Module, batch: Tensors) -> torch.Tensor:
    tokens, mask = batch["tokens"], batch["mask"]
    logits = model(
        input_ids=tokens, attention_mask=mask, position_ids=positions_of(mask), use_cache=False
    ).logits
    steps = logits[:, PROMPT - 1 : -1].log_softmax(-1)
    return steps.gather(-1, tokens[:, PROMPT:, None])[..., 0]


def plain_updates(path: str, batch: Tensors, weight: float, **options: str) -> Tensors:
    """Weights after two passes over a rollout, in plain torch, each mini-batch at once: PPO's
    clipped loss, a mean over tokens, plus weight × penalty; AdamW and a gradient of norm 1.
    """
    model = Qwen2ForCausalLM.from_pretrained(path, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    old = logprobs(model, batch).detach()
    for rows in HALVES * 2:
        part = {name: value[rows] for name, value in batch.items()}
        new, mask, each = logprobs(model, part), part["policy_mask"], part["advantages"]
        ratio = (new - old[rows]).exp()
        gain = torch.minimum(ratio * each[:, None], ratio.clamp(0.8, 1.2) * each[:, None])
        penalty, _ = llds_penalty(new, old[rows], mask, each, **options)
        optimizer.zero_grad()
        (-(gain * mask).sum() / mask.sum() + weight * penalty).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return dict(model.state_dict())


@torch.no_grad()
def distance(path: str, one: Tensors, other: Tensors, batch: Tensors) -> float:
    """By how much two policies differ, at most, in nats per token of a rollout."""
    model = Qwen2ForCausalLM.from_pretrained(path, dtype=torch.float32)
    said = []
    for weights in (one, other):
        model.load_state_dict(weights)
        said.append(logprobs(model, batch) * batch["policy_mask"])
    return (said[0] - said[1]).abs().max().item()
