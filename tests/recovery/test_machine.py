"""The recovery machine with hand-made events: what it commands, and what it waits for before it does."""

import pytest

from ghostserve.recovery import events as ev
from ghostserve.recovery.machine import MachineSettings, Phase, RecoveryMachine


class Story:
    """Drives a machine like the driver does; `commands` are those of the last event."""

    def __init__(self, world_size=3, standbys=1, **settings):
        self.machine = RecoveryMachine(MachineSettings(world_size, standbys, **settings))
        self.now = 0.0
        self.workers = 0
        self.commands = self.carry_out(self.machine.start(0.0))

    def carry_out(self, commands):
        for command in commands:
            if isinstance(command, ev.Spawn):
                self.machine.spawned(self.workers)
                self.workers += 1
        return commands

    def tell(self, event, after=1.0):
        self.now += after
        self.commands = self.carry_out(self.machine.handle(event, self.now))
        return self.commands

    @property
    def phase(self):
        return self.machine.phase

    @property
    def epoch(self):
        return self.machine.epoch

    @property
    def members(self):
        return self.machine.members

    def lose(self, *ranks):
        commands = []
        for worker in [self.members[rank] for rank in ranks]:
            commands += self.tell(ev.WorkerLost(worker, "killed"))
        return commands

    def release(self, but=()):
        commands = []
        for worker in list(self.members.values()):
            if worker not in but:
                commands += self.tell(ev.Released(worker, self.epoch))
        return commands

    def load(self):
        commands = []
        for rank, worker in sorted(self.members.items()):
            commands += self.tell(ev.Loaded(worker, rank))
        return commands

    def ready(self):
        commands = []
        for worker in sorted(self.machine.starting):
            commands += self.tell(ev.WorkerReady(worker))
        return commands

    def join(self):
        commands = []
        for worker in list(self.members.values()):
            commands += self.tell(ev.Joined(worker, self.epoch))
        return commands

    def rebuild(self):
        commands = []
        for rank in sorted(self.machine.lost_ranks):
            commands += self.tell(ev.Rebuilt(self.members[rank], self.epoch))
        return commands

    def replay(self):
        return self.tell(ev.Replayed(self.epoch))

    def until(self, phase):
        """Go on without further faults."""
        while self.phase is not phase:
            match self.phase:
                case Phase.RELEASING:
                    self.ready()
                    self.release()
                    self.load()
                case Phase.REJOINING:
                    self.join()
                case Phase.REBUILDING:
                    self.rebuild()
                case Phase.REPLAYING:
                    self.replay()
        return self


def serving(**settings):
    story = Story(**settings).until(Phase.SERVING)
    story.ready()
    story.machine.step_finished()
    return story


def kinds(commands):
    return [type(command) for command in commands]


def test_start_loads_joins_and_serves_with_nothing_to_rebuild():
    story = Story()
    assert story.commands == [ev.Spawn(cold=True)] * 3
    assert story.tell(ev.WorkerReady(1)) == [ev.Load(1, 0)]
    assert story.tell(ev.WorkerReady(0)) == [ev.Load(0, 1)]
    assert story.tell(ev.WorkerReady(2)) == [ev.Load(2, 2)]
    assert story.tell(ev.Loaded(1, 0)) == []
    assert story.tell(ev.Loaded(0, 1)) == []
    assert story.tell(ev.Loaded(2, 2)) == [ev.Join(1, (1, 0, 2))]
    assert story.join() == [ev.Replay(1)]
    resume, *refill = story.replay()
    assert isinstance(resume, ev.Resume)
    assert refill == [ev.Spawn(cold=False)], "standbys come when it serves"
    assert resume.timeline.reason == "start"
    assert story.phase is Phase.SERVING


def test_a_lost_rank_goes_to_the_standby():
    story = serving()
    (standby,) = story.machine.standbys
    victim, *survivors = story.members.values()
    commands = story.tell(ev.WorkerLost(victim, "killed"))
    assert commands[0] == ev.Kill(victim, "killed")
    assert commands[1:] == [*(ev.Release(w, 2) for w in survivors), ev.Load(standby, 0)]
    assert story.tell(ev.Loaded(standby, 0)) == []
    assert story.tell(ev.Released(survivors[0], 2)) == [], "one of two survivors may still read"
    assert story.tell(ev.Released(survivors[1], 2)) == [ev.Wipe(0), ev.Join(2, (standby, *survivors))]
    assert story.tell(ev.Joined(survivors[0], 2)) == []
    assert story.tell(ev.Joined(standby, 2)) == []
    assert story.tell(ev.Joined(survivors[1], 2)) == [ev.Rebuild(2, (0,), ((standby, 0),))]
    assert story.tell(ev.Rebuilt(standby, 2)) == [ev.Replay(2)]
    assert kinds(story.replay()) == [ev.Resume, ev.Spawn]


def test_without_a_standby_a_cold_one_is_spawned_and_survivors_are_released_meanwhile():
    story = serving(standbys=0)
    assert kinds(story.lose(2)) == [ev.Kill, ev.Release, ev.Release, ev.Spawn]
    assert story.commands[-1] == ev.Spawn(cold=True)
    assert story.release() == [ev.Wipe(2)]
    assert story.ready() == [ev.Load(3, 2)]
    assert kinds(story.tell(ev.Loaded(3, 2))) == [ev.Join]


def test_join_waits_for_weights_and_rebuilt_for_all_targets():
    story = serving(standbys=2)
    story.lose(0, 1)
    assert kinds(story.release()) == [ev.Wipe, ev.Wipe]
    story.load()
    assert story.phase is Phase.REJOINING
    (rebuild,) = story.join()
    assert rebuild.lost_ranks == (0, 1)
    assert story.tell(ev.Rebuilt(story.members[0], story.epoch)) == []
    assert story.tell(ev.Rebuilt(story.members[1], story.epoch)) == [ev.Replay(story.epoch)]


def test_standbys_are_refilled_on_resume_only():
    story = serving()
    story.lose(1)
    spawned = 0
    while story.phase is not Phase.SERVING:
        assert story.workers == 4, "no spawn while it recovers"
        spawned = story.workers
        story.until(
            {
                Phase.RELEASING: Phase.REJOINING,
                Phase.REJOINING: Phase.REBUILDING,
                Phase.REBUILDING: Phase.REPLAYING,
            }.get(story.phase, Phase.SERVING)
        )
    assert story.workers == spawned + 1


@pytest.mark.parametrize("make", [ev.Released, ev.Joined, ev.Rebuilt])
@pytest.mark.parametrize("phase", [Phase.RELEASING, Phase.REJOINING, Phase.REBUILDING])
def test_answers_of_an_older_epoch_change_nothing(make, phase):
    story = serving()
    story.lose(0)
    story.until(phase)
    for worker in list(story.members.values()):
        assert story.tell(make(worker, story.epoch - 1)) == []
    assert story.phase is phase
    story.tell(ev.CommunicatorBroke(story.members[1], story.epoch - 1, "late"))
    assert (story.phase, story.epoch) == (phase, 2)


def test_an_old_replayed_and_unknown_workers_change_nothing():
    story = serving()
    story.lose(0)
    story.until(Phase.REPLAYING)
    assert story.tell(ev.Replayed(1)) == []
    assert story.tell(ev.WorkerLost(0, "again")) == []
    assert story.tell(ev.WorkerLost(99, "who?")) == []
    assert story.tell(ev.WorkerReady(99)) == []
    assert (story.phase, story.epoch) == (Phase.REPLAYING, 2)


PHASES = [Phase.RELEASING, Phase.REJOINING, Phase.REBUILDING, Phase.REPLAYING]


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("second", [1, 0], ids=["survivor", "newcomer"])
def test_a_second_loss_starts_again_with_all_that_is_lost(phase, second):
    story = serving(standbys=2)
    story.lose(0)
    story.until(phase)
    story.lose(second)
    assert (story.phase, story.epoch) == (Phase.RELEASING, 3)
    rebuilt_before = phase is Phase.REPLAYING
    assert story.machine.lost_ranks == ({second} if rebuilt_before else {0, second})
    story.until(Phase.REBUILDING)
    (rebuild,) = story.commands
    assert rebuild.lost_ranks == tuple(sorted(story.machine.lost_ranks))
    assert rebuild.targets == tuple((story.members[rank], rank) for rank in rebuild.lost_ranks)
    story.until(Phase.SERVING)
    assert story.commands[0].timeline.lost_ranks == tuple(sorted({0, second}))


@pytest.mark.parametrize("phase", PHASES)
def test_a_standby_that_dies_meanwhile_disturbs_nobody(phase):
    story = serving(standbys=2)
    story.lose(0)
    story.until(phase)
    (standby,) = story.machine.standbys
    assert kinds(story.tell(ev.WorkerLost(standby, "killed"))) == [ev.Kill]
    assert (story.phase, story.epoch) == (phase, 2)
    story.until(Phase.SERVING)
    assert kinds(story.commands) == [ev.Resume, ev.Spawn, ev.Spawn]


def test_a_standby_that_dies_is_replaced_while_serving_and_while_probing():
    story = serving()
    assert kinds(story.tell(ev.WorkerLost(story.machine.standbys[0], "killed"))) == [ev.Kill, ev.Spawn]
    story.ready()
    story.tell(ev.StepOverdue(4))
    assert kinds(story.tell(ev.WorkerLost(story.machine.standbys[0], "killed"))) == [ev.Kill, ev.Spawn]


def test_two_losses_at_once_are_rebuilt_together_and_wiped_once_each():
    story = serving(standbys=2)
    story.lose(0, 2)
    wipes = [c for c in story.release() if isinstance(c, ev.Wipe)]
    assert wipes == [ev.Wipe(0), ev.Wipe(2)]
    story.until(Phase.REBUILDING)
    assert story.commands[0].lost_ranks == (0, 2)


def test_a_rank_is_wiped_again_only_if_its_newcomer_is_lost():
    story = serving(standbys=3)
    story.lose(0)
    story.until(Phase.REJOINING)
    story.lose(1)
    assert [c for c in story.release() if isinstance(c, ev.Wipe)] == [ev.Wipe(1)]
    story.lose(0)
    assert [c for c in story.release() if isinstance(c, ev.Wipe)] == [ev.Wipe(0)]


@pytest.mark.parametrize("lost", [(0, 1, 2), (2, 1, 0)])
def test_all_ranks_may_be_lost(lost):
    story = serving()
    story.lose(*lost)
    story.until(Phase.REBUILDING)
    assert story.commands[0].lost_ranks == (0, 1, 2)
    assert story.until(Phase.SERVING).phase is Phase.SERVING


def test_a_broken_communicator_without_a_death_forms_a_new_group_and_replays():
    story = serving()
    members = tuple(story.members.values())
    assert story.tell(ev.CommunicatorBroke(1, 1, "reset")) == [ev.Release(w, 2) for w in members]
    assert story.tell(ev.CommunicatorBroke(2, 1, "reset")) == [], "the others say the same, later"
    assert story.release() == [ev.Join(2, members)]
    assert story.join() == [ev.Replay(2)]
    assert kinds(story.replay()) == [ev.Resume]


def test_who_neither_answers_a_probe_nor_waits_is_the_culprit():
    story = serving()
    assert story.tell(ev.StepOverdue(7)) == [ev.Probe(w) for w in (0, 1, 2)]
    story.tell(ev.Probed(0, waiting=True), 0.1)
    story.tell(ev.Probed(1, waiting=False), 0.1)
    story.tell(ev.Probed(2, waiting=True), 0.1)
    assert story.tell(ev.Tick(), 0.1) == []
    kill, *rest = story.tell(ev.Tick(), 1.0)
    assert kill == ev.Kill(1, "hangs in step 7")
    assert kinds(rest) == [ev.Release, ev.Release, ev.Load]
    assert story.machine.lost_ranks == {1}


def test_if_every_rank_waits_the_group_is_formed_anew_and_nobody_is_killed():
    story = serving()
    story.tell(ev.StepOverdue(7))
    for worker in (0, 1, 2):
        story.tell(ev.Probed(worker, waiting=True), 0.1)
    assert kinds(story.tell(ev.Tick(), 1.0)) == [ev.Release] * 3
    assert story.machine.lost_ranks == set()


def test_a_slow_step_that_every_rank_computes_is_spared_once():
    story = serving()
    for verdict in ("spared", "killed"):
        story.tell(ev.StepOverdue(7))
        for worker in (0, 1, 2):
            story.tell(ev.Probed(worker, waiting=False), 0.1)
        commands = story.tell(ev.Tick(), 1.0)
        if verdict == "spared":
            assert commands == []
            assert story.machine.phase is Phase.SERVING
    assert kinds(commands)[:3] == [ev.Kill] * 3, "who hangs for two deadlines is not just slow"


@pytest.mark.parametrize("phase", [Phase.SERVING, Phase.REPLAYING])
def test_a_step_that_ends_while_probing_ends_the_probe(phase):
    story = serving()
    if phase is Phase.REPLAYING:
        story.lose(0)
        story.until(phase)
    epoch = story.epoch
    story.tell(ev.StepOverdue(7))
    assert story.phase is Phase.PROBING
    story.machine.step_finished()
    assert story.phase is phase
    assert story.tell(ev.Tick(), 1000.0) == []
    assert story.epoch == epoch


def test_a_death_while_probing_is_a_death():
    story = serving()
    story.tell(ev.StepOverdue(7))
    assert kinds(story.lose(2)) == [ev.Kill, ev.Release, ev.Release, ev.Load]


def test_an_overdue_step_is_nobodys_business_during_a_recovery():
    story = serving()
    story.lose(0)
    assert story.tell(ev.StepOverdue(7)) == []
    assert story.phase is Phase.RELEASING


@pytest.mark.parametrize("phase", [Phase.RELEASING, Phase.REJOINING, Phase.REBUILDING])
def test_who_has_not_answered_by_the_deadline_is_lost(phase):
    story = serving(standbys=2, phase_deadline=10.0)
    story.lose(0)
    story.until(phase)
    late = story.members[0 if phase is Phase.REBUILDING else 1]
    if phase is Phase.RELEASING:
        story.load()
        story.release(but=[late])
    elif phase is Phase.REJOINING:
        for worker in (0, 1, 2):
            if story.members[worker] != late:
                story.tell(ev.Joined(story.members[worker], 2))
    assert story.tell(ev.Tick(), 0.0) == []
    kill, *_ = story.tell(ev.Tick(), 10.0)
    assert kill == ev.Kill(late, f"no answer while {phase}")
    assert story.epoch == 3
    assert story.until(Phase.SERVING).phase is Phase.SERVING


def test_a_newcomer_that_is_not_ready_in_time_is_replaced():
    story = serving(standbys=0, phase_deadline=10.0)
    story.lose(0)
    story.release()
    assert story.tell(ev.Tick(), 10.0) == [ev.Kill(3, "not ready in time"), ev.Spawn(cold=True)]
    assert story.tell(ev.Tick(), 1.0) == []
    story.until(Phase.SERVING)
    assert story.members[0] == 4


def test_a_newcomer_that_was_just_ready_in_time_has_time_to_load():
    story = serving(standbys=0, phase_deadline=10.0)
    story.lose(0)
    story.release()
    story.tell(ev.WorkerReady(3), 7.5)
    assert story.tell(ev.Tick(), 5.0) == []
    assert kinds(story.tell(ev.Tick(), 5.0)) == [ev.Kill, ev.Release, ev.Release, ev.Spawn]


def test_spawns_that_fail_in_a_row_end_it():
    story = serving(standbys=0, max_failed_spawns=3)
    story.lose(0)
    assert kinds(story.tell(ev.WorkerLost(3, "import failed"))) == [ev.Kill, ev.Spawn]
    assert kinds(story.tell(ev.WorkerLost(4, "import failed"))) == [ev.Kill, ev.Spawn]
    _, give_up = story.tell(ev.WorkerLost(5, "import failed"))
    assert give_up == ev.GiveUp("3 workers in a row died while starting: import failed")
    assert story.phase is Phase.FAILED
    assert story.tell(ev.WorkerLost(1, "killed")) == [], "a machine that has failed says nothing more"


def test_a_spawn_that_succeeds_in_between_starts_the_count_again():
    story = serving(standbys=0, max_failed_spawns=2)
    story.lose(0)
    story.tell(ev.WorkerLost(3, "import failed"))
    story.until(Phase.SERVING)
    story.lose(1)
    assert kinds(story.tell(ev.WorkerLost(5, "import failed"))) == [ev.Kill, ev.Spawn]


def test_standbys_that_fail_to_start_do_not_end_a_group_that_serves():
    story = serving(standbys=1, max_failed_spawns=2)
    story.tell(ev.WorkerLost(3, "killed"))
    story.tell(ev.WorkerLost(4, "import failed"))
    assert kinds(story.tell(ev.WorkerLost(5, "import failed"))) == [ev.Kill]
    assert story.phase is Phase.SERVING


def test_all_that_are_not_ready_in_time_give_up_once():
    story = Story(world_size=4, phase_deadline=10.0, max_failed_spawns=2)
    commands = story.tell(ev.Tick(), 10.0)
    assert kinds(commands).count(ev.GiveUp) == 1


def recover(story, idle=False):
    story.machine.standbys or story.ready()
    if not idle:
        story.machine.step_sent()
    story.lose(0)
    if story.phase is not Phase.FAILED:
        story.until(Phase.SERVING)


def test_recoveries_without_a_step_in_between_end_it():
    story = serving(max_attempts=3)
    for _ in range(3):
        recover(story)
    recover(story)
    assert story.phase is Phase.FAILED
    assert story.commands[-1].reason.startswith("3 recoveries in a row without a finished step; last: rank 0: killed")


def test_an_idle_engine_may_lose_any_number_of_workers():
    story = serving(max_attempts=3)
    for _ in range(12):
        recover(story, idle=True)
    assert story.phase is Phase.SERVING


def test_standbys_that_keep_dying_are_tried_again_later():
    story = serving(max_failed_spawns=2, spawn_retry=10.0)
    for standby in list(story.machine.standbys):
        story.tell(ev.WorkerLost(standby, "killed"))
    for _ in range(2):
        story.tell(ev.WorkerLost(max(story.machine.starting), "killed"))
    assert not story.machine.starting
    assert story.tell(ev.Tick(), 9.0) == []
    assert kinds(story.tell(ev.Tick(), 1.0)) == [ev.Spawn]


def test_who_is_silent_is_to_blame_not_who_is_busy():
    story = serving()
    story.tell(ev.StepOverdue(7))
    story.tell(ev.Probed(1, waiting=False), 0.1)
    story.tell(ev.Probed(2, waiting=True), 0.1)
    kill, *_ = story.tell(ev.Tick(), 1.0)
    assert kill == ev.Kill(0, "hangs in step 7")
    assert story.machine.lost_ranks == {0}


def test_a_finished_step_forgets_earlier_attempts_but_a_replayed_one_does_not():
    story = serving(max_attempts=3)
    for _ in range(10):
        recover(story)
        story.machine.step_finished()
    assert story.phase is Phase.SERVING
    for _ in range(3):
        story.machine.step_sent()
        story.lose(0)
        story.until(Phase.REPLAYING)
        story.machine.step_finished()  # the step that was replayed before the one that kills
        story.until(Phase.SERVING)
    story.machine.step_sent()
    story.lose(0)
    assert story.phase is Phase.FAILED


def test_the_timeline_is_in_order_and_says_when_each_phase_ended():
    story = serving(standbys=0)
    story.lose(1)
    story.release()
    released = story.now
    story.ready()
    story.load()
    story.until(Phase.REBUILDING)
    story.lose(2)
    story.release()
    released_again = story.now
    story.ready()
    story.load()
    weights = story.now
    story.until(Phase.SERVING)
    timeline = story.commands[0].timeline
    marks = timeline.marks
    assert [at for _, at in marks] == sorted(at for _, at in marks)
    assert [name for name, _ in marks] == [
        *("detected", "detected", "released", "spawned", "weights"),
        *("rejoined", "rebuilt", "replayed", "resumed"),
    ]
    assert dict(marks)["released"] == released_again > released, "not when the weights came"
    assert dict(marks)["weights"] == weights
    assert timeline.reason == "rank 1: killed; then rank 2: killed"
    assert timeline.seconds == story.now - timeline.started
    assert ev.Timeline(3.0, "nothing yet").seconds == 0.0


def test_a_loss_during_the_start_has_nothing_to_rebuild():
    story = Story()
    story.until(Phase.REJOINING)
    story.lose(1)
    story.until(Phase.SERVING)
    assert story.machine.lost_ranks == set()
    assert story.commands[0].timeline.reason == "start; then rank 1: killed"
