"""Means over seeds, and what the runs of two settings with the same seeds tell about their difference."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
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
    verdict: str
    """The first setting is "better", "worse", or "not told apart" from the second."""


def paired(
    first: pd.Series | Mapping[int, float], second: pd.Series | Mapping[int, float], higher_is_better: bool = True
) -> Paired | None:
    """Compares values by seed, over the seeds that both have; None where those are fewer than two."""
    both = pd.concat([pd.Series(values, dtype=float) for values in (first, second)], axis=1, join="inner").to_numpy()
    count = len(both)
    if count < 2:
        return None
    differences = both[:, 0] - both[:, 1]
    mean, deviation = float(differences.mean()), float(differences.std(ddof=1))
    if math.isclose(deviation, 0, abs_tol=1e-9):  # t is undefined; a difference that is the same for every seed is found
        low, high, p = mean, mean, float(math.isclose(mean, 0, abs_tol=1e-9))
    else:
        test = stats.ttest_1samp(differences, 0)
        (low, high), p = test.confidence_interval(1 - LEVEL), test.pvalue  # pyright: ignore[reportAttributeAccessIssue]
    verdict = "not told apart" if not p < LEVEL else "better" if (mean > 0) == higher_is_better else "worse"
    return Paired(count, mean, float(low), float(high), float(p), detectable_difference(deviation, count), verdict)


def p_of_equal_means(values: Float[np.ndarray, " n"], mean: float, deviation: float | None, count: int) -> float | None:
    """Of Welch's t test: our values against others that only their summary is known of; None where one has no deviation.

    Args:
      values: ours.
      mean: of the others.
      deviation: their sample standard deviation.
      count: how many they are.
    """
    if len(values) < 2 or deviation is None or np.std(values, ddof=1) == deviation == 0:
        return None
    ours = (float(np.mean(values)), float(np.std(values, ddof=1)), len(values))
    return float(stats.ttest_ind_from_stats(*ours, mean, deviation, count, equal_var=False).pvalue)


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
