"""Tiny policies and hand-made trajectories; every group has random tokens and chosen outcomes."""

from collections.abc import Sequence

import torch
from scripted_rollouts import TAGGED as TOKENIZER
from transformers import PreTrainedModel, Qwen2ForCausalLM

from llds_core.config import PolicyConfig
from llds_core.retrieval import Hit
from llds_core.rollout.protocol import Action, Trajectory
from llds_core.runs.policies import policy_architecture
from llds_core.worlds.records import Question

PAD = TOKENIZER.pad_token_id
VOCABULARY = 50


def policy(*, vocabulary: int = VOCABULARY, tied: bool = True) -> PreTrainedModel:
    """A two-layer Qwen2 with weights large enough to have opinions."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "layers": 2, "heads": 2}
    config = PolicyConfig(**sizes, key_value_heads=1, initializer_range=0.3)
    architecture = policy_architecture(config, vocabulary)
    architecture.tie_word_embeddings = tied
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Qwen2ForCausalLM(architecture)


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
    """One action per list of tokens with `observation` in between; `found` holds what each action's
    search returned, None for no search; by default every action but the last searches.
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


def look(model: PreTrainedModel, one: Trajectory) -> tuple[torch.Tensor, ...]:
    """Log-probability, entropy and state before every completion token, from an unpadded pass."""
    ids = torch.tensor([*one.prompt_ids, *one.completion_ids])
    first = len(one.prompt_ids)
    states = model.base_model(input_ids=ids[None]).last_hidden_state[0, first - 1 : -1]
    found = model.get_output_embeddings()(states).log_softmax(-1)
    return found.gather(1, ids[first:, None])[:, 0], -(found.exp() * found).sum(-1), states


def plain_scores(model: PreTrainedModel, item: Trajectory) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropies at policy tokens."""
    logprobs, entropies, _ = look(model, item)
    mask = torch.tensor(item.response_mask).bool()
    return logprobs[mask], entropies[mask]
