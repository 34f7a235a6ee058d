"""The cached multi-turn sampler against a reference that computes every context anew."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from scripted_rollouts import BOTH, SPELLED, encode
from scripted_rollouts import TAGGED as TOKENIZER
from torch.nn.utils.rnn import pad_sequence

from llds_core.config import PolicyConfig
from llds_core.rollout import samplers
from llds_core.rollout.samplers import Generation, StopAtTag, TransformersSampler, rounded_weights
from llds_core.runs.policies import build_policy

SIZES = {"hidden_size": 32, "intermediate_size": 64, "layers": 2, "heads": 4}
CONFIG = PolicyConfig(vocab_size=400, key_value_heads=2, initializer_range=0.3, **SIZES)
# In float64, where no token hangs on the order in which a sum is taken.
MODEL = build_policy(CONFIG, TOKENIZER, 0).eval().double()
VOCAB = len(TOKENIZER)
TOLERANCE = 1e-5  # of `pick`, which computes in float32: logits are below 16
PROMPTS = [[7, 8, 9], [7, 8, 9], [20, 21, 22, 23, 24, 25, 26], [30], [7, 8, 9]]
# Rows that take part in each turn, and the observation each gets after it: lengths 1 to 29.
TURNS = [[0, 1, 2, 3, 4], [3, 0, 2, 4], [2, 4], [4]]
PROBABILITIES = torch.tensor([0.4, 0.3, 0.2, 0.1])


def every_third(token_ids: Sequence[int]) -> bool:
    """A stop rule that an untrained policy meets often and at different times."""
    return token_ids[-1] % 3 == 0 and len(token_ids) > 1


def sampler(seed: int = 0, stop: Callable | None = every_third, **options) -> TransformersSampler:
    generator = torch.Generator().manual_seed(seed)
    return TransformersSampler(MODEL, TOKENIZER, generator, stop=stop, **options)


@torch.no_grad()
def forced(context: Sequence[int], token_ids: Sequence[int], temperature=1.0) -> list[float]:
    """Log-probabilities of `token_ids` after `context`, in one pass without cache or padding."""
    ids = torch.tensor([[*context, *token_ids]])
    logprobs = (MODEL(input_ids=ids, use_cache=False).logits[0] / temperature).log_softmax(-1)
    first = len(context) - 1
    return [logprobs[first + i, token].item() for i, token in enumerate(token_ids)]


@torch.no_grad()
def greedy(context: Sequence[int], budget: int, stop: Callable = every_third) -> list[int]:
    """Greedy continuation, encoding the whole context again for every token."""
    made: list[int] = []
    while len(made) < budget:
        ids = torch.tensor([[*context, *made]])
        made.append(MODEL(input_ids=ids, use_cache=False).logits[0, -1].argmax().item())
        if made[-1] == TOKENIZER.eos_token_id or stop(made):
            break
    return made


def observation(turn: int, row: int) -> list[int]:
    length = 1 + (7 * row + turn) % 29
    return [(11 * turn + 5 * row + i) % (VOCAB - 2) + 2 for i in range(length)]


def play(made: TransformersSampler) -> list[tuple[list[int], int, Generation]]:
    """Every generation of `TURNS` with the context it continued and its budget."""
    session = made.session(PROMPTS)
    contexts = [list(prompt) for prompt in PROMPTS]
    log = []
    for turn, rows in enumerate(TURNS):
        if turn:
            for row in rows:
                session.append(row, observation(turn - 1, row))
                contexts[row] += observation(turn - 1, row)
        budgets = [3 + (5 * turn + 2 * row) % 9 for row in rows]
        results = session.generate(rows, budgets)
        for row, budget, result in zip(rows, budgets, results, strict=True):
            log.append((list(contexts[row]), budget, result))
            contexts[row] += result.token_ids
    return log


def test_greedy_tokens_equal_the_naive_reference() -> None:
    """Turns, holes in the cache, rows that leave or change places, observations of all lengths."""
    for context, budget, result in play(sampler(temperature=0)):
        assert result.token_ids == greedy(context, budget)


@pytest.mark.parametrize("temperature", [0, 1.0, 0.6, 1.7])
def test_log_probs_equal_a_teacher_forced_pass(temperature: float) -> None:
    """Under the distribution sampled from, at every temperature; greedy under the model's own."""
    for context, _, result in play(sampler(temperature=temperature)):
        wanted = forced(context, result.token_ids, temperature or 1.0)
        assert result.logprobs == pytest.approx(wanted, abs=TOLERANCE)


def test_shared_prompts_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five rows with three different prompts: the first pass has three rows, later ones five."""
    widths, forward = [], MODEL.base_model.forward

    def spy(*args: object, **kwargs: object) -> object:
        widths.append(len(kwargs["input_ids"]))
        return forward(*args, **kwargs)

    monkeypatch.setattr(MODEL.base_model, "forward", spy)
    sampler(stop=lambda ids: False).session(PROMPTS).generate(range(5), [2] * 5)
    assert widths == [3, 5]


def test_tokens_depend_on_the_generator_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """And log-probabilities to the bit; not on what fills up shorter rows."""
    before = torch.random.get_rng_state()
    first = play(sampler(seed=4))
    assert play(sampler(seed=4)) == first != play(sampler(seed=5))
    assert torch.equal(before, torch.random.get_rng_state())
    for filler in (1, VOCAB - 1):
        monkeypatch.setattr(samplers, "pad_sequence", partial(pad_sequence, padding_value=filler))
        assert play(sampler(seed=4)) == first


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("error", [None, KeyError])
def test_sampling_is_in_evaluation_mode_and_gives_the_mode_back(training: bool, error) -> None:
    model = build_policy(CONFIG, TOKENIZER, 1).train(training)

    def stop(token_ids: Sequence[int]) -> bool:
        assert not any(module.training for module in model.modules())
        if error:
            raise error
        return False

    made = TransformersSampler(model, TOKENIZER, torch.Generator(), stop=stop)
    with pytest.raises(error) if error else nullcontext():
        made.session([[7]]).generate([0], [3])
    assert all(module.training is training for module in model.modules())


@pytest.mark.parametrize(
    ("top_p", "temperature", "nucleus"),
    [
        (0.3, 1.0, {0}),
        (0.5, 1.0, {0, 1}),
        (0.85, 1.0, {0, 1, 2}),
        (0.5, 0.5, {0}),  # the masses are 16, 9, 4, 1 of 30: sharpened before the nucleus is cut
    ],
)
def test_top_p_samples_all_of_the_nucleus_and_nothing_else(top_p, temperature, nucleus) -> None:
    """The smallest set of most likely tokens whose mass reaches `top_p`, not renormalised."""
    rows = PROBABILITIES.log().repeat(4000, 1)
    tokens, logprobs = sampler(top_p=top_p, temperature=temperature).pick(rows)
    assert set(tokens.tolist()) == nucleus
    sharpened = (PROBABILITIES.log() / temperature).log_softmax(-1)
    assert torch.allclose(logprobs, sharpened[tokens])


def test_frequencies_follow_the_distribution() -> None:
    """40,000 draws: a binomial standard deviation is below 0.0025, so 0.0125 is five of them."""
    tokens, _ = sampler().pick(PROBABILITIES.log().repeat(40_000, 1))
    assert torch.allclose(tokens.bincount() / 40_000, PROBABILITIES, atol=0.0125)


def first_stop(stop: StopAtTag, ids: Sequence[int]) -> int:
    """Number of tokens at which `stop` first fires, 0 for never."""
    return next((n for n in range(1, len(ids) + 1) if stop(ids[:n])), 0)


def test_stop_fires_at_a_token_that_runs_past_the_tag() -> None:
    ids = encode("is</search>. then", SPELLED)
    last = SPELLED.convert_tokens_to_ids(">.")
    assert first_stop(StopAtTag(SPELLED), ids) == ids.index(last) + 1


@BOTH
@pytest.mark.parametrize("tag", ["</search>", "</answer>"])
def test_stop_fires_at_the_token_that_completes_a_tag(tokenizer, tag: str) -> None:
    """Of one token, of several, or spelled in letters."""
    ids = encode(f"where is{tag}", tokenizer)
    assert first_stop(StopAtTag(tokenizer), 2 * ids) == len(ids)
    letters = [tokenizer.convert_tokens_to_ids(letter) for letter in f"is{tag}"]
    assert first_stop(StopAtTag(tokenizer), letters) == len(letters)


@BOTH
@pytest.mark.parametrize("text", ["<search>", "</think>", "a > b", "</search", "/search>"])
def test_stop_does_not_fire_on_other_text(tokenizer, text: str) -> None:
    assert first_stop(StopAtTag(tokenizer), encode(f"where {text} is", tokenizer)) == 0


@pytest.mark.parametrize(("ends", "reason"), [(range(VOCAB), "eos"), ((), "length")])
def test_end_of_text_or_budget_ends_a_generation(ends: Sequence[int], reason: str) -> None:
    """The end-of-text token is part of what was sampled."""
    made = sampler(stop=lambda ids: False)
    made.eos_ids = set(ends)
    results = made.session(PROMPTS).generate(range(5), [1, 2, 3, 4, 5])
    lengths = [1] * 5 if reason == "eos" else [1, 2, 3, 4, 5]
    assert [len(result.token_ids) for result in results] == lengths
    assert {result.token_ids[-1] in made.eos_ids for result in results} == {reason == "eos"}


@pytest.mark.parametrize("alone", [False, True])
def test_an_end_of_text_is_neither_kept_nor_fed(alone: bool) -> None:
    """Unless it is all there is: a row needs a policy token."""
    made = sampler(stop=lambda ids: False, temperature=0)
    wanted = greedy(PROMPTS[0], 4, lambda ids: False)
    end = wanted[0] if alone else next(token for token in wanted if token != wanted[0])
    made.eos_ids = {end}
    session = made.session(PROMPTS[:1])
    (first,) = session.generate([0], [4])
    kept = [end] if alone else wanted[: wanted.index(end)]
    assert first.token_ids == kept and len(first.logprobs) == len(kept)
    session.append(0, observation(0, 0))
    made.eos_ids = set()
    (second,) = session.generate([0], [3])
    context = [*PROMPTS[0], *kept, *observation(0, 0)]
    assert second.token_ids == greedy(context, 3, lambda ids: False)


@pytest.mark.parametrize(("rounding", "bits"), [("none", 24), ("bfloat16", 8), ("float8", 4)])
def test_weights_are_rounded_while_sampling_and_given_back(rounding: str, bits: int) -> None:
    """A rounded weight has so many significant bits; float8 is scaled to a matrix's largest."""
    model = build_policy(CONFIG, TOKENIZER, 1)
    before = [weight.detach().clone() for weight in model.parameters()]
    with pytest.raises(KeyError), rounded_weights(model, rounding):
        for weight, exact in zip(model.parameters(), before, strict=True):
            error = (weight - exact).abs()
            normal = exact.abs() > exact.abs().max() / 2**14
            assert (error <= exact.abs() * 2.0**-bits)[normal].all()
            assert torch.equal(weight, exact) == (rounding == "none" or exact.unique().numel() == 1)
        raise KeyError
    assert all(map(torch.equal, model.parameters(), before))


def streamed(rows: Sequence[int]) -> list[list[list[int]]]:
    """Token ids by row and turn, each row drawing from the stream of its name."""
    streams = [np.random.default_rng(row) for row in rows]
    made = TransformersSampler(MODEL, TOKENIZER, None, stop=every_third, streams=streams)
    session = made.session([PROMPTS[row] for row in rows])
    turns = []
    for turn in range(3):
        generations = session.generate(range(len(rows)), [6 + row for row in rows])
        turns.append([generation.token_ids for generation in generations])
        for index, row in enumerate(rows):
            session.append(index, observation(turn, row))
    return [list(of_row) for of_row in zip(*turns, strict=True)]


def test_with_streams_a_row_samples_the_same_whatever_stands_beside_it():
    together = streamed(range(5))
    assert len({tuple(map(tuple, row)) for row in together}) == 5
    assert [streamed([row])[0] for row in range(5)] == together
    assert streamed([4, 1]) == [together[4], together[1]]


def test_sampling_needs_something_to_draw_from():
    with pytest.raises(ValueError, match=r"temperature is 1\.0: pass a generator or streams"):
        TransformersSampler(MODEL, TOKENIZER, None)
    TransformersSampler(MODEL, TOKENIZER, None, temperature=0.0)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_ids_that_the_tokenizer_lacks_are_never_sampled(temperature: float) -> None:
    """Also in what their probabilities leave to others: the trainer scores without them, too."""
    wide = torch.zeros(64, VOCAB + 5)
    wide[:, VOCAB:] = 50.0
    ids, logprobs = sampler(temperature=temperature).pick(wide)
    assert ids.max() < VOCAB
    assert torch.allclose(logprobs, torch.tensor(1 / VOCAB).log(), atol=TOLERANCE)
