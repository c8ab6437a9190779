"""Means over seeds, and what the runs of two settings with the same seeds tell about their difference."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

LEVEL = 0.05
POWER = 0.8


class Paired(NamedTuple):
    """A paired t test: of the differences, seed by seed, between two settings."""

    seeds: int
    """How many both have."""
    difference: float
    """Its mean: above zero where the first setting's values are larger."""
    low: float
    """Of the 95% confidence interval."""
    high: float
    p: float
    detectable: float
    """The smallest true difference that so many seeds find with 80% power, if differences scatter as these do."""
    higher_is_better: bool = True

    @property
    def verdict(self) -> str:
        """The first setting is "better", "worse", or "not told apart" from the second."""
        if not self.p < LEVEL:
            return "not told apart"
        return "better" if (self.difference > 0) == self.higher_is_better else "worse"


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and the sample standard deviation, which one value does not have."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def common_seeds(first: Mapping[int, object], second: Mapping[int, object]) -> list[int]:
    return [seed for seed in first if seed in second]


def paired(first: Mapping[int, float], second: Mapping[int, float], higher_is_better: bool = True) -> Paired | None:
    """Compares values by seed, over the seeds that both have; None where those are fewer than two."""
    seeds = common_seeds(first, second)
    if len(seeds) < 2:
        return None
    differences = [first[seed] - second[seed] for seed in seeds]
    mean, deviation = float(np.mean(differences)), float(np.std(differences, ddof=1))
    if math.isclose(deviation, 0, abs_tol=1e-9):  # t is none; a difference that never varies is told apart
        return Paired(len(seeds), mean, mean, mean, float(math.isclose(mean, 0, abs_tol=1e-9)), 0.0, higher_is_better)
    p = float(stats.ttest_rel([first[seed] for seed in seeds], [second[seed] for seed in seeds]).pvalue)  # pyright: ignore[reportAttributeAccessIssue]
    half = float(stats.t.ppf(1 - LEVEL / 2, len(seeds) - 1)) * deviation / math.sqrt(len(seeds))
    detectable = detectable_difference(deviation, len(seeds))
    return Paired(len(seeds), mean, mean - half, mean + half, p, detectable, higher_is_better)


def p_of_equal_means(values: Sequence[float], mean: float, deviation: float | None, count: int) -> float | None:
    """Of Welch's t test: our values against others that only their summary is known of; None where one has no deviation.

    Args:
      values: ours.
      mean: of the others.
      deviation: their sample standard deviation.
      count: how many they are.
    """
    own_mean, own_deviation = mean_and_deviation(values)
    if own_deviation is None or deviation is None or own_deviation == deviation == 0:
        return None
    summary = (own_mean, own_deviation, len(values), mean, deviation, count)
    return float(stats.ttest_ind_from_stats(*summary, equal_var=False).pvalue)


def detectable_difference(deviation: float, count: int, level: float = LEVEL) -> float:
    """The smallest true mean of `count` differences that a two-sided t test finds at a level with 80% power.

    Args:
      deviation: the standard deviation of the differences.
      count: how many there are, at least 2.
      level: the probability of a finding where there is no difference.
    """
    degrees = count - 1
    critical = float(stats.t.ppf(1 - level / 2, degrees))

    # Findings of the wrong sign are none. At 3 times the critical value the power is above 99%.
    lacking = lambda shift: POWER - float(stats.nct.sf(critical, degrees, shift))
    shift = optimize.brentq(lacking, 0.0, 3 * critical)
    return float(shift) * deviation / math.sqrt(count)  # pyright: ignore[reportArgumentType]
