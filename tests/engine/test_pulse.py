"""Workers that nobody waits for and that do not answer any more."""

from ghostserve.engine.pulse import Look, PulseWatch

NOTHING = Look((), ())


def test_each_is_asked_at_once_and_again_and_again() -> None:
    watch = PulseWatch(every=1.0, patience=3.0)
    assert watch.look([3, 7], 0.0) == Look((3, 7), ())
    assert watch.look([3, 7], 0.5) == NOTHING, "they were asked already"
    assert watch.look([3, 7, 9], 0.9) == Look((9,), ())
    assert watch.look([3, 7, 9], 1.0) == Look((3, 7), ())
    assert watch.look([3, 7, 9], 1.75) == NOTHING
    assert watch.look([3, 7, 9], 2.0) == Look((3, 7, 9), ())


def test_who_does_not_answer_is_given_up_once_its_time_is_over() -> None:
    watch = PulseWatch(every=1.0, patience=3.0)
    watch.look([3, 7], 0.0)
    for now in (1.0, 2.0, 3.0):
        watch.heard(7)
        assert watch.look([3, 7], now) == Look((3, 7), ())
    watch.heard(7)
    assert watch.look([3, 7], 3.1) == Look((), (3,))
    assert watch.look([7, 8], 3.2) == Look((8,), ()), "it was replaced, and the new one has all its time"


def test_a_lost_question_is_no_silence() -> None:
    watch = PulseWatch(every=1.0, patience=3.0)
    for now in range(20):
        assert watch.look([3], float(now)) == Look((3,), ())
        if now % 3 == 2:
            watch.heard(3)


def test_the_answer_to_an_older_question_counts() -> None:
    watch = PulseWatch(every=1.0, patience=3.0)
    for now in (0.0, 1.0, 2.0, 3.0):
        watch.look([3], now)
    watch.heard(3)
    assert watch.look([3], 3.5) == NOTHING


def test_time_in_which_nobody_looked_is_nobodys_silence() -> None:
    """The whole machine may have stood still: then all would seem to hang, and a healthy group would be killed."""
    watch = PulseWatch(every=1.0, patience=3.0)
    watch.look([3, 7], 0.0)
    assert watch.look([3, 7], 60.0) == Look((3, 7), ())
    watch.heard(7)
    for now in (61.0, 62.0, 63.0):
        watch.heard(7)
        assert watch.look([3, 7], now) == Look((3, 7), ())
    watch.heard(7)
    assert watch.look([3, 7], 63.1) == Look((), (3,))


def test_one_that_left_is_forgotten() -> None:
    watch = PulseWatch(every=1.0, patience=3.0)
    watch.look([3], 0.0)
    assert watch.look([], 1.0) == NOTHING
    assert watch.look([3], 2.0) == Look((3,), ())
    assert watch.look([3], 2.9) == NOTHING, "its time began when it came back"
