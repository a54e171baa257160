"""Microsoft Aurora: forecasting weather fields.

Importing this package makes the model known to ``AutoConfig`` and ``AutoModel``.
"""

from .configuration_aurora import AuroraConfig, build_config_from_fields
from .convert_aurora import load_aurora_checkpoint
from .modeling_aurora import AuroraForForecasting

__all__ = [
    "AuroraConfig",
    "AuroraForForecasting",
    "build_config_from_fields",
    "load_aurora_checkpoint",
]
