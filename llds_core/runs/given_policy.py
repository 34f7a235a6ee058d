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
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    path = str(config.policy.path)
    if path == SMOLLM2:
        return unpack_smollm2(root / "policies" / f"{PACKAGE}-{VERSION}")
    if Path(path).is_dir():
        return Path(path)
    patterns = [pattern for pattern in POLICY_FILES if not pattern.endswith(".bin")]
    try:
        with hub_errors(path, "model", None):
            return Path(snapshot_download(path, allow_patterns=patterns))
    except HFValidationError:
        # The hub allows `owner/model`, or `model` alone.
        raise CheckpointError(
            f"policy.path={path} is not a folder: run make data PROFILE={config.profile}, or set "
            "policy.path to a checkpoint folder"
        ) from None
    except DownloadError as error:
        raise DownloadError(f"policy.path={path} is not a folder here, and {error}") from error
