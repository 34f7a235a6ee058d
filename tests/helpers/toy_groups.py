"""Tiny policies and hand-made trajectories; every group has random tokens and chosen outcomes."""

from collections.abc import Sequence

import torch
from scripted_rollouts import TAGGED as TOKENIZER
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from llds_core.retrieval import Hit
from llds_core.rollout.protocol import Action, Trajectory
from llds_core.worlds.records import Question

PAD = TOKENIZER.pad_token_id
VOCABULARY = 50


def policy(*, vocabulary: int = VOCABULARY, tied: bool = True, seed: int = 0) -> PreTrainedModel:
    """A two-layer Qwen2 with weights large enough to have opinions."""
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
        initializer_range=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(config)


def trajectory(
    actions: Sequence[Sequence[int]],
    *,
    prompt: Sequence[int] = (7, 8, 9),
    observation: Sequence[int] = (11, 12),
    found: Sequence[Sequence[str] | None] | None = None,
    correct: bool = False,
    question: str = "q0",
    sample: int = 0,
) -> Trajectory:
    """One action per list of tokens with `observation` in between.

    `found` holds the ids each action's search returned, None for no executed search; by default
    every action but the last searches.
    """
    made = Trajectory(Question(question, "where?", ("Paris",), {"kind": "toy"}), sample, [*prompt])
    if found is None:
        found = [("p0",)] * (len(actions) - 1) + [None]
    for number, (tokens, ids) in enumerate(zip(actions, found, strict=True)):
        start = len(made.completion_ids)
        hits = tuple(Hit(i, i, i, 1.0) for i in ids or ())
        kind = "answer" if ids is None else "search"
        action = Action(kind, "", "", start, start + len(tokens), ids is not None, hits)
        made.add_action(action, tokens, [0.0] * len(tokens))
        if number + 1 < len(actions):
            made.add_observation(observation)
    made.correct, made.reward = correct, float(correct)
    return made


def group(outcomes: Sequence[bool], *, seed: int = 0, question: str = "q0") -> list[Trajectory]:
    """Random trajectories of one to three actions, one per outcome."""
    random = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=random))

    return [
        trajectory(
            [[draw(0, VOCABULARY) for _ in range(draw(1, 6))] for _ in range(draw(1, 4))],
            observation=[draw(0, VOCABULARY) for _ in range(4)],
            correct=outcome,
            question=question,
            sample=sample,
        )
        for sample, outcome in enumerate(outcomes)
    ]


def plain_scores(model: PreTrainedModel, item: Trajectory) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropies at policy tokens, from one unpadded pass with its graph."""
    ids = torch.tensor([*item.prompt_ids, *item.completion_ids])
    found = model(input_ids=ids[None]).logits[0].log_softmax(-1)
    where = len(item.prompt_ids) + torch.tensor(item.response_mask).nonzero().squeeze(1)
    rows = found[where - 1]
    return rows.gather(1, ids[where, None]).squeeze(1), -(rows.exp() * rows).sum(-1)
