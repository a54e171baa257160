"""Random numbers that depend on what they are for, not on when they are drawn."""

from __future__ import annotations

import hashlib
import random

__all__ = ["derive_seed", "seed_everything"]


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Derives a seed for one purpose: the same arguments give the same number everywhere.

    Augmentation that draws from ``derive_seed(seed, "crop", epoch, index)`` is the same after a
    resume, in any worker and on any rank.

    Args:
        seed (int): The run's seed.
        *purpose (str or int): What the numbers are for.

    Returns:
        An integer in [0, 2**63), of all whose bits depend on all arguments.
    """
    text = repr((int(seed), *purpose)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def seed_everything(seed: int) -> None:
    """Seeds ``random``, numpy and torch (all devices).

    Args:
        seed (int): In [0, 2**32), which is what numpy takes.
    """
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
