"""Score against the number of training samples: a curve through the stages, and what to expect.

The form is that of most learning curves, ``score = c - a * samples ** -b``: ``c`` would be reached
with endless data. It is only nearly true, above all where a run carries its weights from stage to
stage and begins undertrained. A prediction is therefore no single curve continued, but the spread
of all that agree with the points (a Bayesian average over a grid of shapes, with a late start
allowed: ``c - a / (samples ** b + d ** b)``). No curve can foresee a rise of which the points do
not show the beginning.

Example:
    >>> points = [CurvePoint(n, score, replicates) for n, score, replicates in stages]
    >>> curve = fit_learning_curve(points, greater_is_better=True)
    >>> curve.predict(10_000)
    Prediction(value=0.861, low=0.832, high=0.884, level=0.95)
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..utils.errors import ConfigurationError

__all__ = ["CurvePoint", "LearningCurve", "Prediction", "expected_gain", "fit_learning_curve"]

_LEAST_POINTS = 3
_DRAWS = 4000  # curves that stand for all that agree with the points
_CELL_DRAWS = 32  # of level and rise, for each shape and size of noise
# What follows was chosen by coverage and width of what four stages (10 to 40 %) say of the full
# score, on simulated curves (of the form, undertrained at the start, sigmoid, with noise of
# training: 99 % inside) and on 60 measured ones of three text sets (55 inside; the other five had
# hardly begun to rise).
_EXPONENTS = np.geomspace(0.05, 4.0, 30)
_LATE_STARTS = np.append(0.0, np.geomspace(0.5, 16.0, 18))  # d, as a multiple of the first size
_NOISES = np.exp(np.linspace(-2.0, 3.5, 12))  # multiples of the scale that is expected
_NOISE_OF_RISE, _NOISE_OF_EVALUATION = 0.025, 0.5  # that scale
_FALLING = 0.1  # weight of curves on which more data make the score worse
_INTERVAL = (
    "the score that will be measured on the same evaluation examples: sampling of those examples, "
    "noise of training, points beside the curve, and the curves that agree with the points"
)


@dataclasses.dataclass(frozen=True, eq=False)
class CurvePoint:
    """What was measured at one size.

    Attributes:
        samples (int): Training samples.
        score (float): The metric.
        replicates (float array ``[replicates]``, *optional*): The metric on resampled evaluation
            examples. Best are pairs: replicate ``i`` of every point on the same resampled examples
            (the same seed and number of them), for then what all stages share does not count as
            noise: on a quarter of 60 measured curves the interval was narrower by a fifth or more,
            on half of them about the same. Points with different numbers of replicates are taken
            for unpaired.
    """

    samples: int
    score: float
    replicates: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A number that is not known yet.

    Attributes:
        value (float): Median.
        low, high (float): Ends of the interval.
        level (float): Probability that the number lies in the interval.
    """

    value: float
    low: float
    high: float
    level: float

    def as_dict(self) -> dict[str, float]:
        """Returns the attributes, ready for JSON."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, eq=False)
class LearningCurve:
    """Curves that agree with the points; made by :func:`fit_learning_curve`.

    Attributes:
        points (tuple of CurvePoint): What was fitted, by increasing size.
        a, b, c (float): Of ``c - a * samples ** -b`` (``c + a * samples ** -b`` where less is
            better) nearest to the points, weighted by their noise: a description. Predictions
            average over all curves that agree with the points.
        greater_is_better (bool): Of the metric.
        bounds (two float): Between which the metric can be.
        level (float): Of the intervals.
        draws (dict of float64 arrays ``[4000]``): Curves that agree with the points, the larger
            score as the better: shape (``exponent``, ``late_start``), ``level`` at the last point,
            ``rise`` from the first to the last, ``noise`` of a new point.
    """

    points: tuple[CurvePoint, ...]
    a: float
    b: float
    c: float
    greater_is_better: bool
    bounds: tuple[float, float]
    level: float
    draws: dict[str, np.ndarray]

    def predict(self, samples: int) -> Prediction:
        """Returns what will be measured with so many training samples.

        Args:
            samples (int): At least 1.

        Returns:
            The score, with an interval that holds, beside the curves that agree with the points,
            the noise of the new measurement itself: of its evaluation examples and its training.
        """
        sizes = np.array([self.points[0].samples, self.points[-1].samples, samples])
        draws = self.draws
        shape = _shapes(sizes / sizes[0], draws["exponent"], draws["late_start"])
        done = (shape[:, 1] - shape[:, 2]) / (shape[:, 0] - shape[:, 1])
        scores = draws["level"] + draws["rise"] * done + draws["noise"]
        if not self.greater_is_better:
            scores = -scores
        scores = scores.clip(*self.bounds)
        tail = (1 - self.level) / 2
        low, value, high = np.quantile(scores, [tail, 0.5, 1 - tail])
        return Prediction(float(value), float(low), float(high), self.level)

    def as_dict(self) -> dict[str, Any]:
        """Returns what was fitted and how, ready for JSON."""
        sign = "-" if self.greater_is_better else "+"
        return {
            "form": f"c {sign} a * samples ** -b",
            "a": self.a,
            "b": self.b,
            "c": self.c,
            "points": len(self.points),
            "samples": [point.samples for point in self.points],
            "scores": [point.score for point in self.points],
            "greater_is_better": self.greater_is_better,
            "level": self.level,
            "interval": _INTERVAL,
        }


def expected_gain(curve: LearningCurve, now: CurvePoint, samples: int) -> Prediction:
    """Returns how much better than ``now`` the score will be; negative is worse.

    Args:
        curve (LearningCurve): Best one to which ``now`` belongs.
        now (CurvePoint): Where the run is.
        samples (int): Training samples to come.
    """
    then = curve.predict(samples)
    ends = [end - now.score for end in (then.low, then.high)]
    value = then.value - now.score
    if not curve.greater_is_better:
        value, ends = -value, [-ends[1], -ends[0]]
    return Prediction(value, ends[0], ends[1], curve.level)


def fit_learning_curve(
    points: Sequence[CurvePoint],
    *,
    greater_is_better: bool,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    level: float = 0.95,
    seed: int = 0,
) -> LearningCurve | None:
    """Fits curves to what was measured.

    Args:
        points (sequence of CurvePoint): In any order. Those without replicates, or with a score
            that is not finite, are left out.
        greater_is_better (bool): Of the metric.
        bounds (two float, *optional*): Between which the metric can be: ``(0, 1)`` for accuracy,
            ``(0, math.inf)`` for a loss; None for no bounds. Defaults to ``(0, 1)``.
        level (float): Of the intervals. Defaults to 0.95.
        seed (int): Of the draws; the same points and seed give the same numbers.

    Returns:
        The curve, or None where fewer than three sizes were measured: through two points goes any.

    Raises:
        ConfigurationError: If a score lies outside the bounds.
    """
    used = [p for p in points if p.replicates is not None and _all_finite(p)]
    used.sort(key=lambda point: point.samples)
    if len({point.samples for point in used}) < _LEAST_POINTS:
        return None
    bounds = (-math.inf, math.inf) if bounds is None else (float(bounds[0]), float(bounds[1]))
    for point in used:
        if not bounds[0] <= point.score <= bounds[1]:
            raise ConfigurationError(
                f"the score with {point.samples:,} samples is {point.score:g}; expected one from "
                f"{bounds[0]:g} to {bounds[1]:g}: give the bounds of this metric"
            )
    sizes = np.array([float(point.samples) for point in used])
    scores = np.array([point.score for point in used])
    noise = _own_noise(used)
    # In draws the larger score is the better one.
    sign, ends = (1, bounds) if greater_is_better else (-1, (-bounds[1], -bounds[0]))
    # Points lie beside the curve for their training and because no form is true; both grow with
    # the rise. The last term is for scores that do not differ at all.
    scale = math.hypot(
        _NOISE_OF_RISE * np.ptp(scores),
        _NOISE_OF_EVALUATION * math.sqrt(np.mean(noise**2)),
        max(1e-3 * np.abs(scores).max(), 1e-12),
    )
    x = sizes / sizes[0]
    a, b, c = _power_law(x, sign * scores, 1 / (noise**2 + scale**2), ends)
    return LearningCurve(
        points=tuple(used),
        a=float(a * sizes[0] ** b),
        b=float(b),
        c=float(sign * c),
        greater_is_better=greater_is_better,
        bounds=bounds,
        level=level,
        draws=_draw(x, sign * scores, noise, scale, ends, seed),
    )


def _all_finite(point: CurvePoint) -> bool:
    return math.isfinite(point.score) and bool(np.isfinite(point.replicates).all())


def _own_noise(points: Sequence[CurvePoint]) -> np.ndarray:
    """Standard deviation of each score that it does not share with the others ``[points]``."""
    replicates = [np.asarray(point.replicates, np.float64) for point in points]
    deviations = np.array([values.std() for values in replicates])
    if len({len(values) for values in replicates}) > 1 or not deviations.all():
        return deviations
    together = np.corrcoef(replicates)
    shared = together[np.triu_indices(len(points), 1)].mean()
    return deviations * math.sqrt(1 - min(max(shared, 0.0), 0.98))


def _shapes(x: np.ndarray, exponents: np.ndarray, late_starts: np.ndarray) -> np.ndarray:
    """``1 / (x ** b + d ** b)`` ``[shapes, sizes]``: falls from size to size."""
    powers = exponents[:, None]
    return 1 / (x**powers + late_starts[:, None] ** powers)


def _power_law(
    x: np.ndarray, y: np.ndarray, weights: np.ndarray, ends: tuple[float, float]
) -> tuple[float, float, float]:
    """``a``, ``b`` (0.05 to 2) and ``c`` (inside ``ends``) of ``c - a * x ** -b``."""
    low, high = 0.05, 2.0
    for _ in range(6):  # each time about the best of 60 exponents
        exponents = np.geomspace(low, high, 60)
        powers = x ** -exponents[:, None]
        middle, height = powers @ weights / weights.sum(), y @ weights / weights.sum()
        apart = powers - middle[:, None]
        a = -(apart * (y - height)) @ weights / (apart**2 @ weights)
        c = height + a * middle
        bound = c.clip(*ends)
        a = np.where(c == bound, a, powers * (bound[:, None] - y) @ weights / (powers**2 @ weights))
        best = int(np.argmin((y - bound[:, None] + a[:, None] * powers) ** 2 @ weights))
        low, high = exponents[max(best - 1, 0)], exponents[min(best + 1, 59)]
    return a[best], exponents[best], bound[best]


def _draw(
    x: np.ndarray,
    y: np.ndarray,
    noise: np.ndarray,
    scale: float,
    ends: tuple[float, float],
    seed: int,
) -> dict[str, np.ndarray]:
    """Draws curves in proportion to how well they agree with the points.

    With shape and size of the noise given, level and rise are a linear model, whose posterior is
    normal; the grid is over the rest.
    """
    exponents = np.tile(_EXPONENTS, len(_LATE_STARTS))
    late_starts = np.repeat(_LATE_STARTS, len(_EXPONENTS))
    shapes = _shapes(x, exponents, late_starts)
    spans = shapes[:, 0] - shapes[:, -1]
    left = (shapes - shapes[:, -1:]) / spans[:, None]  # of the rise: 1 at the first point, 0 last
    design = np.stack([np.ones_like(left), -left], axis=-1)  # of level and rise
    noises = scale * _NOISES
    precision = 1 / (noise**2 + noises[:, None] ** 2)  # [noises, points]
    # Letters: shape b, noise s, point k, parameter i and j, draw m.
    information = np.einsum("bki,sk,bkj->bsij", design, precision, design)
    covariance = np.linalg.inv(information)
    mean = np.einsum("bsij,bkj,sk,k->bsi", covariance, design, precision, y)
    misfit = y - np.einsum("bki,bsi->bsk", design, mean)
    evidence = (
        0.5 * np.log(precision).sum(axis=-1)
        - 0.5 * np.linalg.slogdet(information)[1]
        - 0.5 * np.einsum("bsk,sk->bs", misfit**2, precision)
        + np.log(_NOISES / (1 + _NOISES**2))  # half-Cauchy: much larger noise remains possible
    )
    generator = np.random.default_rng(seed)
    half = generator.standard_normal((_CELL_DRAWS // 2, 2))
    normal = np.concatenate([half, -half])
    spread = np.einsum("bsij,mj->bsmi", np.linalg.cholesky(covariance), normal)
    level, rise = np.moveaxis(mean[:, :, None] + spread, -1, 0)
    asymptote = level + rise * (shapes[:, -1] / spans)[:, None, None]
    inside = (asymptote >= ends[0]) & (asymptote <= ends[1])
    weights = np.where(inside, evidence[..., None] + np.where(rise < 0, np.log(_FALLING), 0), -9e9)
    weights = np.exp(weights - weights.max()).ravel()
    cumulated = np.cumsum(weights) / weights.sum()
    chosen = np.searchsorted(cumulated, (np.arange(_DRAWS) + 0.5) / _DRAWS)
    shape, size, _ = np.unravel_index(chosen, rise.shape)
    quantile = statistics.NormalDist().inv_cdf
    normal = np.array([quantile((i + 0.5) / _DRAWS) for i in range(_DRAWS)])
    return {
        "exponent": exponents[shape],
        "late_start": late_starts[shape],
        "level": level.ravel()[chosen],
        "rise": rise.ravel()[chosen],
        "noise": np.hypot(noises[size], noise[-1]) * generator.permutation(normal),
    }
