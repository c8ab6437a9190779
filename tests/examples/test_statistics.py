"""Paired tests and what they can detect are what they are by hand, by SciPy and by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from examples.paper.report.statistics import detectable_difference, p_of_equal_means, paired

CAL = {43: 73.46, 37: 75.90, 13: 74.64, 51: 75.41}
TB = {43: 75.12, 37: 73.54, 13: 75.23, 51: 73.28}


def test_the_paired_test_is_a_t_test_of_the_differences():
    result = paired(TB, CAL)
    differences = np.array([TB[seed] - CAL[seed] for seed in CAL])  # 1.66, -2.36, 0.59, -2.13
    error = np.sqrt(((differences - differences.mean()) ** 2).sum() / 3 / 4)
    assert result.seeds == 4
    assert result.difference == pytest.approx(-0.56)
    assert result.p == pytest.approx(2 * stats.t.sf(0.56 / error, 3))
    # The quantile of Student's t with 3 degrees of freedom, from a table.
    assert (result.high - result.low) / 2 == pytest.approx(3.1824 * error, rel=1e-4)
    assert result.verdict == "not told apart"


def test_the_interval_is_scipys():
    result = paired(TB, CAL)
    expected = stats.ttest_rel(list(TB.values()), list(CAL.values())).confidence_interval()
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high))


def test_pairs_are_seeds_that_both_have_in_whatever_order():
    shuffled = {99: 1.0, **dict(reversed(TB.items()))}
    assert paired(shuffled, {**CAL, 100: 99.0}) == pytest.approx(paired(TB, CAL))


def test_fewer_than_two_common_seeds_make_no_test():
    assert paired({1: 70.0, 2: 71.0}, {2: 70.0, 3: 72.0}) is None
    assert paired({}, CAL) is None


def test_which_is_better_follows_the_sign():
    higher = {seed: value + 1 + 0.01 * seed / 50 for seed, value in CAL.items()}
    assert paired(higher, CAL).verdict == "better"
    assert paired(CAL, higher).verdict == "worse"


def test_differences_that_never_vary():
    same, higher = paired(CAL, CAL), paired({seed: value + 1 for seed, value in CAL.items()}, CAL)
    assert (same.p, same.verdict) == (1, "not told apart")
    assert (higher.p, higher.verdict, higher.low, higher.detectable) == (0, "better", pytest.approx(1), 0)


def test_a_published_mean_is_told_apart_only_where_both_have_a_deviation():
    ours = np.array(list(TB.values()))
    assert p_of_equal_means(ours, float(ours.mean()), 1.0, 5) == pytest.approx(1)
    for values, deviation in ((ours, None), (ours[:1], 1.0), (np.ones(3), 0.0)):
        assert p_of_equal_means(values, 74.85, deviation, 4) is None


def test_34_pairs_find_half_a_deviation_and_33_do_not():
    """The usual example of tables of power: d = 0.5, two-sided 5%, power 80%."""
    assert detectable_difference(2.0, 34) <= 1.0 < detectable_difference(2.0, 33)


@pytest.mark.parametrize("count", [2, 3, 5, 20])
def test_the_detectable_difference_is_found_four_times_of_five(count):
    deviation, runs = 1.7, 20_000
    mean = detectable_difference(deviation, count)
    samples = np.random.default_rng(count).normal(mean, deviation, (runs, count))
    statistics = samples.mean(1) / (samples.std(1, ddof=1) / math.sqrt(count))
    found = (statistics > stats.t.ppf(0.975, count - 1)).mean()
    assert found == pytest.approx(0.8, abs=4 * math.sqrt(0.8 * 0.2 / runs))
