"""The one pass over the fields that the audit draws its findings from."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np

from hftune.utils.terminal import progress

from .dates import interval_seconds
from .fields import WeatherFields, split_channel
from .statistics import RunningMoments
from .variables import VARIABLES

__all__ = ["Place", "Scan", "may_rest", "outlier_scale", "scan_fields", "spikes"]

_BLOCK_BYTES = 16 << 20
_SAMPLE_BYTES = 64 << 20
_SAMPLE_ROWS = 300
_FROZEN_STEPS = 24
_POINT_SCORE = 20.0
_BINS = 24


@dataclasses.dataclass(frozen=True)
class Place:
    """One value in the fields: row among those audited, indices of latitude and longitude."""

    row: int
    latitude: int
    longitude: int
    value: float


@dataclasses.dataclass(eq=False)
class Scan:
    """What the pass found, for ``N`` audited times and ``C`` channels.

    Values that are not finite or beyond what is physically possible, and fields of one value, are
    counted and left out of everything else.

    Attributes:
        fields (WeatherFields): What was read.
        rows (int64 array ``[N]``): Its rows.
        times (int64 array ``[N]``): Their times.
        sample (float32 array ``[n, C, H, W]``): A few times, evenly spread.
        sample_rows (int64 array ``[n]``): Which of the ``N``.
        moments (RunningMoments): Mean, spread, extremes.
        row_mean, row_std (float32 arrays ``[N, C]``): Of every field; NaN where nothing is left.
        missing (int32 array ``[N, C]``): Number of NaN.
        zeros, flat, same (bool arrays ``[N, C]``): Fields of nothing but zeros, of one other value,
            and equal to the one before.
        infinite, low, high (int64 arrays ``[C]``): Number of infinities and of values below and
            above what is possible.
        places (dict): First infinity, lowest, highest ... by ``(what, channel index)``.
        missing_points (dict): By channel index, at how many times a point is missing, ``[H, W]``.
        outliers (dict): By channel index, how many lone values stick out, and the worst of them
            with its score.
        frozen (dict): By channel index, how many points keep one value for a day of steps or more,
            the longest time of one of them in steps, and where it ends.
        hourly (dict): By channel index, sums and counts by hour of the day and longitude,
            ``[2, 24, W]``.
    """

    fields: WeatherFields
    rows: np.ndarray
    times: np.ndarray
    sample: np.ndarray
    sample_rows: np.ndarray
    moments: RunningMoments
    row_mean: np.ndarray
    row_std: np.ndarray
    missing: np.ndarray
    zeros: np.ndarray
    flat: np.ndarray
    same: np.ndarray
    infinite: np.ndarray
    low: np.ndarray
    high: np.ndarray
    places: dict[tuple[str, int], Place] = dataclasses.field(default_factory=dict)
    missing_points: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)
    outliers: dict[int, tuple[int, float, Place]] = dataclasses.field(default_factory=dict)
    frozen: dict[int, tuple[int, int, Place]] = dataclasses.field(default_factory=dict)
    hourly: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)

    def histogram(self, channel: int) -> tuple[np.ndarray, np.ndarray]:
        """Counts ``[24]`` and edges ``[25]`` of the sample's finite values of a channel."""
        values = self.sample[:, channel]
        values = values[np.isfinite(values)]
        return np.histogram(values, bins=_BINS)


def may_rest(variable: str) -> bool:
    """Whether a variable may be zero or unchanged over a whole region: rain, sunshine, ice."""
    known = VARIABLES.get(variable)
    return known is None or known.minimum == 0 or variable in ("sst", "ci")


def spikes(before: np.ndarray, here: np.ndarray, after: np.ndarray) -> np.ndarray:
    """How far values stick out of both neighbours in time; 0 where they lie between them."""
    first, second = here - before, here - after
    smaller = np.where(np.abs(first) < np.abs(second), first, second)
    return np.where(first * second > 0, smaller, 0)


def outlier_scale(values: np.ndarray) -> float:
    """A spread of ``values`` that a few outliers do not change; it minds heavy tails."""
    values = np.abs(values[np.isfinite(values)])
    if not values.size:
        return 0.0
    return float(np.percentile(values, 99)) / 2.576


def _lone(spike: np.ndarray) -> np.ndarray:
    """Spikes ``[..., H, W]`` less the mean of the four neighbours in space."""
    around = np.pad(spike, [(0, 0)] * (spike.ndim - 2) + [(1, 1), (1, 1)], mode="edge")
    mean = around[..., :-2, 1:-1] + around[..., 2:, 1:-1]
    mean = mean + around[..., 1:-1, :-2] + around[..., 1:-1, 2:]
    return spike - mean / 4


def _limits(channels: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest possible values ``[C]``."""
    known = [VARIABLES.get(split_channel(channel)[0]) for channel in channels]
    low = [-np.inf if info is None else info.minimum for info in known]
    high = [np.inf if info is None else info.maximum for info in known]
    # No weather variable is larger than 1e15, but many a fill value is.
    return np.maximum(low, -1e15), np.minimum(high, 1e15)


def scan_fields(fields: WeatherFields, rows: np.ndarray) -> Scan:
    """Reads the fields once, in blocks.

    Args:
        fields (WeatherFields): The fields.
        rows (int64 array ``[N]``): Which of its times.
    """
    count, channels = len(rows), len(fields.layout.channels)
    height, width = fields.layout.grid
    row_bytes = 4 * channels * height * width
    picked = max(1, min(_SAMPLE_ROWS, count, _SAMPLE_BYTES // row_bytes))
    sample_rows = np.unique(np.linspace(0, count - 1, picked).round().astype(np.int64))
    scan = Scan(
        fields=fields,
        rows=rows,
        times=np.asarray(fields.times)[rows],
        sample=fields.read(rows[sample_rows]),
        sample_rows=sample_rows,
        moments=RunningMoments(channels),
        row_mean=np.full((count, channels), np.nan, np.float32),
        row_std=np.full((count, channels), np.nan, np.float32),
        missing=np.zeros((count, channels), np.int32),
        zeros=np.zeros((count, channels), bool),
        flat=np.zeros((count, channels), bool),
        same=np.zeros((count, channels), bool),
        infinite=np.zeros(channels, np.int64),
        low=np.zeros(channels, np.int64),
        high=np.zeros(channels, np.int64),
    )
    block = max(4, _BLOCK_BYTES // row_bytes)
    _Pass(scan).run(block)
    return scan


class _Pass:
    """The state of the pass that is not its result."""

    def __init__(self, scan: Scan) -> None:
        self.scan = scan
        layout = scan.fields.layout
        self.names = [split_channel(channel)[0] for channel in layout.channels]
        self.rests = np.array([may_rest(name) for name in self.names])
        self.low, self.high = _limits(layout.channels)
        # A channel whose values are mostly impossible has the wrong units: it is kept whole.
        shaped = (slice(None), None, None)
        with np.errstate(invalid="ignore"):
            beyond = (scan.sample < self.low[shaped]) | (scan.sample > self.high[shaped])
        self.keep_all = beyond.mean((0, 2, 3)) > 0.25
        scan.sample = self.masked(scan.sample)
        self.step = interval_seconds(scan.times)
        self.scales = self._scales()
        self.run_length = np.zeros(scan.sample.shape[1:], np.int16)
        self.daily = [
            i
            for i, channel in enumerate(layout.channels)
            if channel == "2t" and 0 < self.step <= 6 * 3600 and len(scan.times) > 24
        ]

    def _scales(self) -> np.ndarray:
        """Usual size ``[2, 2, C]`` of spikes and of lone spikes; from both sides, from one."""
        scan = self.scan
        inner = scan.sample_rows[(scan.sample_rows > 0) & (scan.sample_rows < len(scan.rows) - 1)]
        inner = inner[np.linspace(0, len(inner) - 1, min(len(inner), 100)).astype(int)]
        channels = scan.sample.shape[1]
        if not len(inner):
            return np.zeros((2, 2, channels))
        before, here, after = (
            self.masked(scan.fields.read(scan.rows[inner + d])) for d in (-1, 0, 1)
        )
        # Short steps make smooth series with hardly a spike: nobody minds small ones.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a channel without values
            least = 0.02 * np.nanstd(here, axis=(0, 2, 3))
        both, one = spikes(before, here, after), here - before
        return np.array(
            [
                [
                    np.fmax(least, [outlier_scale(values[:, c]) for c in range(channels)])
                    for values in (spike, _lone(spike))
                ]
                for spike in (both, one)
            ]
        )

    def masked(self, values: np.ndarray) -> np.ndarray:
        """A copy with NaN for what is not finite, impossible, or a field of one value."""
        shaped = (slice(None), None, None)
        with np.errstate(invalid="ignore"):
            good = np.isfinite(values)
            possible = (values >= self.low[shaped]) & (values <= self.high[shaped])
        good &= possible | self.keep_all[shaped]
        if values[0, 0].size > 1:
            one = (values == values[:, :, :1, :1]).all((2, 3)) & ~self.rests
            good &= ~one[:, :, None, None]
        return np.where(good, values, np.float32(np.nan))

    def run(self, block: int) -> None:
        count = len(self.scan.rows)
        previous = None
        with progress(count, "Auditing fields", "times") as bar:
            for start in range(0, count, block):
                stop = min(start + block, count)
                first, last = max(start - 1, 0), min(stop + 1, count)
                values = self.scan.fields.read(self.scan.rows[first:last])
                inside = values[start - first : stop - first]
                self._count(inside, start)
                clean = self.masked(values)
                inside = clean[start - first : stop - first]
                self._repeats(inside, previous, start)
                previous = inside[-1].copy()
                self._sums(inside, start)
                self._outliers(clean, first, start, stop)
                bar.update(stop - start)

    def _place(self, what: str, channel: int, values: np.ndarray, start: int, index: int) -> None:
        row, y, x = np.unravel_index(index, values.shape)
        place = Place(start + int(row), int(y), int(x), float(values[row, y, x]))
        known = self.scan.places.get((what, channel))
        if (
            known is None
            or (what == "low" and place.value < known.value)
            or (what == "high" and place.value > known.value)
        ):
            self.scan.places[what, channel] = place

    def _count(self, values: np.ndarray, start: int) -> None:
        scan, rows = self.scan, slice(start, start + len(values))
        missing = np.isnan(values)
        scan.missing[rows] = missing.sum((2, 3))
        infinite = np.isinf(values)
        counts = infinite.sum((0, 2, 3))
        scan.infinite += counts
        for c in np.flatnonzero(counts):
            self._place("infinite", c, values[:, c], start, int(infinite[:, c].argmax()))
        for c in np.flatnonzero(scan.missing[rows].any(0)):
            self._place("missing", c, values[:, c], start, int(missing[:, c].argmax()))
            known = scan.missing_points.setdefault(c, np.zeros(values.shape[2:], np.int32))
            known += missing[:, c].sum(0, dtype=np.int32)
        lowest, highest = values.min((2, 3)), values.max((2, 3))  # NaN where any is missing
        one = (lowest == highest) & (values[0, 0].size > 1)
        scan.zeros[rows] = one & (lowest == 0)
        scan.flat[rows] = one & (lowest != 0) & (lowest >= self.low) & (lowest <= self.high)
        beyond = (values < self.low[:, None, None]) & ~infinite, "low", scan.low
        above = (values > self.high[:, None, None]) & ~infinite, "high", scan.high
        for outside, what, total in (beyond, above):
            outside &= ~(scan.zeros[rows] & ~self.rests)[:, :, None, None]  # counted already
            counts = outside.sum((0, 2, 3))
            total += counts
            for c in np.flatnonzero(counts):
                if what == "low":
                    index = np.where(outside[:, c], values[:, c], np.inf).argmin()
                else:
                    index = np.where(outside[:, c], values[:, c], -np.inf).argmax()
                self._place(what, c, values[:, c], start, int(index))

    def _repeats(self, values: np.ndarray, previous: np.ndarray | None, start: int) -> None:
        for offset, here in enumerate(values):
            if previous is not None:
                equal = here == previous
                self.scan.same[start + offset] = equal.all((1, 2))
                equal &= (here != 0) & ~self.rests[:, None, None]
                np.add(self.run_length, 1, out=self.run_length, where=self.run_length < 32767)
                self.run_length *= equal
                if self.run_length.max() >= _FROZEN_STEPS - 1:
                    self._frozen(here, start + offset)
            previous = here

    def _frozen(self, here: np.ndarray, row: int) -> None:
        for c in np.flatnonzero(self.run_length.max((1, 2)) >= _FROZEN_STEPS - 1):
            new = int((self.run_length[c] == _FROZEN_STEPS - 1).sum())
            count, longest, place = self.scan.frozen.get(c, (0, 0, None))
            steps = int(self.run_length[c].max()) + 1
            if place is None or steps > longest:
                y, x = np.unravel_index(self.run_length[c].argmax(), here.shape[1:])
                longest, place = steps, Place(row, int(y), int(x), float(here[c, y, x]))
            self.scan.frozen[c] = count + new, longest, place

    def _sums(self, clean: np.ndarray, start: int) -> None:
        scan = self.scan
        scan.moments.update(clean)
        number = (~np.isnan(clean)).sum((2, 3))
        total = np.nansum(clean, axis=(2, 3), dtype=np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = total / number
            apart = clean - mean[:, :, None, None].astype(np.float32)
            square = np.nansum(np.square(apart, dtype=np.float64), axis=(2, 3)) / number
        rows = slice(start, start + len(clean))
        scan.row_mean[rows], scan.row_std[rows] = mean, np.sqrt(square)
        for c in self.daily:
            hours = (scan.times[rows] % 86400) // 3600
            sums = scan.hourly.setdefault(c, np.zeros((2, 24, clean.shape[3])))
            np.add.at(sums[0], hours, np.nansum(clean[:, c], axis=1, dtype=np.float64))
            np.add.at(sums[1], hours, (~np.isnan(clean[:, c])).sum(1))

    def _outliers(self, clean: np.ndarray, first: int, start: int, stop: int) -> None:
        """Lone spikes at the rows ``start:stop``; ``clean`` begins at row ``first``."""
        scan = self.scan
        inner = np.arange(start, stop)
        times = scan.times
        before, after = np.maximum(inner - 1, 0), np.minimum(inner + 1, len(times) - 1)
        gap_before = (inner == 0) | (times[inner] - times[before] != self.step)
        gap_after = (inner == len(times) - 1) | (times[after] - times[inner] != self.step)
        # Beside a gap the neighbour on the other side has to do for both.
        before, after = np.where(gap_before, after, before), np.where(gap_after, before, after)
        usable = ~(gap_before & gap_after)
        sides = (gap_before | gap_after)[usable].astype(int)
        inner, before, after = (a[usable] - first for a in (inner, before, after))
        for c in np.flatnonzero(self.scales.all((0, 1)) & ~self.rests):
            values = clean[:, c]
            spike = spikes(values[before], values[inner], values[after])
            scale, lone_scale = self.scales[sides, 0, c], self.scales[sides, 1, c]
            high = np.abs(spike) > _POINT_SCORE * scale[:, None, None]
            if not high.any():
                continue
            for row in np.flatnonzero(high.any((1, 2))):
                lone = np.abs(_lone(spike[row])) / lone_scale[row]
                score = np.where(high[row], np.minimum(lone, np.abs(spike[row]) / scale[row]), 0)
                found = int((score > _POINT_SCORE).sum())
                if not found:
                    continue
                y, x = np.unravel_index(score.argmax(), score.shape)
                place = Place(
                    int(inner[row]) + first, int(y), int(x), float(values[inner[row], y, x])
                )
                known = scan.outliers.get(c, (0, 0.0, place))
                worst = max((known[1:], (float(score.max()), place)), key=lambda pair: pair[0])
                scan.outliers[c] = known[0] + found, *worst
