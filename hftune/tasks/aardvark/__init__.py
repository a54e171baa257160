"""Aardvark: observations to an initial state, and the state to ten days, day by day.

Importing this package makes the models known to ``AutoConfig`` and ``AutoModel``.
"""

from .configuration_aardvark import (
    OFFICIAL_CHANNELS,
    AardvarkProcessorConfig,
    build_processor_config,
    published_config,
)
from .modeling_aardvark import AardvarkProcessor

__all__ = [
    "OFFICIAL_CHANNELS",
    "AardvarkProcessor",
    "AardvarkProcessorConfig",
    "build_processor_config",
    "published_config",
]
