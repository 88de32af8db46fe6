"""Statistics of latency samples and of agreement counts, with numpy and the standard library only.

A device that runs an engine has no scipy; the tests compare every figure here with scipy's.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from functools import cache
from itertools import combinations
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

CONFIDENCE = 0.95
"""Of every interval in results and reports."""

RESAMPLES = 1000
"""Bootstrap resamples of every interval of a median."""


@cache
def required_samples(percentile: float) -> int:
    """The least number of samples that supports `percentile` (0 < percentile < 100).

    It is the least n for which, with 99 % confidence, the second largest of n samples lies above the percentile: the
    chance that at most one of n samples exceeds it is at most 1 %. 64, 130, 662 and 6,636 for p90, p95, p99 and p99.9,
    as in MLPerf's early stopping rule
    (https://github.com/mlcommons/inference_policies/blob/master/inference_rules.adoc, "early stopping").
    """
    assert 0 < percentile < 100, percentile
    below, enough = percentile / 100, 2
    while _chance_of_at_most_one_above(enough, below) > 0.01:
        enough *= 2
    return bisect_left(range(enough), -0.01, key=lambda count: -_chance_of_at_most_one_above(count, below))


def _chance_of_at_most_one_above(count: int, below: float) -> float:
    return float(below**count + count * (1 - below) * below ** (count - 1))


def percentile_of(samples: npt.ArrayLike, percentile: float) -> float | None:
    """Nearest-rank percentile: the smallest sample that at least `percentile` % of the samples do not exceed.

    It is always a value that was measured. None when there are fewer samples than `required_samples(percentile)`.
    """
    values = np.sort(np.asarray(samples, np.float64))
    if len(values) < required_samples(percentile):
        return None
    rank = math.ceil(round(percentile * len(values) / 100, 9))  # rounded: 99.9 * 1000 / 100 is 999.0000000000001
    return float(values[max(rank, 1) - 1])


def trtexec_percentile(samples: npt.ArrayLike, percentile: float) -> float:
    """The percentile by `trtexec`'s rule: of n sorted samples, without the int((1 - p/100) n) largest, the last.

    It is computed in single precision as there, so that p99 of 100 samples is the largest of them. It is given however few
    the samples are. Source: `findPercentile` in `samples/common/sampleReporting.cpp` of TensorRT 10.
    """
    values = np.sort(np.asarray(samples, np.float64))
    excluded = int((np.float32(1) - np.float32(percentile) / np.float32(100)) * np.float32(len(values)))
    return float(values[max(len(values) - 1 - excluded, 0)])


def coefficient_of_variation(samples: npt.ArrayLike) -> float | None:
    """Standard deviation over mean, 0.05 meaning 5 %; None with fewer than two samples."""
    values = np.asarray(samples, np.float64)
    if len(values) < 2:
        return None
    return float(values.std(ddof=1) / values.mean())


def wilson_interval(hits: int, count: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval of a proportion: it stays informative at 0 and at all hits, where p +- z*s collapses.

    Source: E. B. Wilson, "Probable inference", JASA 22 (1927).
    """
    assert 0 <= hits <= count, (hits, count)
    assert count > 0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = hits / count
    scale = 1 + z * z / count
    centre = (share + z * z / (2 * count)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    low = 0.0 if hits == 0 else max(0.0, centre - half)
    high = 1.0 if hits == count else min(1.0, centre + half)
    return low, high


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value that two classifiers are equally often right.

    `only_first` images are right by the first alone, `only_second` by the second alone; under the hypothesis each of
    them is a fair coin. Source: Q. McNemar, Psychometrika 12 (1947); the exact binomial form.
    """
    count = only_first + only_second
    fewer = min(only_first, only_second)
    tail = sum(math.comb(count, hits) for hits in range(fewer + 1))
    return min(1.0, float(2 * tail / 2**count)) if count else 1.0


def bootstrap_medians(rounds: Sequence[npt.ArrayLike], *, resamples: int = RESAMPLES) -> Array:
    """`resamples` medians of samples redrawn from `rounds`, for the interval of the median.

    Latency samples are neither independent (a busy moment slows neighbours) nor from one distribution (each round is a
    new process with its own memory layout). So rounds are redrawn first, then blocks of about n^(1/3) neighbouring
    samples inside each (Künsch's block bootstrap, wrapped around at the end).
    """
    rng = np.random.default_rng(0)  # the same samples always give the same interval
    arrays = [np.asarray(samples, np.float64) for samples in rounds if np.size(samples)]
    assert arrays, "a median needs samples"
    edges = _edges(arrays)
    redrawn = np.stack([_redraw_counts(samples, edges, rng, resamples) for samples in arrays])
    counts = np.zeros((resamples, len(edges)))
    for _ in arrays:
        # Which round, and which of its redrawn counts: two draws of one round in one resample are not to be the same.
        counts += redrawn[rng.integers(len(arrays), size=resamples), rng.integers(resamples, size=resamples)]
    return _medians_of_counts(counts, edges)


def bootstrap_ratios(
    pairs: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]], *, resamples: int = RESAMPLES
) -> tuple[float, tuple[float, float]]:
    """How many times larger the first samples' median is than the second's, and the interval of that.

    Each pair is one round, in which both were measured one after the other on the same machine in the same state; the
    ratio is the geometric mean of the rounds' ratios, so that a machine that slows down in one round slows both. Pairs are
    redrawn together, then blocks of samples inside each.
    """
    assert pairs, "a ratio needs a round"
    rng = np.random.default_rng(0)
    arrays = [(np.asarray(first, np.float64), np.asarray(second, np.float64)) for first, second in pairs]
    ratio = math.exp(np.mean([math.log(np.median(first) / np.median(second)) for first, second in arrays]))

    def medians(samples: Array) -> Array:
        edges = _edges([samples])
        return _medians_of_counts(_redraw_counts(samples, edges, rng, resamples), edges)

    logs = np.stack([np.log(medians(first) / medians(second)) for first, second in arrays])
    chosen = rng.integers(len(arrays), size=(len(arrays), resamples))
    drawn = np.exp(logs[chosen, rng.integers(resamples, size=chosen.shape)].mean(axis=0))
    return ratio, interval_of(drawn)


_BINS = 256
_MAX_STARTS = 2048


def _block(count: int) -> int:
    return max(1, round(math.pow(count, 1 / 3)))


def _edges(rounds: Sequence[Array]) -> Array:
    """Increasing values that samples are counted by, each up to and including its own.

    Every value there is; of many, those that a redrawn median can fall on, finely, and quantiles of the others.
    """
    pooled = np.concatenate(rounds)
    values = np.unique(pooled)
    if len(values) <= _BINS:
        return values
    # Five standard deviations of a median's rank, if blocks held but one value each.
    half = [min(0.5, 2.5 * math.sqrt(_block(len(samples)) / len(samples))) for samples in rounds]
    low = min(np.quantile(samples, 0.5 - reach) for samples, reach in zip(rounds, half, strict=True))
    high = max(np.quantile(samples, 0.5 + reach) for samples, reach in zip(rounds, half, strict=True))
    near = pooled[(pooled >= low) & (pooled <= high)]
    parts = [
        np.quantile(part, np.linspace(0, 1, bins), method="inverted_cdf")
        for part, bins in ((pooled, _BINS // 4), (near, 3 * _BINS // 4))
    ]
    return np.unique(np.concatenate(parts))


def _redraw_counts(samples: Array, edges: Array, rng: np.random.Generator, resamples: int) -> Array:
    """`(resamples, len(edges))`: how many samples of each redrawing are above the edge before and not above this one.

    Counting instead of copying: the counts of every block are made once, and a redrawing is the sum of those it draws. Of
    very many samples not every one begins a block, yet each is in one.
    """
    count = len(samples)
    block = _block(count)
    starts = np.arange(0, count, min(max(1, count // _MAX_STARTS), block))
    bins = np.searchsorted(edges, samples)
    positions = (starts[:, None] + np.arange(block)) % count
    cells = np.arange(len(starts))[:, None] * len(edges) + bins[positions]
    in_block = np.bincount(cells.ravel(), minlength=len(starts) * len(edges)).reshape(len(starts), len(edges))
    blocks = math.ceil(count / block)
    picks = rng.integers(len(starts), size=(resamples, blocks)) + np.arange(resamples)[:, None] * len(starts)
    times = np.bincount(picks.ravel(), minlength=resamples * len(starts)).reshape(resamples, len(starts))
    # Single precision is exact up to 2^24, more than a redrawing has samples in one bin; every round weighs alike.
    counts: Array = (times.astype(np.float32) @ in_block.astype(np.float32)).astype(np.float64)
    return counts


def _medians_of_counts(counts: Array, edges: Array) -> Array:
    """The median of each row of counts: half-way between the two middle samples, where these are not in one bin."""
    reached = counts.cumsum(axis=1)
    half = reached[:, -1:] / 2
    below = edges[(reached >= half).argmax(axis=1)]
    above = edges[(reached > half).argmax(axis=1)]
    medians: Array = (below + above) / 2
    return medians


def interval_of(values: Array, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The central `confidence` share of bootstrap values."""
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def drift(samples: npt.ArrayLike) -> float | None:
    """Relative change of the median from the first third of the samples to the last; None with fewer than 12."""
    values = np.asarray(samples, np.float64)
    if len(values) < 12:
        return None
    third = len(values) // 3
    return float(np.median(values[-third:]) / np.median(values[:third]) - 1)


def trend(medians: Sequence[float]) -> float | None:
    """Relative change from the first round's median to the last's where each goes further the same way, as a machine that
    heats up does; None with fewer than three rounds, or where they go up and down."""
    steps = np.diff(medians)
    if len(steps) < 2 or not ((steps > 0).all() or (steps < 0).all()):
        return None
    return float(medians[-1] / medians[0] - 1)


def two_modes(samples: npt.ArrayLike) -> tuple[float, float] | None:
    """The positions of two separate modes, or None when the samples look like one.

    The density is estimated with a Gaussian kernel between the 0.5 and 99.5 percentiles. Two peaks count as modes when
    they are at least 5 % apart, the density between them falls below half of the lower one, and at least a tenth of the
    samples lies on either side of the lowest point. Long right tails, usual for latencies, have no second peak.
    """
    values = np.asarray(samples, np.float64)
    if len(values) < 64:
        return None
    low, high = np.quantile(values, [0.005, 0.995])
    kept = values[(values >= low) & (values <= high)]
    quartiles = np.quantile(kept, [0.25, 0.75])
    spread = min(float(kept.std()), float(quartiles[1] - quartiles[0]) / 1.34)
    spread = spread or float(kept.std())  # more than half of the samples are the same number
    if spread == 0:
        return None
    bandwidth = max(0.9 * spread * len(kept) ** -0.2, 0.005 * float(np.median(kept)))
    grid = np.linspace(low - 3 * bandwidth, high + 3 * bandwidth, 512)
    counts, edges = np.histogram(kept, bins=512, range=(grid[0], grid[-1]))
    centres = (edges[:-1] + edges[1:]) / 2
    density = np.exp(-0.5 * ((grid[:, None] - centres) / bandwidth) ** 2) @ counts
    peaks = [i for i in range(1, 511) if density[i - 1] < density[i] >= density[i + 1]]
    best: tuple[float, float, float] | None = None
    for first, second in combinations(peaks, 2):
        valley = first + int(np.argmin(density[first : second + 1]))
        lower_peak = min(density[first], density[second])
        share_below = float((kept < grid[valley]).mean())
        deep = density[valley] < lower_peak / 2 and 0.1 <= share_below <= 0.9
        if deep and grid[second] >= 1.05 * grid[first] and (best is None or lower_peak > best[0]):
            best = (float(lower_peak), float(grid[first]), float(grid[second]))
    return None if best is None else (best[1], best[2])
