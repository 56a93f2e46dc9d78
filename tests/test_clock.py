"""A node's wall clock, corrected by those of the others."""

from broker.clock import TOLERANCE_US, ClusterClock

NOW_US, YEAR_US = 1_750_000_000_000_000, 365 * 86_400 * 1_000_000


class OwnClock:
    def __init__(self) -> None:
        self.passed_us = 0
        self.wrong_us = 0

    def monotonic(self) -> float:
        return 77 + self.passed_us / 1e6

    def wall_us(self) -> int:
        return NOW_US + self.passed_us + self.wrong_us


def test_a_clock_that_is_right_counts_as_it_is() -> None:
    """To the microsecond, however late the others' time comes."""
    own = OwnClock()
    clock = ClusterClock(own)
    assert clock.wall_us() == NOW_US
    clock.agree(NOW_US - TOLERANCE_US)
    own.passed_us += 1_234_567
    assert (clock.wall_us(), clock.wrong_by_s) == (NOW_US + 1_234_567, 0)


def test_a_clock_that_jumps_does_not_count() -> None:
    """Time goes on as before, at once, and until it is right again."""
    own = OwnClock()
    clock = ClusterClock(own)
    clock.agree(NOW_US)
    for wrong_us in (YEAR_US, -YEAR_US, 2 * TOLERANCE_US):
        own.wrong_us = wrong_us
        own.passed_us += 5_000_000
        assert clock.wall_us() == clock.ages.wall_us() == NOW_US + own.passed_us
        assert clock.wrong_by_s == wrong_us // 1_000_000
        assert clock.own_wall_us() == own.wall_us()
    own.wrong_us = 3
    assert (clock.wall_us(), clock.wrong_by_s) == (NOW_US + own.passed_us + 3, 0)


def test_nothing_is_old_before_the_others_were_heard() -> None:
    """A node that starts with a wrong clock deletes nothing by it; alone, its own clock is all there is."""
    alone = ClusterClock(OwnClock())
    assert alone.ages.wall_us() == NOW_US
    clock = ClusterClock(OwnClock())
    clock.expect_others()
    assert clock.ages.wall_us() == 0
    assert clock.wall_us() == NOW_US
    clock.agree(NOW_US - YEAR_US)
    assert clock.ages.wall_us() == clock.wall_us() == NOW_US - YEAR_US
