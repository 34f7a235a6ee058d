"""Every value a user can set: sections, profiles, methods, and the arms of studies."""

from llds_core.config.arms import Arm, Study, load_study, studies
from llds_core.config.load import (
    laid_over,
    layouts,
    layouts_for,
    load_experiment,
    methods,
    official_differences,
    override_key,
    profiles,
)
from llds_core.config.schema import ExperimentConfig, LossConfig
from llds_core.config.sections import (
    FEEDBACK,
    DenseConfig,
    PolicyConfig,
    RewardConfig,
    RolloutConfig,
    SamplerConfig,
    ServiceConfig,
    TrainingConfig,
    WarmstartConfig,
)
