"""Ranking of images by quality, learnt from pairs.

The names below are imported when they are first used: ``import hftune.tasks.ranking`` itself loads
neither torch nor transformers.
"""

from typing import TYPE_CHECKING

from ...utils.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "augmentation_ranking": ["Augmentation"],
        "benchmarks_ranking": ["PerformanceBenchmarks", "set_seed"],
        "configuration_ranking": ["PairwiseRankingConfig"],
        "data_ranking": ["PairwiseDataset"],
        "evaluation_ranking": ["Evaluator", "RankingEvaluator"],
        "fit_ranking": ["Trainer", "TrainingConfig"],
        "image_processing_ranking": ["RankingImageProcessor"],
        "inference_ranking": ["RankingPipeline", "batch_compare"],
        "modeling_ranking": ["PairwiseRankingModel"],
        "splitter_ranking": ["DataSplitter"],
        "trainer_ranking": ["RankingTrainer"],
    },
)

if TYPE_CHECKING:  # the same names for type checkers and editors; a test compares the two
    from .augmentation_ranking import Augmentation as Augmentation
    from .benchmarks_ranking import PerformanceBenchmarks as PerformanceBenchmarks
    from .benchmarks_ranking import set_seed as set_seed
    from .configuration_ranking import PairwiseRankingConfig as PairwiseRankingConfig
    from .data_ranking import PairwiseDataset as PairwiseDataset
    from .evaluation_ranking import Evaluator as Evaluator
    from .evaluation_ranking import RankingEvaluator as RankingEvaluator
    from .fit_ranking import Trainer as Trainer
    from .fit_ranking import TrainingConfig as TrainingConfig
    from .image_processing_ranking import RankingImageProcessor as RankingImageProcessor
    from .inference_ranking import RankingPipeline as RankingPipeline
    from .inference_ranking import batch_compare as batch_compare
    from .modeling_ranking import PairwiseRankingModel as PairwiseRankingModel
    from .splitter_ranking import DataSplitter as DataSplitter
    from .trainer_ranking import RankingTrainer as RankingTrainer
