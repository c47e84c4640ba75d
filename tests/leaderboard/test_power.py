"""How many seeds it takes: against statsmodels, and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate, stats
from statsmodels.stats.power import TTestPower

from kdbench.leaderboard import power as p


def by_integration(effect: float, n: int, alpha: float) -> float:
    """The power by its definition: the normal mean beyond the critical value, averaged over the sample deviation."""
    critical = stats.t.ppf(1 - alpha / 2, n - 1)

    def inner(spread: float) -> float:
        shift, bound = effect * np.sqrt(n), critical * spread
        beyond = stats.norm.sf(bound - shift) + stats.norm.cdf(-bound - shift)
        return float(beyond * stats.chi.pdf(spread, n - 1, scale=1 / np.sqrt(n - 1)))

    around = 12 / np.sqrt(2 * (n - 1))
    turns = [(effect * np.sqrt(n) + z) / critical for z in (-3, 0, 3)]
    low, high = max(0.0, 1 - around), 1 + around
    return integrate.quad(inner, low, high, limit=500, points=[x for x in turns if low < x < high] or None)[0]


@pytest.mark.parametrize("effect", [0.1, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("n", [2, 3, 5, 30, 400])
@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_power_is_that_of_statsmodels(effect: float, n: int, alpha: float) -> None:
    ours = p.power_of_paired_t(effect, n, alpha)
    theirs = TTestPower().power(effect, n, alpha)
    if np.isfinite(theirs):  # it has no number where its lower tail underflows
        assert ours == pytest.approx(theirs, abs=1e-6)
    assert ours == pytest.approx(by_integration(effect, n, alpha), abs=1e-6)
    assert p.power_of_paired_t(-effect, n, alpha) == ours


@pytest.mark.parametrize("alpha", [0.05, 1e-6])
def test_power_is_a_probability_that_grows_with_seeds_and_effect(alpha: float) -> None:
    effects, counts = [1e-6, 0.01, 0.1, 0.7, 3.0, 30.0, 1e3, 1e9], [2, 3, 5, 9, 40, 300, 3000, 10_000]
    grid = np.array([[p.power_of_paired_t(effect, n, alpha) for n in counts] for effect in effects])
    assert np.isfinite(grid).all()
    assert (grid >= alpha - 1e-7).all()
    assert (grid <= 1 + 1e-7).all()
    assert (np.diff(grid, axis=0) >= -1e-7).all()
    assert (np.diff(grid, axis=1) >= -1e-7).all()


def differences(effect: float, n: int = 5) -> np.ndarray:
    """(n,) differences of exactly this mean and the sample deviation 1."""
    noise = np.random.default_rng(0).standard_normal(n)
    return effect + (noise - noise.mean()) / noise.std(ddof=1)


@pytest.mark.parametrize("effect", [0.05, 0.1, 0.3, 0.8, 1.5, 3.0])
@pytest.mark.parametrize("power", [0.5, 0.8, 0.95])
def test_the_number_of_seeds_is_the_smallest_with_the_power(effect: float, power: float) -> None:
    n = p.seeds_to_separate(differences(effect), power=power)
    assert n is not None
    assert TTestPower().power(effect, n, 0.05) >= power
    assert n == 2 or TTestPower().power(effect, n - 1, 0.05) < power
    exact = TTestPower().solve_power(effect, alpha=0.05, power=power) if n > 3 else n
    assert n == np.ceil(exact)


def test_so_many_seeds_find_the_difference_as_often_as_asked() -> None:
    n = p.seeds_to_separate(differences(1.0))
    assert n == 10
    draws = np.random.default_rng(1).normal(1.0, 1.0, (4000, n))
    t = draws.mean(axis=1) / draws.std(axis=1, ddof=1) * np.sqrt(n)
    assert (np.abs(t) > 2.262).mean() == pytest.approx(p.power_of_paired_t(1.0, n), abs=0.03)


def test_a_difference_has_no_sign_no_unit_and_no_missing_seeds() -> None:
    given = differences(0.7)
    n = p.seeds_to_separate(given)
    assert p.seeds_to_separate(-1e-3 * given) == n
    assert p.seeds_to_separate(np.append(1e4 * given, [np.nan, np.inf])) == n


def test_a_stricter_level_a_higher_power_and_a_coarser_metric_take_more_seeds() -> None:
    given = differences(0.7)
    n = p.seeds_to_separate(given)
    assert n is not None
    for more in (
        p.seeds_to_separate(given, alpha=0.001),
        p.seeds_to_separate(given, power=0.99),
        p.seeds_to_separate(given, resolution=2.0),
    ):
        assert more is not None
        assert more > n
    assert p.seeds_to_separate(given, resolution=0.5) == n, "a spread that is seen counts as it is"


def test_there_is_no_number_for_no_difference() -> None:
    assert p.seeds_to_separate(np.array([-1.0, 1.0, 0.0])) is None
    assert p.seeds_to_separate(np.zeros(5)) is None
    assert p.seeds_to_separate(np.full(4, (0.1 + 0.2) - 0.3)) is None, "a difference of rounding"
    assert p.seeds_to_separate(np.array([0.5])) is None
    assert p.seeds_to_separate(np.array([0.5, np.nan])) is None
    assert p.seeds_to_separate(differences(0.02)) is None, "more than 10,000 seeds"
    assert p.seeds_to_separate(differences(0.02), at_most=100_000) == np.ceil(
        TTestPower().solve_power(0.02, alpha=0.05, power=0.8)
    )


def test_equal_differences_take_as_many_seeds_as_every_test() -> None:
    assert p.seeds_to_separate(np.full(5, 0.1)) == 3
    assert p.seeds_to_separate(np.full(5, 0.1), resolution=0.1) == p.seeds_to_separate(differences(1.0))


@pytest.mark.parametrize("wrong", [{"alpha": 0.0}, {"alpha": 1.0}, {"power": 1.0}, {"power": -0.1}])
def test_levels_outside_of_0_to_1_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        p.seeds_to_separate(differences(1.0), **wrong)  # type: ignore[arg-type]


def test_looking_twice_errs_as_often_as_the_documents_say():
    draws = np.random.default_rng(0).standard_normal((400_000, 10))
    first, second = (stats.ttest_1samp(draws[:, :n], 0, axis=1).pvalue < 0.05 for n in (5, 10))
    assert np.mean(first) == pytest.approx(0.05, abs=0.002)
    assert np.mean(first | second) == pytest.approx(0.087, abs=0.002)
