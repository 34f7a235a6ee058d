"""Every value a user can set: sections, profiles, methods, and the arms of studies."""

from llds_core.config.arms import Arm, Entry, Study, load_study, studies
from llds_core.config.load import (
    layouts,
    load_experiment,
    methods,
    printed_experiment,
    profiles,
    variants,
)
from llds_core.config.schema import ExperimentConfig
from llds_core.config.sections import (
    DataConfig,
    DenseConfig,
    DiagnosticsConfig,
    EvaluationConfig,
    HardwareConfig,
    LossConfig,
    PolicyConfig,
    RetrievalConfig,
    RewardConfig,
    RolloutConfig,
    SamplerConfig,
    ServiceConfig,
    TrainingConfig,
    WarmstartConfig,
    WorldConfig,
)

__all__ = [
    "Arm",
    "DataConfig",
    "DenseConfig",
    "DiagnosticsConfig",
    "Entry",
    "EvaluationConfig",
    "ExperimentConfig",
    "HardwareConfig",
    "LossConfig",
    "PolicyConfig",
    "RetrievalConfig",
    "RewardConfig",
    "RolloutConfig",
    "SamplerConfig",
    "ServiceConfig",
    "Study",
    "TrainingConfig",
    "WarmstartConfig",
    "WorldConfig",
    "layouts",
    "load_experiment",
    "load_study",
    "methods",
    "printed_experiment",
    "profiles",
    "studies",
    "variants",
]
