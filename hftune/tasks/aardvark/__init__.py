"""Aardvark: observations to an initial state, and the state to ten days, day by day.

Importing this package makes the models known to ``AutoConfig`` and ``AutoModel``.
"""

from .configuration_aardvark import (
    OFFICIAL_CHANNELS,
    AardvarkProcessorConfig,
    build_processor_config,
    published_config,
)
from .configuration_aardvark_encoder import AardvarkEncoderConfig, Modality
from .convert_aardvark import load_encoder, load_processor
from .encoder_presets import build_encoder_config, published_encoder_config
from .modeling_aardvark import AardvarkProcessor
from .modeling_aardvark_encoder import AardvarkEncoder

__all__ = [
    "OFFICIAL_CHANNELS",
    "AardvarkEncoder",
    "AardvarkEncoderConfig",
    "AardvarkProcessor",
    "AardvarkProcessorConfig",
    "Modality",
    "build_encoder_config",
    "build_processor_config",
    "load_encoder",
    "load_processor",
    "published_config",
    "published_encoder_config",
]
