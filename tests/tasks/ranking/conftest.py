"""Fixtures of the ranking tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_ranking import write_images


@pytest.fixture(scope="session")
def tiered_images(tmp_path_factory) -> Path:
    """``metadata.csv`` of 20 images of the tiers S, A, B and C, in ``images/`` beside it: the
    brighter the better. Read only.
    """
    return write_images(tmp_path_factory.mktemp("tiered"))
