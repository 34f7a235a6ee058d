"""Every value a user can set: sections, profiles, methods, and the arms of studies."""

from llds_core.config.arms import Arm, Study, load_study, studies
from llds_core.config.load import layouts, load_experiment, methods, profiles
from llds_core.config.schema import ExperimentConfig
from llds_core.config.sections import (
    DenseConfig,
    PolicyConfig,
    RewardConfig,
    RolloutConfig,
    ServiceConfig,
    WarmstartConfig,
)

__all__ = [
    "Arm",
    "DenseConfig",
    "ExperimentConfig",
    "PolicyConfig",
    "RewardConfig",
    "RolloutConfig",
    "ServiceConfig",
    "Study",
    "WarmstartConfig",
    "layouts",
    "load_experiment",
    "load_study",
    "methods",
    "profiles",
    "studies",
]
