"""The statistics agree with scipy's, and the detectors find what is planted and nothing else."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from alexnet_edge.proof import stats


@pytest.mark.parametrize(("percentile", "count"), [(50, 11), (90, 64), (95, 130), (99, 662), (99.9, 6636)])
def test_required_samples_are_those_of_mlperf(percentile: float, count: int) -> None:
    assert stats.required_samples(percentile) == count
    below = scipy_stats.binom.cdf(1, [count - 1, count], 1 - percentile / 100)
    assert below[0] > 0.01 >= below[1]


@given(st.lists(st.integers(1, 10**9), min_size=64, max_size=400))
def test_percentile_is_the_nearest_rank(samples: list[int]) -> None:
    value = stats.percentile_of(samples, 90)
    assert value in samples
    assert value == np.percentile(samples, 90, method="inverted_cdf")
    assert np.mean(np.asarray(samples) <= value) >= 0.9


def test_percentile_needs_enough_samples() -> None:
    assert stats.percentile_of(range(661), 99) is None
    assert stats.percentile_of(range(1, 663), 99) == math.ceil(0.99 * 662)
    assert stats.percentile_of(range(1, 10_001), 99.9) == 9990
    assert stats.percentile_of([], 50) is None


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (10, 10), (1, 10), (319, 325), (325, 325), (0, 1), (500, 1000)])
def test_wilson_interval(hits: int, count: int) -> None:
    expected = scipy_stats.binomtest(hits, count).proportion_ci(0.95, method="wilson")
    assert stats.wilson_interval(hits, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(st.integers(0, 200), st.integers(0, 200))
def test_mcnemar(lost: int, won: int) -> None:
    expected = scipy_stats.binomtest(lost, lost + won, 0.5).pvalue if lost + won else 1.0
    assert stats.mcnemar_exact(lost, won) == pytest.approx(expected, rel=1e-9)


def test_coefficient_of_variation() -> None:
    samples = np.random.default_rng(1).gamma(9, size=500)
    assert stats.coefficient_of_variation(samples) == pytest.approx(scipy_stats.variation(samples, ddof=1))
    assert stats.coefficient_of_variation([3.0]) is None


def test_interval_of_the_median_covers_as_often_as_it_says() -> None:
    """200 experiments with independent samples: about 95 % of the intervals hold the true median."""
    rng = np.random.default_rng(2)
    true_median = scipy_stats.gamma(4).median()
    intervals = [
        stats.interval_of(stats.bootstrap_medians([rng.gamma(4, size=120)], resamples=300)) for _ in range(200)
    ]
    assert 180 <= sum(low <= true_median <= high for low, high in intervals) <= 199


def test_interval_of_the_median_is_as_wide_as_scipys_on_independent_samples() -> None:
    samples = np.random.default_rng(3).gamma(4, size=600)
    expected = scipy_stats.bootstrap(
        (samples,), np.median, method="percentile", n_resamples=1000, rng=np.random.default_rng(4)
    ).confidence_interval
    low, high = stats.interval_of(stats.bootstrap_medians([samples]))
    assert high - low == pytest.approx(expected.high - expected.low, rel=0.35)


def test_interval_widens_when_rounds_differ_or_neighbours_are_alike() -> None:
    rng = np.random.default_rng(5)

    def width(rounds: list[Any]) -> float:
        low, high = stats.interval_of(stats.bootstrap_medians(rounds))
        return high - low

    independent = [rng.normal(100, 1, 300) for _ in range(3)]
    shifted = [samples + step for samples, step in zip(independent, (0, 4, 8), strict=True)]
    assert width(shifted) > 5 * width(independent)
    alike = np.repeat(rng.normal(100, 1, 100), 6)
    assert width([alike]) > 1.5 * width([rng.permutation(alike)])


def test_ratio_pairs_the_rounds() -> None:
    """Both are slowed alike in the second round: the ratio and its interval do not notice."""
    rng = np.random.default_rng(10)
    rounds = [(rng.normal(200 * slow, 2, 200), rng.normal(100 * slow, 1, 200)) for slow in (1, 5, 1)]
    ratio, (low, high) = stats.bootstrap_ratios(rounds, resamples=300)
    assert ratio == pytest.approx(2, rel=0.01)
    assert 1.97 < low < ratio < high < 2.03


def test_interval_is_repeatable() -> None:
    samples = np.random.default_rng(6).gamma(4, size=100)
    assert (stats.bootstrap_medians([samples]) == stats.bootstrap_medians([samples])).all()


def test_drift() -> None:
    rng = np.random.default_rng(7)
    steady = rng.normal(100, 3, 600)
    assert abs(stats.drift(steady) or 1) < 0.01
    assert stats.drift(steady * np.linspace(1, 1.3, 600)) == pytest.approx(0.19, abs=0.03)
    assert stats.drift(steady[:11]) is None


@pytest.mark.parametrize("count", [64, 200, 662, 7000])
@pytest.mark.parametrize("shape", ["normal", "gamma", "exponential", "lognormal", "uniform", "constant", "ticks"])
def test_one_mode_is_not_taken_for_two(shape: str, count: int) -> None:
    rng = np.random.default_rng(8)
    draw = {
        "normal": lambda: rng.normal(100, 5, count),
        "gamma": lambda: 50 + rng.gamma(2, 5, count),
        "exponential": lambda: 50 + rng.exponential(10, count),
        "lognormal": lambda: np.exp(rng.normal(4, 0.3, count)),
        "uniform": lambda: rng.uniform(80, 120, count),
        "constant": lambda: np.full(count, 100.0),
        "ticks": lambda: rng.integers(100, 104, count).astype(float),
    }[shape]
    assert sum(stats.two_modes(draw()) is not None for _ in range(20)) <= 2


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("count", [200, 662, 7000])
def test_two_modes_are_found(count: int, share: float) -> None:
    rng = np.random.default_rng(9)
    split = int(count * share)
    samples = np.concatenate([rng.normal(100, 2, split), rng.normal(120, 3, count - split)])
    rng.shuffle(samples)
    modes = stats.two_modes(samples)
    assert modes is not None
    assert modes == (pytest.approx(100, abs=2), pytest.approx(120, abs=3))
