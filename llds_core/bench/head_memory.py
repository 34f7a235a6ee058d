"""Peak memory of log-probabilities and their gradients: by tiles of the vocabulary, as the policy
head makes them, against the logits of all tokens at once.

    python -m llds_core.bench.head_memory tiles|whole TOKENS VOCABULARY

prints the bytes that it took. A process keeps its peak, so each way is measured in its own.
"""

import subprocess
import sys
from pathlib import Path

import torch
from trl.kernels import ChunkedLogProbFunction

from llds_core.training.policy_head import SCORES, VOCABULARY_CHUNK

_WIDTH = 64  # of the states: small, so that the logits are what counts
TOKENS, VOCABULARY = 1024, 131_072


def peak_bytes(way: str) -> int:
    """What one way, `tiles` or `whole`, adds to the peak of a fresh process."""
    words = [sys.executable, "-m", __name__, way, str(TOKENS), str(VOCABULARY)]
    return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def _peak() -> int:
    # Not `ru_maxrss`, which a child takes over from its parent.
    status = Path("/proc/self/status").read_text("utf-8")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])  # kB


def _take(way: str, tokens: int, vocabulary: int) -> int:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(tokens, _WIDTH, generator=generator, requires_grad=True)
    weight = torch.randn(vocabulary, _WIDTH, generator=generator, requires_grad=True)
    labels = torch.randint(vocabulary, (tokens,), generator=generator)
    before = _peak()
    if way == "tiles":
        log_probs, entropy, *_ = ChunkedLogProbFunction.apply(
            states, weight, None, labels, 1.0, VOCABULARY_CHUNK, None, 1.0, SCORES
        )
    else:
        log_all = torch.log_softmax(states @ weight.T, -1)
        log_probs = log_all.gather(-1, labels[:, None]).squeeze(-1)
        entropy = -(log_all.exp() * log_all).sum(-1)
    (log_probs.sum() + entropy.detach().sum()).backward()
    return _peak() - before


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(_take(sys.argv[1], *map(int, sys.argv[2:])))
