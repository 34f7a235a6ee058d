"""Policies that are given, not made here: a folder, a model of the hub, or the packaged SmolLM2.

All of them become a folder on this machine before anything is loaded, so that the policy, TRL's
reference policy and a vLLM server read the same files, and a digest of them says what a run began
with.
"""

from pathlib import Path

from llds_core.config import ExperimentConfig
from llds_core.errors import CheckpointError, DownloadError
from llds_core.files import hub_errors
from llds_core.runs.policies import POLICY_FILES
from llds_core.runs.smollm2 import PACKAGE, SMOLLM2, VERSION, unpack_smollm2


def given_policy(config: ExperimentConfig, root: Path) -> Path:
    """Folder of the policy that `policy.path` names, unpacked or fetched first where it has to be.

    SmolLM2 is unpacked below `root`, the folder of all runs; a model of the hub lies in the hub's
    own cache.

    Raises:
        CheckpointError: when the path is neither a folder nor the name of a model.
        ConfigError: when SmolLM2 is wanted and not installed.
        DownloadError: when the hub does not give the model.
        RunError: when the disk is full.
    """
    path = str(config.policy.path)
    if path == SMOLLM2:
        return unpack_smollm2(root / "policies" / f"{PACKAGE}-{VERSION}")
    if Path(path).is_dir():
        return Path(path)
    if not _names_a_model(path):
        raise CheckpointError(
            f"policy.path={path} is not a folder: run make data PROFILE={config.profile}, or set "
            "policy.path to a checkpoint folder"
        )
    return _from_hub(path)


def _names_a_model(path: str) -> bool:
    """Whether the hub allows such a name: `owner/model`, or `model` alone."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(path)
    except HFValidationError:
        return False
    return True


def _from_hub(repo: str) -> Path:
    from huggingface_hub import snapshot_download

    patterns = [pattern for pattern in POLICY_FILES if not pattern.endswith(".bin")]
    try:
        with hub_errors(repo, "model", None):
            return Path(snapshot_download(repo, allow_patterns=patterns))
    except DownloadError as error:
        raise DownloadError(f"policy.path={repo} is not a folder here, and {error}") from error
