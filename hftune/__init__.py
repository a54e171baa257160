"""Fine-tuning runs that a professional can trust, on the Hugging Face Trainer and Accelerate.

The names below are imported when they are first used: ``import hftune`` itself loads neither
torch nor transformers.
"""

from typing import TYPE_CHECKING

from .utils.lazy import lazy_exports

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "callbacks.best_metrics": ["BestMetricsCallback"],
        "callbacks.gradient_health": ["GradientHealthCallback"],
        "callbacks.registry": ["ModelRegistryCallback"],
        "callbacks.resources": ["ResourceMonitor"],
        "callbacks.tracking": ["ExperimentTrackingCallback"],
        "callbacks.wandb_mirror": ["WandbCallback"],
        "configuration.arguments": ["HFTuneArguments"],
        "tasks.aardvark.configuration_aardvark": ["AardvarkProcessorConfig"],
        "tasks.aardvark.configuration_aardvark_encoder": ["AardvarkEncoderConfig"],
        "tasks.aardvark.modeling_aardvark": ["AardvarkProcessor"],
        "tasks.aardvark.modeling_aardvark_encoder": ["AardvarkEncoder"],
        "tasks.aurora.configuration_aurora": ["AuroraConfig"],
        "tasks.aurora.modeling_aurora": ["AuroraForForecasting"],
        "tasks.ranking.configuration_ranking": ["PairwiseRankingConfig"],
        "tasks.ranking.modeling_ranking": ["PairwiseRankingModel"],
        "tasks.ranking.trainer_ranking": ["RankingTrainer"],
        "tasks.weather.audit": ["audit_fields"],
        "tasks.weather.chain": ["WeatherChain"],
        "tasks.weather.fields": ["FieldLayout", "WeatherFields"],
        "tasks.weather.initial_conditions": ["open_initial_conditions"],
        "tasks.weather.samples": ["make_samples"],
        "tasks.weather.scores": ["ForecastScores"],
        "tasks.weather.store": ["open_fields"],
        "tracking.registry": ["ModelRegistry"],
        "tracking.tracker": ["ExperimentTracker"],
        "training.augmentation": ["AugmentedDataset"],
        "training.lead_time": ["LeadTimeTrainer"],
        "training.progressive": ["ProgressiveTrainer"],
        "training.stage_spec": ["StageSpec"],
        "training.stages": ["StagedTrainer"],
        "training.trainer": ["HFTuneTrainer"],
    },
)

if TYPE_CHECKING:  # the same names for type checkers and editors; a test compares the two
    from .callbacks.best_metrics import BestMetricsCallback as BestMetricsCallback
    from .callbacks.gradient_health import GradientHealthCallback as GradientHealthCallback
    from .callbacks.registry import ModelRegistryCallback as ModelRegistryCallback
    from .callbacks.resources import ResourceMonitor as ResourceMonitor
    from .callbacks.tracking import ExperimentTrackingCallback as ExperimentTrackingCallback
    from .callbacks.wandb_mirror import WandbCallback as WandbCallback
    from .configuration.arguments import HFTuneArguments as HFTuneArguments
    from .tasks.aardvark.configuration_aardvark import (
        AardvarkProcessorConfig as AardvarkProcessorConfig,
    )
    from .tasks.aardvark.configuration_aardvark_encoder import (
        AardvarkEncoderConfig as AardvarkEncoderConfig,
    )
    from .tasks.aardvark.modeling_aardvark import AardvarkProcessor as AardvarkProcessor
    from .tasks.aardvark.modeling_aardvark_encoder import AardvarkEncoder as AardvarkEncoder
    from .tasks.aurora.configuration_aurora import AuroraConfig as AuroraConfig
    from .tasks.aurora.modeling_aurora import AuroraForForecasting as AuroraForForecasting
    from .tasks.ranking.configuration_ranking import PairwiseRankingConfig as PairwiseRankingConfig
    from .tasks.ranking.modeling_ranking import PairwiseRankingModel as PairwiseRankingModel
    from .tasks.ranking.trainer_ranking import RankingTrainer as RankingTrainer
    from .tasks.weather.audit import audit_fields as audit_fields
    from .tasks.weather.chain import WeatherChain as WeatherChain
    from .tasks.weather.fields import FieldLayout as FieldLayout
    from .tasks.weather.fields import WeatherFields as WeatherFields
    from .tasks.weather.initial_conditions import open_initial_conditions as open_initial_conditions
    from .tasks.weather.samples import make_samples as make_samples
    from .tasks.weather.scores import ForecastScores as ForecastScores
    from .tasks.weather.store import open_fields as open_fields
    from .tracking.registry import ModelRegistry as ModelRegistry
    from .tracking.tracker import ExperimentTracker as ExperimentTracker
    from .training.augmentation import AugmentedDataset as AugmentedDataset
    from .training.lead_time import LeadTimeTrainer as LeadTimeTrainer
    from .training.progressive import ProgressiveTrainer as ProgressiveTrainer
    from .training.stage_spec import StageSpec as StageSpec
    from .training.stages import StagedTrainer as StagedTrainer
    from .training.trainer import HFTuneTrainer as HFTuneTrainer
