"""StepMix, EpsMix and optimism on small processes: what is played, what is kept, what is the same."""

from __future__ import annotations

import pytest

from kdbench.tracks.policy.blocks.sessions import Session

SMALL = {"limits": {"episodes": 300}}
SINGLE = {"world": {"count": 1, "states": 4, "actions": 2, "horizon": 4}, "limits": {"episodes": 300}}


def test_without_a_constraint_it_is_optimism(run):
    free = run("policy/stepmix", "random-mdps", overrides=SMALL, constrained=False)
    plain = run("policy/ucbvi", "random-mdps", overrides=SMALL)
    assert free.outcome.metrics == plain.outcome.metrics
    assert free.outcome.extra["optimistic_share"] == 1


@pytest.mark.parametrize("variant", ["step", "episode"])
def test_no_episode_is_below_the_threshold_and_more_is_earned_than_by_the_baseline(run, variant):
    mixed = run("policy/stepmix", "random-mdps", overrides=SMALL, variant=variant)
    safe = run("policy/safe_baseline", "random-mdps", overrides=SMALL)
    assert mixed.outcome.metrics["violations"] == 0
    assert safe.outcome.metrics["violations"] == 0
    assert mixed.outcome.metrics["regret"] < safe.outcome.metrics["regret"]
    assert mixed.outcome.extra["least_margin"] >= 0
    shares = [mixed.outcome.extra[f"{kind}_share"] for kind in ("optimistic", "mixed", "baseline")]
    assert sum(shares) == pytest.approx(1)
    assert shares[0] > 0
    assert shares[2] > 0
    assert mixed.outcome.extra["mixture_error"] < 1e-12


def test_at_the_constants_of_the_analysis_the_baseline_is_played(run):
    wide = run("policy/stepmix", "random-mdps", overrides=SMALL, c1=2.0, c2=2.0, bonus="variance")
    assert wide.outcome.metrics["violations"] == 0
    assert wide.outcome.extra["baseline_share"] == 1


def test_a_step_mixture_is_one_policy_and_a_mixture_of_episodes_a_coin(run, monkeypatch):
    played = []
    original = Session.play_mixture

    def watched(session, policies, weights):
        played.append([table.copy() for table in policies])
        return original(session, policies, weights)

    monkeypatch.setattr(Session, "play_mixture", watched)
    slack = {"world": {**SINGLE["world"], "slack": 0.3, "safe": 0.95}, "limits": {"episodes": 250}}
    step = run("policy/stepmix", "random-mdps", overrides=slack, c1=0.6)
    assert step.outcome.extra["mixed_share"] > 0
    assert all(len(tables) == 1 for tables in played)
    between = [tables[0] for tables in played if ((tables[0] > 0) & (tables[0] < 1)).any()]
    assert between
    played.clear()
    coin = run("policy/stepmix", "random-mdps", overrides=slack, c1=0.6, variant="episode")
    assert coin.outcome.extra["mixed_share"] > 0
    assert any(len(tables) == 2 for tables in played)


def test_a_baseline_can_come_from_logged_episodes(run, monkeypatch):
    known = []
    original = Session.play_mixture

    def watched(session, policies, weights):
        known.append(any((table == session.baseline).all() for table in policies))
        return original(session, policies, weights)

    monkeypatch.setattr(Session, "play_mixture", watched)
    result = run("policy/stepmix", "random-mdps", overrides=SINGLE, offline=500)
    assert result.outcome.cost["demonstrations"] == 500
    assert not any(known)
    assert result.outcome.metrics["violations"] == 0


def test_optimism_alone_violates_the_threshold_where_the_baseline_is_good(run):
    tight = {"world": {"count": 2, "states": 6, "actions": 3, "horizon": 6, "slack": 0.05}, "limits": {"episodes": 150}}
    bold = run("policy/ucbvi", "random-mdps", overrides=tight)
    kept = run("policy/stepmix", "random-mdps", overrides=tight)
    assert bold.outcome.metrics["violations"] > 0
    assert kept.outcome.metrics["violations"] == 0
