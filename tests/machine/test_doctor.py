"""What is wrong with a machine is found, named in one line, and comes with its fix."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from files_world import write_files_world

from llds_core.__main__ import main
from llds_core.config import ExperimentConfig, laid_over, load_experiment
from llds_core.errors import DownloadError, RunError
from llds_core.machine import doctor
from llds_core.machine.doctor import Finding, examine
from llds_core.machine.gpu_probe import Gpu, Gpus
from llds_core.machine.memory import known_models
from llds_core.machine.plan import estimate
from llds_core.retrieval import PassageFile, ServiceIdentity
from llds_core.retrieval.client import Health
from llds_core.retrieval.encoder import encoder_hash
from llds_core.worlds.question_sets import CORPUS_FILE

H100 = Gpu("NVIDIA H100 80GB HBM3", 79.1, 78.5)


def gpus(*found: Gpu, torch_cuda: str | None = "13.0", driver: str | None = "580.65") -> Gpus:
    return Gpus("2.13.0", torch_cuda, driver, found, "" if found else "torch's words")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with everything but an index; the corpus was read once."""
    folder = tmp_path_factory.mktemp("data")
    write_files_world(folder, train=1, test=1)
    PassageFile(folder / CORPUS_FILE)
    for model in ("policy/qwen2.5-3b", "encoder/e5-base-v2"):
        (folder / model).mkdir(parents=True)
        for name in ("tokenizer.json", "model.safetensors"):
            (folder / model / name).write_text("{}")
        (folder / model / "config.json").write_text(json.dumps(known_models()["qwen2.5-3b"]))
    (folder / "broken").mkdir()
    (folder / "broken/config.json").write_text("{}")
    return folder


def write_index_manifest(folder: Path, data: Path, **changes: object) -> None:
    """A finished flat index over the corpus of `data`, as its manifest tells it."""
    passages = PassageFile(data / CORPUS_FILE)
    manifest = {
        **{"schema_version": 2, "index": "Flat", "vectors": "e5_Flat.index"},
        **{"passages": len(passages), "corpus_hash": passages.hash},
        "encoder_hash": encoder_hash(data / "encoder/e5-base-v2"),
        **{"passage_prefix": "passage: ", "max_tokens": 256, "half": True},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "e5_Flat.index").touch()
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))


def experiment(data: Path, index: Path, *more: str) -> ExperimentConfig:
    overrides = [
        f"data.folder={data}",
        f"policy.path={data}/policy/qwen2.5-3b",
        f"dense.encoder={data}/encoder/e5-base-v2",
        f"dense.path={index}",
        f"dense.vectors={index}/e5_Flat.index",
    ]
    return load_experiment("paper-3b/grpo", laid_over(overrides, more))


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A machine that can run everything; call it with what functions of `doctor` answer instead."""

    def change(**answers: object) -> None:
        for name, answer in answers.items():
            monkeypatch.setattr(
                doctor, name, answer if callable(answer) else Mock(return_value=answer)
            )

    change(installed="999", ask_health=Health("silent"), find_gpus=gpus(*[H100] * 4))
    has_gib(monkeypatch, memory=2000, disk=2000)
    return change


def has_gib(monkeypatch: pytest.MonkeyPatch, *, memory: float, disk: float) -> None:
    ram, free = SimpleNamespace(total=memory * 2**30), SimpleNamespace(free=disk * 2**30)
    monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda: ram)
    monkeypatch.setattr(doctor.psutil, "disk_usage", lambda path: free)


@pytest.fixture
def ready(data: Path, tmp_path: Path) -> ExperimentConfig:
    """An experiment for which everything is there."""
    write_index_manifest(tmp_path / "index", data)
    return experiment(data, tmp_path / "index")


def failures(config: ExperimentConfig, run_root: Path) -> list[Finding]:
    findings = examine(config, run_root)
    for finding in findings:
        assert "\n" not in finding.line()
        assert bool(finding.fix) == (finding.status != "ok"), finding
    return [finding for finding in findings if finding.status == "fail"]


def test_a_machine_with_everything_passes(data: Path, ready, tmp_path: Path, machine) -> None:
    assert failures(ready, tmp_path) == []
    corpus = PassageFile(data / CORPUS_FILE).hash[:16]
    machine(find_gpus=gpus(*[H100] * 8), ask_health=Health("ready", identity(corpus)))
    assert failures(ready, tmp_path) == []
    machine(find_gpus=pytest.fail)  # not asked for a profile of the CPU
    assert failures(load_experiment("smoke/grpo"), tmp_path) == []


def identity(corpus: str) -> ServiceIdentity:
    return ServiceIdentity(index="index", corpus=corpus, backend="dense", passages=63)


def case(
    check: str,
    found: str,
    fix: str = "",
    *,
    overrides: tuple[str, ...] = (),
    index: dict | None = {},  # noqa: B006
    **machine: object,
) -> tuple:
    """The one failure on a machine that answers so, with changes of its index or None for none."""
    return check, found, fix, overrides, index, machine


GATED = "meta-llama/Llama-3.2-3B is gated: accept its licence"
broken = Mock(side_effect=RunError("Segmentation fault"))
gated = Mock(side_effect=DownloadError(GATED))


@pytest.mark.parametrize(
    ("check", "found", "fix", "overrides", "index", "answers"),
    [
        case("CUDA", "built for CPUs", "CUDA build", find_gpus=gpus(torch_cuda=None)),
        case(
            *("CUDA", "torch 2.13.0 is built for CUDA 13.0, driver 550.54: no GPU (torch's words)"),
            "with a driver >= 580 for CUDA 13, and CUDA_VISIBLE_DEVICES must",
            find_gpus=gpus(driver="550.54"),
        ),
        case("CUDA", "Segmentation", "machine.gpu_probe", find_gpus=broken),
        case("GPUs", "2 × NVIDIA H100", "4 per node are needed", find_gpus=gpus(H100, H100)),
        case(
            *("GPU memory", "23.6 GiB on RTX 4090", "79 GiB are needed: choose another layout"),
            find_gpus=gpus(*[Gpu("RTX 4090", 23.6, 23.0)] * 4),
        ),
        case(
            *("GPU memory", "3.0 of 79.1 GiB free", "nvidia-smi"),
            find_gpus=gpus(H100, H100, H100, Gpu("H100", 79.1, 3.0)),
        ),
        # What the hub says of a gated policy, and only of what is not here yet.
        case(
            *("policy", "is not here yet", GATED),
            overrides=("policy.path=meta-llama/Llama-3.2-3B",),
            list_files=gated,
        ),
        case("policy", "holds no tokenizer.json", overrides=("policy.path={data}/broken",)),
        case("index", "Flat.index does not exist", "make data PROFILE=paper-3b; ", index=None),
        case("index", "holds no", "hours on a", overrides=("dense.vectors=null",), index=None),
        case("index", "holds no finished", "/e5_Flat.index (checks ", index={"index": None}),
        case("index", "was built with", index={"corpus_hash": "0" * 64}),
        case("index", "was built with", index={"encoder_hash": "0" * 64}),
        case("index", "holds the index HNSW64, not Flat", index={"index": "HNSW64"}),
        case("index", "schema version 7", index={"schema_version": 7}),
        case(
            *("retriever", f"searches corpus {'0' * 16}, this profile is about "),
            "stop it, or choose another address",
            ask_health=Health("ready", identity("0" * 16)),
        ),
        case("retriever", "is not a search service", "stop", ask_health=Health("foreign")),
        case("retriever", "not this machine", overrides=("service.url=http://10.0.0.1:8000",)),
        # Processed log-probabilities know which ids are no tokens; raw ones ignore a nucleus.
        case(
            *("vLLM server", "does not answer"),
            "--port 8001 --tensor-parallel-size 1 --max-model-len 4096 --dtype bfloat16 "
            "--logprobs-mode processed_logprobs",
            overrides=("sampler.mode=server",),
        ),
    ],
)
def test_what_is_wrong_is_found_and_comes_with_its_fix(
    data: Path, tmp_path: Path, machine, check, found, fix, overrides, index, answers
) -> None:
    if index is not None:
        write_index_manifest(tmp_path / "index", data, **index)
    machine(**answers)
    words = [override.format(data=data) for override in overrides]
    (finding,) = failures(experiment(data, tmp_path / "index", *words), tmp_path)
    assert finding.check == check and found in finding.found and fix in finding.fix


def test_a_corpus_that_was_never_read_needs_an_index(data: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(doctor, "stored_map", lambda *_: None)
    write_index_manifest(tmp_path / "index", data)
    assert failures(experiment(data, tmp_path / "index"), tmp_path) == []
    (finding,) = failures(experiment(data, tmp_path / "index", "dense.path=null"), tmp_path)
    assert finding.found == "the corpus was never indexed here"
    assert f" paper-3b data.folder={data} dense.encoder=" in finding.fix


def test_packages_are_those_the_profile_uses_in_the_tested_versions(ready, tmp_path, machine):
    without = {"vllm", "bitsandbytes"}
    project = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["project"]
    declared = [*project["dependencies"]]
    for extra, texts in project["optional-dependencies"].items():
        declared += [f'{text}; extra == "{extra}"' for text in texts]
    machine(requires=declared, installed=lambda name: None if name in without else "999")
    folders = Path(ready.data.folder), Path(ready.dense.path)
    small = ("sampler.backend=transformers", "training.optimizer=adamw-8bit")
    for settings, missing in (((), {"vllm"}), (small, {"bitsandbytes"})):
        checks = {finding.check for finding in failures(experiment(*folders, *settings), tmp_path)}
        assert checks & without == missing
    machine(installed="0.0.1")
    trl = next(finding for finding in examine(ready, tmp_path) if finding.check == "trl")
    assert trl.status == "warn" and "tested with trl==" in trl.fix


def test_memory_and_the_disk_of_all_runs_are_those_of_the_plan(ready, tmp_path, monkeypatch):
    planned = estimate(ready)
    checkpoints = planned.disk_parts_gib["checkpoints"]
    has_gib(monkeypatch, memory=32, disk=3 * checkpoints + 1.5)
    for runs, status in ((3, "ok"), (4, "fail")):
        found = {finding.check: finding for finding in examine(ready, tmp_path, runs=runs)}
        assert found["disk"].status == status
    assert f"{4 * checkpoints + 1:.0f} GiB are needed" in found["disk"].fix
    assert found["memory"].status == "warn"
    assert f"{planned.host_memory_gib:.0f} GiB are needed" in found["memory"].fix


def test_missing_data_names_the_command_that_fetches_it(data: Path, tmp_path: Path) -> None:
    config = experiment(tmp_path, data / "index")
    checks = {f.check: f for f in failures(config, tmp_path)}
    corpus = checks["data: corpus"]
    assert "wiki-18.jsonl is missing" in corpus.found
    assert corpus.fix == f"python -m llds_core data paper-3b --folder {tmp_path} --only corpus"
    assert {"data: questions", "data: train", "policy", "encoder"} < checks.keys()


def test_the_command_prints_a_list_and_tells_by_its_exit_code(capsys, tmp_path: Path) -> None:
    assert main(["doctor", "smoke", "--json", "--run-root", str(tmp_path)]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert findings and all(f.keys() == {"check", "status", "found", "fix"} for f in findings)
    words = ["doctor", "smoke", "policy.path=no/such/policy", "--run-root", str(tmp_path)]
    assert main(words) == 1
    said = "fail  policy: no/such/policy is not a folder – name a folder"
    assert said in capsys.readouterr().out
