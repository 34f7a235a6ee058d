"""Phase A of `gpu-check`: does the card compute what the CPU computes in float64."""

import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.benchmark import Timer
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from llds_core.bench.gpu_report import Report
from llds_core.config.seeding import torch_generator
from llds_core.losses import kl_k3, llds_penalty, policy_loss
from llds_core.machine.memory import GIB
from llds_core.runs.policies import avoid_cudnn_attention
from llds_core.training.policy_head import (
    add_policy_head,
    forward_unpadded,
    policy_labels,
    use_unpadded_attention,
)

_EPS = torch.finfo(torch.float32).eps
# 256 among them, which kernels like best; 192 and 320, at which cuDNN's is known to fail.
_WIDTHS = (192, *range(252, 261), 320)
_EPS_16 = torch.finfo(torch.bfloat16).eps


def check_kernels(report: Report, shape: Qwen2Config) -> None:
    """Rows of phase A for models of `shape` with two layers."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    _check_losses(report, device)
    _check_head(report, shape, device)
    _check_forward(report, shape, device)
    _list_backends(report, shape, device)
    _measure_ceiling(report, device)


def _check_losses(report: Report, device: torch.device) -> None:
    """Values and gradients of the losses in float32."""
    rng = torch_generator(0, "gpu-check", "losses")
    rows, width = 16, 512
    old = -3 * torch.rand(rows, width, dtype=torch.float64, generator=rng)
    new = old + 0.2 * torch.randn(rows, width, dtype=torch.float64, generator=rng)
    mask = (torch.rand(rows, width, generator=rng) < 0.7).long()
    advantages = torch.randn(rows, dtype=torch.float64, generator=rng)
    losses: dict[str, Callable[..., tuple[torch.Tensor, Any]]] = {
        f"llds_penalty, {gate} gate": partial(llds_penalty, gate=gate)
        for gate in ("action", "response", "token")
    }
    losses["policy_loss"] = lambda n, o, m, a: policy_loss(n, o, a, m)
    losses["kl_k3"] = lambda n, o, m, a: ((kl_k3(n, o, m)[0] * m).sum() / m.sum(), None)
    # Sums of so many terms err by about the square root of their number.
    limit = 4 * _EPS * (rows * width) ** 0.5

    def evaluate(loss: Callable[..., Any], where: Any, dtype: torch.dtype) -> torch.Tensor:
        leaf = new.to(where, dtype).clone().requires_grad_()
        value, _ = loss(leaf, old.to(where, dtype), mask.to(where), advantages.to(where, dtype))
        value.backward()
        assert leaf.grad is not None
        return torch.cat([value.detach()[None], leaf.grad.flatten()]).double().cpu()

    for name, loss in losses.items():
        exact = evaluate(loss, "cpu", torch.float64)
        found = evaluate(loss, device, torch.float32)
        error = float((found - exact).norm() / exact.norm())
        report.bound(f"{name}: value and gradient against float64", error, limit, "relative")


def _check_head(report: Report, shape: Qwen2Config, device: torch.device) -> None:
    """The policy head on bfloat16 states: exactness, and time and memory against whole logits."""
    rng = torch_generator(0, "gpu-check", "head")
    head = _model(shape, device).get_output_embeddings()
    weight = head.weight.detach().bfloat16()
    states = torch.randn(4096, shape.hidden_size, generator=rng).to(device, torch.bfloat16)
    labels = torch.randint(shape.vocab_size, (len(states),), generator=rng).to(device)

    def whole(states: torch.Tensor) -> torch.Tensor:
        logits = (states @ weight.T).float()
        return logits.gather(1, labels[:, None])[:, 0] - logits.logsumexp(1)

    def ours(states: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return head(states, labels[: len(states)])[0]

    few = states[:32]
    logits = few.cpu().double() @ weight.cpu().double().T
    exact = logits.log_softmax(1).gather(1, labels[:32, None].cpu())[:, 0]
    with torch.no_grad():
        error = float((ours(few).cpu().double() - exact).abs().max())
    limit = 2 * _EPS_16 * float(logits.abs().max())  # a logit is rounded to 16 bits
    report.bound("policy head against float64", error, limit, "nats, largest")
    for name, run in (("policy head", ours), ("whole logits", whole)):
        leaf = states.clone().requires_grad_()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        spent = _seconds(partial(_train, run, leaf))
        report.add(f"{name}, {len(states)} tokens forward and backward", spent * 1e3, "ms")
        if device.type == "cuda":
            peak = (torch.cuda.max_memory_allocated() - before) / GIB
            report.add(f"{name}, peak memory", peak, "GiB")


def _train(run: Callable[[torch.Tensor], torch.Tensor], leaf: torch.Tensor) -> None:
    run(leaf).sum().backward()


def _check_forward(report: Report, shape: Qwen2Config, device: torch.device) -> None:
    """The gate canary, the unpadded pass against the padded one, and that gradients are finite."""
    rng = torch_generator(0, "gpu-check", "forward")
    model = _model(shape, device)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    use_unpadded_attention(model)

    def padded(ids: torch.Tensor, attention: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return model(input_ids=ids, attention_mask=attention, policy_labels=labels).log_probs

    def unpadded(ids: torch.Tensor, attention: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return forward_unpadded(model, ids, attention, labels).log_probs

    batch = _padded_batch(shape, 256, device, rng)
    scored = batch[2][:, 1:] != -100
    model.double()
    with torch.no_grad():
        exact = padded(*batch).double()
    model.float()
    errors, ways = {}, {"padded": padded, "unpadded": unpadded}
    for name, run in ways.items():
        with torch.autocast(device.type, torch.bfloat16):
            with torch.no_grad():
                scoring = run(*batch)
            found = run(*batch).detach()
        report.bound(f"gate canary, {name}", float((found - scoring).abs().max()), 0.0)
        errors[name] = float((found.double() - exact)[scored].pow(2).mean().sqrt())

    def broken(run: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]) -> int:
        """At how many widths, by which kernels are chosen, gradients are not finite."""
        count = 0
        for width in _WIDTHS:
            model.zero_grad()
            with torch.autocast(device.type, torch.bfloat16):
                loss = run(*_padded_batch(shape, width, device, rng)).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
            count += not bool(torch.stack(norms).isfinite().all())
        return count

    name, unit = "gradients not finite", f"of {len(_WIDTHS)} widths"
    torch.backends.cuda.enable_cudnn_sdp(True)
    report.add(f"{name}, padded, cuDNN's attention allowed", broken(padded), unit)
    avoid_cudnn_attention()  # as training does
    for way, run in ways.items():
        report.bound(f"{name}, {way}", broken(run), 0.0, unit)
    report.add("padded pass in bfloat16 against float64", errors["padded"], "nats, rms")
    name = "unpadded pass in bfloat16 against float64"
    report.bound(name, errors["unpadded"], 1.5 * errors["padded"], "nats, rms")


def _padded_batch(
    shape: Qwen2Config, width: int, device: torch.device, rng: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, attention and labels (4, width): prompts padded left, responses right."""
    lengths, prompt, position = torch.tensor([1.0, 0.75, 0.5, 0.2]), 64, torch.arange(width)
    real = (lengths * width).int()[:, None]
    begin = (prompt - prompt * lengths).int()[:, None]
    attention = ((position >= begin) & (position < begin + real)).long()
    ids = torch.randint(shape.vocab_size, attention.shape, generator=rng)
    is_policy = torch.rand(len(ids), width - prompt, generator=rng) < 0.5
    labels = policy_labels(ids, attention[:, prompt:] * is_policy)
    return ids.to(device), attention.to(device), labels.to(device)


def _list_backends(report: Report, shape: Qwen2Config, device: torch.device) -> None:
    """Which kernels of SDPA run with a mask of padding and without one."""
    size = shape.hidden_size // shape.num_attention_heads
    sizes = (2, shape.num_attention_heads, 128, size)
    query, key, value = (torch.randn(sizes, device=device).bfloat16() for _ in range(3))
    mask = torch.ones(2, 1, 128, 128, device=device, dtype=torch.bool).tril()
    for name, options in (("a mask", {"attn_mask": mask}), ("no mask", {"is_causal": True})):
        works = []
        for kernel in ("flash", "efficient", "cudnn"):
            backend = SDPBackend.__members__[f"{kernel.upper()}_ATTENTION"]
            # A `RuntimeError` is how torch says that a kernel does not take the inputs.
            with suppress(RuntimeError), warnings.catch_warnings(action="ignore"):
                with sdpa_kernel(backend):
                    nn.functional.scaled_dot_product_attention(query, key, value, **options)
                works.append(kernel)
        report.add(f"fused SDPA kernels with {name}", ", ".join(works) or "none")


def _measure_ceiling(report: Report, device: torch.device) -> None:
    """What the card's own library reaches, for the shares of phase B."""
    size = 8192 if device.type == "cuda" else 512
    left, right = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    speed = 2 * size**3 / _seconds(lambda: left @ right) / 1e12
    report.add(f"matrix product in bfloat16, {size}", speed, "TFLOP/s")


def _seconds(work: Callable[[], object]) -> float:
    """Mean time of five calls of `work` after two more, on a CPU with one thread."""
    return Timer("work()", globals={"work": work}).timeit(5).mean


def _model(shape: Qwen2Config, device: torch.device) -> PreTrainedModel:
    values = shape.to_dict() | {"num_hidden_layers": 2, "layer_types": None}
    with torch.device(device):
        model = Qwen2ForCausalLM(Qwen2Config(**values))
    add_policy_head(model)
    return model
