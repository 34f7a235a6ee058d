"""The pass without padding against the padded one."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from llds_core.errors import ConfigError
from llds_core.training.policy_head import (
    add_policy_head,
    forward_unpadded,
    policy_labels,
    use_unpadded_attention,
)

SIZES = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.mark.parametrize("kind", [Qwen2ForCausalLM, LlamaForCausalLM])
def test_scores_states_and_gradients_are_those_of_the_padded_pass(kind: type) -> None:
    torch.manual_seed(0)
    config = (Qwen2Config if kind is Qwen2ForCausalLM else LlamaConfig)(**SIZES)
    model = kind(config).double()
    add_policy_head(model)
    ids = torch.randint(0, 97, (3, 14))
    attention = torch.ones_like(ids)
    attention[0, :2] = attention[1, :4] = attention[1, -3:] = attention[2, -5:] = 0
    policy = (torch.rand(3, 9) < 0.5) * attention[:, 5:]
    labels = policy_labels(ids, policy)

    def gradients(output: object) -> list[torch.Tensor]:
        model.zero_grad()
        (output.log_probs.sum() + output.entropy.sum()).backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    padded = model(input_ids=ids, attention_mask=attention, policy_labels=labels)
    expected = gradients(padded)
    use_unpadded_attention(model)
    # What is called as before gives what it gave before, to the bit.
    again = model(input_ids=ids, attention_mask=attention, policy_labels=labels)
    assert torch.equal(again.log_probs, padded.log_probs)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    found = forward_unpadded(model, ids, attention, labels)
    # The head and rotary positions work in float32.
    bound = {"rtol": 0, "atol": 64 * torch.finfo(torch.float32).eps}
    torch.testing.assert_close(found.log_probs, padded.log_probs, **bound)
    torch.testing.assert_close(found.entropy, padded.entropy, **bound)
    real = attention[..., None]
    states = (found.last_hidden_state * real, padded.last_hidden_state * real)
    torch.testing.assert_close(*states, **bound)
    for gradient, reference in zip(gradients(found), expected, strict=True):
        scale = reference.abs().max().item()
        torch.testing.assert_close(gradient, reference, rtol=0, atol=1e-5 * max(scale, 1e-6))


@pytest.mark.parametrize(
    ("given", "kept", "said"),
    [
        ({"logits_scaling": 8.0}, False, "logits_scaling=8"),
        ({"final_logit_softcapping": 5.0}, False, "final_logit_softcapping=5"),
        ({"attention_dropout": 0.3}, False, "attention_dropout=0.3"),
        ({"logits_scaling": 1.0, "sliding_window": 4}, True, "training.remove_padding=false"),
    ],
)
def test_a_model_whose_scores_would_be_others_is_refused(given, kept, said) -> None:
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    model.config.update(given)
    with pytest.raises(ConfigError, match=said):
        add_policy_head(model)
        assert kept
        use_unpadded_attention(model)
