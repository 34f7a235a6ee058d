"""Where the data of a profile come from: repositories of the hub, their files and commits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llds_core.config import load_experiment, profiles
from llds_core.errors import ConfigError, did_you_mean
from llds_core.worlds.benchmarks import BENCHMARKS, FLASHRAG, FLASHRAG_REVISION, MIX, MIX_REVISION
from llds_core.worlds.hub import Kind

_MODEL_FILES = ("*.safetensors", "*.json", "*.txt")


@dataclass(frozen=True)
class Source:
    """What is taken from one repository of the hub.

    Attributes:
        repo: `owner/name`.
        kind: `dataset` or `model`.
        revision: full commit. The ones below are those that several public projects lock to; they
            could not be checked against the hub when this was written, and the hub refuses a
            commit it does not have.
        files: paths with wildcards.
        folder: below the data folder.
        make: what the files become: themselves, one joined file, or one unpacked file.
        result: name of that one file.
        unpacked: its bytes where the archive does not tell; from public records, not checked.
    """

    repo: str
    kind: Kind
    revision: str
    files: tuple[str, ...]
    folder: str
    make: Literal["keep", "join", "unpack"] = "keep"
    result: str = ""
    unpacked: int = 0


def _policy(repo: str, revision: str) -> Source:
    folder = f"policy/{repo.partition('/')[2].lower()}"
    return Source(repo, "model", revision, _MODEL_FILES, folder)


SOURCES = {
    "questions": Source(
        FLASHRAG,
        "dataset",
        FLASHRAG_REVISION,
        tuple(benchmark.file for benchmark in BENCHMARKS.values()),
        "questions",
    ),
    "train": Source(MIX, "dataset", MIX_REVISION, ("train.parquet",), "train"),
    "encoder": Source(
        "intfloat/e5-base-v2",
        "model",
        "f52bf8ec8c7124536f0efb74aca902b2995e5bcd",
        (*_MODEL_FILES, "1_Pooling/config.json"),
        "encoder/e5-base-v2",
    ),
    "corpus": Source(
        "PeterJinGo/wiki-18-corpus",
        "dataset",
        "69c1c00ffe7c5554c68d8548355cb22e46aabc51",
        ("wiki-18.jsonl.gz",),
        "corpus",
        make="unpack",
        result="wiki-18.jsonl",
        unpacked=14_393_573_105,
    ),
    "index": Source(
        "PeterJinGo/wiki-18-e5-index",
        "dataset",
        "a4d31160a035f30764604f4827cd8f1d0315eb86",
        ("part_aa", "part_ab"),
        "index",
        make="join",
        result="e5_Flat.index",
    ),
    "qwen2.5-3b": _policy("Qwen/Qwen2.5-3B", "3aab1f1954e9cc14eb9509a215f9e5ca08227a9b"),
    "qwen2.5-3b-instruct": _policy(
        "Qwen/Qwen2.5-3B-Instruct", "aa8e72537993ba99e69dfaafa59ed015b17504d1"
    ),
    "qwen2.5-7b": _policy("Qwen/Qwen2.5-7B", "d149729398750b98c0af14eb82c78cfe92750796"),
    "qwen2.5-7b-instruct": _policy(
        "Qwen/Qwen2.5-7B-Instruct", "a09a35458c702b33eeacc393d103063234e8bc28"
    ),
    "llama-3.2-3b": _policy("meta-llama/Llama-3.2-3B", "13afe5124825b4f3751f836b40dafda64c1ed062"),
}
_FILES_WORLD = ("questions", "train", "encoder", "corpus", "index")  # small ones first


def needs(profile: str, only: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of the sources of `profile`, of these `only` the given ones when there are any.

    A policy is needed where the profile looks for it in the folder that a source fills.

    Raises:
        ConfigError: for an unknown profile, or a source that it does not need.
    """
    if profile not in profiles():
        raise ConfigError(f'unknown profile "{profile}": {did_you_mean(profile, profiles())}')
    config = load_experiment(f"{profile}/grpo")
    names: tuple[str, ...] = ()
    if config.world.name == "files":
        policies = [
            name
            for name, source in SOURCES.items()
            if config.policy.path == f"{config.data.folder}/{source.folder}"
        ]
        names = (*_FILES_WORLD, *policies)
    for name in only:
        if name not in names:
            hint = did_you_mean(name, names) if names else "it needs no download"
            raise ConfigError(f'{profile} needs no "{name}": {hint}')
    return tuple(name for name in names if not only or name in only)
