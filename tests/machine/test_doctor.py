"""What is wrong with a machine is found, named in one line, and comes with its fix."""

import json
import socket
from pathlib import Path

import pytest
from files_world import write_files_world

from llds_core.__main__ import main
from llds_core.config import ExperimentConfig, load_experiment
from llds_core.machine.doctor import Finding, Gpu, Gpus, Probes, examine, probes
from llds_core.machine.plan import plan
from llds_core.retrieval import Health, PassageFile, ServiceIdentity, encoder_hash
from llds_core.worlds import CORPUS_FILE

H100 = Gpu("NVIDIA H100 80GB HBM3", 79.1, 78.5)
# The sizes of Qwen2.5-3B.
QWEN = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 151_936,
    "hidden_size": 2048,
    "intermediate_size": 11_008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
GOOD = Gpus("2.13.0", "13.0", "580.65", (13, 0), (H100,) * 4)


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
        (folder / model / "config.json").write_text(json.dumps(QWEN))
    return folder


def write_index_manifest(folder: Path, data: Path, **changes: object) -> None:
    """A finished flat index over the corpus of `data`, as its manifest tells it."""
    passages = PassageFile(data / CORPUS_FILE)
    manifest = {
        "schema_version": 2,
        "passages": len(passages),
        "dimension": 8,
        "corpus_hash": passages.hash,
        "encoder_hash": encoder_hash(data / "encoder/e5-base-v2"),
        "passage_prefix": "passage: ",
        "max_tokens": 256,
        "half": False,
        "vectors": "e5_Flat.index",
        "index": "Flat",
        "bytes": 0,
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
        *more,
    ]
    return load_experiment("paper-3b/grpo", overrides)


def machine(**changes: object) -> Probes:
    """A machine that can run everything."""
    settings = {
        "gpus": lambda: GOOD,
        "installed": lambda package: "999",
        "free_disk": lambda path: 2000.0,
        "host_memory": lambda: 2000.0,
        "hub_problem": lambda repo, kind, revision: "",
        "health": lambda url: Health("silent"),
        "port_is_free": lambda host, port: True,
    }
    return Probes(**settings | changes)


@pytest.fixture
def ready(data: Path, tmp_path: Path) -> ExperimentConfig:
    """An experiment for which everything is there."""
    write_index_manifest(tmp_path / "index", data)
    return experiment(data, tmp_path / "index")


def failures(config: ExperimentConfig, run_root: Path, **changes: object) -> list[Finding]:
    findings = examine(config, run_root, probes=machine(**changes))
    for finding in findings:
        assert "\n" not in finding.line()
        assert bool(finding.fix) == (finding.status != "ok"), finding
    return [finding for finding in findings if finding.status == "fail"]


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1, [finding.line() for finding in findings]
    return findings[0]


def test_a_machine_with_everything_passes(ready: ExperimentConfig, tmp_path: Path) -> None:
    assert failures(ready, tmp_path) == []


@pytest.mark.parametrize(
    ("gpus", "check", "found", "fix"),
    [
        (Gpus("2.13.0+cpu"), "CUDA", "built for CPUs", "CUDA build"),
        (Gpus("2.13.0", "13.0"), "CUDA", "no NVIDIA driver", "install the NVIDIA driver"),
        (
            Gpus("2.13.0", "13.0", "550.54", (12, 4), ()),
            "CUDA",
            "driver 550.54 supports CUDA 12.4, torch 2.13.0 was built for 13.0",
            "one for CUDA 13",
        ),
        (Gpus("2.13.0", "13.0", "580", (13, 0), ()), "CUDA", "no GPU", "CUDA_VISIBLE_DEVICES"),
        (
            Gpus("2.13.0", "13.0", "580", (13, 0), (H100,) * 2),
            "GPUs",
            "2 × NVIDIA H100",
            "4 a node are needed",
        ),
        (
            Gpus("2.13.0", "13.0", "580", (13, 0), (Gpu("RTX 4090", 23.6, 23.0),) * 4),
            "GPU memory",
            "23.6 GiB on RTX 4090",
            "counts on 79 GiB",
        ),
        (
            Gpus("2.13.0", "13.0", "580", (13, 0), (H100, H100, H100, Gpu("H100", 79.1, 3.0))),
            "GPU memory",
            "3.0 of 79.1 GiB free",
            "nvidia-smi",
        ),
        (Gpus(error="Segmentation fault"), "GPU", "Segmentation fault", "gpu_probe"),
    ],
)
def test_gpus_that_cannot_train_it(
    ready: ExperimentConfig, tmp_path: Path, gpus: Gpus, check: str, found: str, fix: str
) -> None:
    finding = only(failures(ready, tmp_path, gpus=lambda: gpus))
    assert finding.check == check and found in finding.found and fix in finding.fix


def test_a_newer_driver_of_the_same_cuda_is_fine(ready: ExperimentConfig, tmp_path: Path) -> None:
    gpus = Gpus("2.13.0", "13.0", "600", (14, 1), (H100,) * 8)
    assert failures(ready, tmp_path, gpus=lambda: gpus) == []


def test_gpus_are_not_asked_for_a_profile_of_the_cpu(tmp_path: Path) -> None:
    def never() -> Gpus:
        raise AssertionError("asked")

    assert failures(load_experiment("smoke/grpo"), tmp_path, gpus=never) == []


def test_packages_are_those_the_profile_uses(ready: ExperimentConfig, tmp_path: Path) -> None:
    without = {"vllm", "bitsandbytes", "deepspeed"}

    def installed(package: str) -> str | None:
        return None if package in without else "999"

    assert only(failures(ready, tmp_path, installed=installed)).check == "vllm"
    other = ("sampler.backend=transformers", "training.optimizer=adamw-8bit")
    config = experiment(Path(ready.data.folder), Path(ready.dense.path), *other)
    checks = [finding.check for finding in failures(config, tmp_path, installed=installed)]
    assert "bitsandbytes" in checks and not {"vllm", "deepspeed"} & {*checks}
    config = experiment(Path(ready.data.folder), Path(ready.dense.path), "hardware.sharding=zero3")
    checks = [finding.check for finding in failures(config, tmp_path, installed=installed)]
    assert {"vllm", "deepspeed"} <= {*checks}


def test_a_version_other_than_the_pin_is_a_warning(ready: ExperimentConfig, tmp_path: Path) -> None:
    found = examine(ready, tmp_path, probes=machine(installed=lambda package: "0.0.1"))
    trl = next(finding for finding in found if finding.check == "trl")
    assert trl.status == "warn" and "tested with trl==" in trl.fix


def test_too_little_disk_and_memory_for_what_the_plan_counts(
    ready: ExperimentConfig, tmp_path: Path
) -> None:
    planned = plan(ready)
    checkpoints = planned.disk_parts_gib["checkpoints"]
    finding = only(failures(ready, tmp_path, free_disk=lambda path: checkpoints))
    assert finding.check == "disk" and f"{checkpoints + 1:.0f} GiB are needed" in finding.fix
    findings = examine(ready, tmp_path, probes=machine(host_memory=lambda: 32.0))
    memory = next(finding for finding in findings if finding.check == "memory")
    assert memory.status == "warn" and f"{planned.host_memory_gib:.0f} GiB" in memory.fix


def test_disk_is_for_all_runs(ready: ExperimentConfig, tmp_path: Path) -> None:
    checkpoints = plan(ready).disk_parts_gib["checkpoints"]
    probes = machine(free_disk=lambda path: 3 * checkpoints + 1.5)
    for runs, status in ((3, "ok"), (4, "fail")):
        findings = examine(ready, tmp_path, runs=runs, probes=probes)
        assert next(f.status for f in findings if f.check == "disk") == status


def test_missing_data_names_the_command_that_fetches_it(data: Path, tmp_path: Path) -> None:
    config = experiment(tmp_path, data / "index")
    checks = {f.check: f for f in failures(config, tmp_path)}
    corpus = checks["data: corpus"]
    assert "wiki-18.jsonl is missing" in corpus.found
    assert corpus.fix == f"python -m llds_core data paper-3b --folder {tmp_path} --only corpus"
    assert {"data: questions", "data: train", "policy", "encoder"} < checks.keys()


def test_a_gated_model_without_access(data: Path, ready: ExperimentConfig, tmp_path: Path) -> None:
    """What the hub says of it, and only of what is not here yet."""
    asked = []

    def gated(repo: str, kind: str, revision: str | None) -> str:
        asked.append(repo)
        return f"{repo} is gated: accept its licence"

    config = experiment(data, Path(ready.dense.path), "policy.path=meta-llama/Llama-3.2-3B")
    finding = only(failures(config, tmp_path, hub_problem=gated))
    assert finding.check == "policy" and finding.fix.startswith("meta-llama/Llama-3.2-3B is gated")
    assert asked == ["meta-llama/Llama-3.2-3B"]


def test_a_policy_folder_without_weights(
    data: Path, ready: ExperimentConfig, tmp_path: Path
) -> None:
    empty = tmp_path / "policy"
    empty.mkdir()
    (empty / "config.json").write_text("{}")
    config = experiment(data, Path(ready.dense.path), f"policy.path={empty}")
    assert "holds no tokenizer.json" in only(failures(config, tmp_path)).found


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        (None, "holds none"),
        ({"index": None}, "unfinished"),
        ({"corpus_hash": "0" * 64}, "was built with"),
        ({"encoder_hash": "0" * 64}, "was built with"),
        ({"half": True}, "was built with"),
        ({"index": "HNSW64 depth 200"}, "holds the index HNSW64 depth 200, not Flat"),
        ({"schema_version": 7}, "schema version 7"),
    ],
)
def test_an_index_that_is_missing_or_of_something_else(
    data: Path, tmp_path: Path, changes: dict | None, found: str
) -> None:
    if changes is not None:
        write_index_manifest(tmp_path / "index", data, **changes)
    finding = only(failures(experiment(data, tmp_path / "index"), tmp_path))
    assert finding.check == "index" and found in finding.found


def test_a_missing_index_is_that_of_the_published_one(data: Path, tmp_path: Path) -> None:
    def fix(vectors: str) -> str:
        config = experiment(data, tmp_path / "index", f"dense.vectors={vectors}")
        return only(failures(config, tmp_path)).fix

    published = tmp_path / "e5_Flat.index"
    assert fix(str(published)).startswith("make data PROFILE=paper-3b; then python -m llds_core")
    published.write_bytes(b"")
    checked = f"python -m llds_core index paper-3b (checks {published})"
    assert fix(str(published)) == checked
    assert "hours on a GPU" in fix("null")


def test_a_retriever_on_another_corpus(ready: ExperimentConfig, tmp_path: Path) -> None:
    other = Health(
        "ready", ServiceIdentity(index="index", corpus="0" * 16, backend="dense", passages=63)
    )
    finding = only(failures(ready, tmp_path, health=lambda url: other))
    mine = PassageFile(Path(ready.data.folder) / CORPUS_FILE).hash[:16]
    assert f"searches corpus {'0' * 16}, this profile is about {mine}" in finding.found
    right = Health(
        "ready", ServiceIdentity(index="index", corpus=mine, backend="dense", passages=63)
    )
    assert failures(ready, tmp_path, health=lambda url: right) == []


def test_the_address_of_the_retriever(data: Path, ready: ExperimentConfig, tmp_path: Path) -> None:
    taken = only(failures(ready, tmp_path, health=lambda url: Health("foreign")))
    assert "no search service" in taken.found
    busy = only(failures(ready, tmp_path, port_is_free=lambda host, port: False))
    assert "port 8000 is in use" in busy.found
    far = experiment(data, Path(ready.dense.path), "service.url=http://10.0.0.1:8000")
    assert "not this machine" in only(failures(far, tmp_path)).found


def test_a_vllm_server_that_does_not_answer(
    data: Path, ready: ExperimentConfig, tmp_path: Path
) -> None:
    config = experiment(data, Path(ready.dense.path), "sampler.mode=server")
    (finding,) = [f for f in failures(config, tmp_path) if f.check == "vLLM server"]
    assert "VLLM_SERVER_DEV_MODE=1 vllm serve " in finding.fix
    assert "--port 8001" in finding.fix and "--logprobs-mode" in finding.fix


def test_the_command_prints_a_list_and_tells_by_its_exit_code(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["doctor", "smoke", "--json", "--run-root", str(tmp_path)]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert findings and all(f.keys() == {"check", "status", "found", "fix"} for f in findings)
    words = ["doctor", "smoke", "policy.path=no/such/policy", "--run-root", str(tmp_path)]
    assert main(words) == 1
    assert "fail  policy: no/such/policy is no folder – name a folder" in capsys.readouterr().out


def test_a_probe_that_dies_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho libcuda is broken >&2\nexit 3\n")
    python.chmod(0o755)
    monkeypatch.setattr(probes.sys, "executable", str(python))
    assert probes.find_gpus().error == "libcuda is broken"


def test_a_port_in_use_is_seen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert not probes.port_is_free("127.0.0.1", port)
    assert probes.port_is_free("127.0.0.1", port)
