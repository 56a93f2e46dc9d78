"""Waits between attempts to connect."""

from random import Random

from broker.peers.backoff import Backoff


def test_waits_double_up_to_the_bound_and_begin_again_after_a_success() -> None:
    backoff = Backoff(delay_min_s=0.05, delay_max_s=1.0)
    assert [backoff.failed() for _ in range(7)] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    backoff.worked()
    assert backoff.failed() == 0.05


def test_with_chance_waits_are_spread_below_the_bound_however_long_it_goes_on() -> None:
    backoff = Backoff(Random(1))
    waits = [backoff.failed() for _ in range(2000)]
    assert max(waits) <= 1.0 and min(waits[10:]) >= 0.6 and len(set(waits)) > 1000
