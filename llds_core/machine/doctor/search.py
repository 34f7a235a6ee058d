"""The search service and its index, and the vLLM server."""

from pathlib import Path

from llds_core.config import ExperimentConfig
from llds_core.errors import LLDSError
from llds_core.machine.doctor.findings import Finding
from llds_core.machine.doctor.probes import Probes
from llds_core.retrieval import (
    PACKAGED,
    StoredMap,
    checked_manifest,
    encoder_folder,
    encoder_hash,
    index_kind,
    local_address,
    read_index_manifest,
    stored_map,
)
from llds_core.rollout.environment import index_path
from llds_core.worlds import CORPUS_FILE


def search_findings(config: ExperimentConfig, probes: Probes) -> list[Finding]:
    """Whether searches would be answered, from the right passages."""
    if config.retrieval.backend == "bm25":
        return []
    corpus = stored_map(Path(config.data.folder) / CORPUS_FILE)
    if config.retrieval.backend == "dense":
        return [index_finding(config, corpus)]
    address = local_address(config.service.url)
    found = probes.health(config.service.url)
    if found.state == "silent":
        if address is None:
            fix = f"start it there: make retriever PROFILE={config.profile} BACKEND=dense"
            said = f"nothing answers at {config.service.url}, which is not this machine"
            return [Finding("retriever", "fail", said, fix)]
        return [_port(config, address, probes), index_finding(config, corpus)]
    return [_running(config, found.state, found.identity and found.identity.corpus, corpus)]


def _running(
    config: ExperimentConfig, state: str, searches: str | None, corpus: StoredMap | None
) -> Finding:
    url = config.service.url
    other = "stop it, or choose another address, e.g. service.url=http://127.0.0.1:8010"
    if state == "foreign":
        said = f"{url} is taken by something that is no search service"
        return Finding("retriever", "fail", said, other)
    if state == "loading":
        return Finding("retriever", "warn", f"{url} is {state}", "it is waited for")
    if state == "unnamed":
        fix = "make sure that it searches the corpus of the profile"
        return Finding("retriever", "warn", f"{url} does not say what it searches", fix)
    if config.world.name == "files" and corpus is None:
        fix = "whether it is that of the profile shows when the corpus file is read"
        return Finding("retriever", "warn", f"{url} searches corpus {searches}", fix)
    wanted = corpus.hash[:16] if corpus and config.world.name == "files" else None
    if wanted and searches != wanted:
        said = f"{url} searches corpus {searches}, this profile is about {wanted}"
        return Finding("retriever", "fail", said, other)
    return Finding("retriever", "ok", f"{url} searches corpus {searches}; it will be used")


def _port(config: ExperimentConfig, address: tuple[str, int], probes: Probes) -> Finding:
    if not probes.port_is_free(*address):
        fix = "stop what listens there, or set e.g. service.url=http://127.0.0.1:8010"
        return Finding("retriever", "fail", f"port {address[1]} is in use", fix)
    said = f"not running; it will be started at {config.service.url}"
    return Finding("retriever", "ok", said)


def sampler_findings(config: ExperimentConfig, probes: Probes) -> list[Finding]:
    """Whether the vLLM server answers, for profiles that sample with one."""
    sampler = config.sampler
    if sampler.backend != "vllm" or sampler.mode != "server":
        return []
    if probes.health(sampler.server_url).state == "silent":
        from llds_core.training.vllm_engine import server_command

        command = server_command(config, config.policy.path)
        fix = f"start it on GPUs of its own: {command}; or set sampler.mode=colocate"
        return [Finding("vLLM server", "fail", f"{sampler.server_url} does not answer", fix)]
    return [Finding("vLLM server", "ok", f"{sampler.server_url} answers")]


def index_finding(config: ExperimentConfig, corpus: StoredMap | None) -> Finding:
    """Whether the dense index is there, whole, and of this corpus and encoder.

    Args:
        config: the experiment.
        corpus: of the corpus file; None when it was never read.
    """
    if config.world.name != "files":
        return Finding("index", "ok", "built from the atlas when it is needed")
    settings = config.dense
    how = f"checks {settings.vectors}" if settings.vectors else "hours on a GPU; resumable"
    fix = f"python -m llds_core index {config.profile} ({how})"
    if settings.vectors and not Path(settings.vectors).is_file():
        fix = f"make data PROFILE={config.profile}; then {fix}"
    if settings.path is None and corpus is None:
        return Finding("index", "fail", "the corpus was never indexed here", fix)
    folder = Path(settings.path) if settings.path else index_path(config, "files", corpus.hash)
    try:
        manifest = read_index_manifest(folder)
        if manifest is None:
            return Finding("index", "fail", f"{folder} holds none", fix)
        if not manifest.get("index"):
            return Finding("index", "fail", f"{folder} holds an unfinished one", fix)
        if settings.vectors and not Path(settings.vectors).is_file():
            return Finding("index", "fail", f"{settings.vectors} does not exist", fix)
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
        return Finding("index", "fail", said, advice or fix)
    if corpus is None:
        late = "whether it is of this corpus shows when the corpus file is read"
        return Finding("index", "warn", f"{folder}, {manifest['passages']} passages", late)
    return Finding("index", "ok", f"{folder}, {manifest['passages']} passages")
