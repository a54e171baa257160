"""Pictures as small as a word, for the cells of a report's tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["spark_bars", "spark_line"]

_WIDTH, _HEIGHT = 112, 22


def spark_bars(counts: Sequence[float]) -> str:
    """Returns the SVG of a histogram.

    Args:
        counts (sequence of float): One value a bin, not negative.
    """
    top = max(counts, default=0) or 1
    step = _WIDTH / max(len(counts), 1)
    bars = "".join(
        f'<rect x="{i * step:.1f}" y="{_HEIGHT * (1 - count / top):.1f}" '
        f'width="{max(step - 0.5, 0.5):.1f}" height="{_HEIGHT * count / top:.1f}"/>'
        for i, count in enumerate(counts)
        if count > 0
    )
    return _svg(f'<g fill="var(--c0)" opacity=".75">{bars}</g>')


def spark_line(values: Sequence[float | None]) -> str:
    """Returns the SVG of a curve; what is not finite leaves a gap.

    Args:
        values (sequence of float or None): Evenly spaced.
    """
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return ""
    low, span = min(known), (max(known) - min(known)) or 1
    step = (_WIDTH - 2) / max(len(values) - 1, 1)
    path, pen = [], "M"
    for i, value in enumerate(values):
        if value is None or not math.isfinite(value):
            pen = "M"
            continue
        y = 2 + (_HEIGHT - 4) * (1 - (value - low) / span)
        path.append(f"{pen}{1 + i * step:.1f} {y:.1f}")
        pen = "L"
    return _svg(
        f'<path d="{"".join(path)}" fill="none" stroke="var(--c0)" stroke-width="1.2" '
        'stroke-linejoin="round"/>'
    )


def _svg(content: str) -> str:
    return (
        f'<svg class="spark" width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'aria-hidden="true">{content}</svg>'
    )
