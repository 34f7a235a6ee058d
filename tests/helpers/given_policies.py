"""Pre-trained policies as they come from elsewhere: a tiny Llama with a tokenizer of its own."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, TokenizersBackend

from llds_core.config import PolicyConfig
from llds_core.errors import ConfigError
from llds_core.runs.policies import build_policy, build_tokenizer
from llds_core.runs.smollm2 import smollm2_file

# The special tokens of SmolLM2, in its order; padding is the end token.
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _tokenizer() -> TokenizersBackend:
    """Byte-level pairs with a chat template; no tag of the protocol is a token of its own."""
    texts = ["where is the city of Homs", "<search> Homs </search>"] * 3
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    options = {"special_tokens": SPECIAL, "initial_alphabet": alphabet, "show_progress": False}
    made.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=400, **options))
    names = dict(zip(("unk_token", "bos_token", "eos_token"), SPECIAL, strict=True))
    names |= {"pad_token": SPECIAL[2], "chat_template": _CHAT}
    return TokenizersBackend(tokenizer_object=made, **names)


def save_llama(folder: Path, seed: int = 0) -> Path:
    """A random Llama of 60 k parameters in `folder`, with its tokenizer."""
    made = _tokenizer()
    config = LlamaConfig(
        **{"vocab_size": len(made), "hidden_size": 32, "intermediate_size": 48},
        **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
        **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2},
        tie_word_embeddings=True,
        initializer_range=0.15,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def smollm2_absent() -> str:
    """Why SmolLM2 cannot be used here; empty when it can."""
    try:
        smollm2_file()
    except ConfigError as error:
        return str(error)
    return ""


def save_one_layer_policy(path: Path) -> Path:
    """A policy of one layer for stock trainers, with its tokenizer; return `path`."""
    tokenizer = build_tokenizer(["one two three"], 300, ())
    architecture = PolicyConfig(
        vocab_size=300, hidden_size=16, intermediate_size=16, layers=1, heads=2, key_value_heads=1
    )
    build_policy(architecture, tokenizer, 0).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
