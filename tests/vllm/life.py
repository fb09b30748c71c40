"""Scenes of one server's life, told as prose.

scene = life.scene()
scene.streams.start()
scene.streams.when_all_have(6)
life.kill(1)
scene.finish(recoveries=1)
scene.assert_rebuilt(1)
"""

from oracle import assert_delivered
from streams import Streams
from vllm_server import VllmServer

from ghostserve.status import RecoveryRecord

__all__ = ["Scene"]


class Scene:
    """What happens to a server between two calm moments."""

    number = 0

    def __init__(self, server: VllmServer, *, standbys: int = 1) -> None:
        """Begins with all ranks up and so many standbys ready."""
        Scene.number += 1
        self.server = server
        server.wait_recovered(0)
        server.wait_standbys(standbys)
        self._before = len(server.status().recoveries)
        self.streams = Streams(server.client, Scene.number)

    @property
    def recoveries(self) -> list[RecoveryRecord]:
        return self.server.status().recoveries[self._before :]

    def wait_recovered(self, count: int = 1) -> None:
        self.server.wait_recovered(self._before + count)

    def finish(self, *, recoveries: int | None = None) -> None:
        """All streams run to their end, every strike has struck, and each client got what was recorded for it."""
        self.streams.finish()
        self.wait_recovered(recoveries or 0)
        assert not self.server.armed(), f"never hit: {self.server.armed()}"
        if recoveries is not None:
            assert len(self.recoveries) == recoveries, [record.reason for record in self.recoveries]
        assert_delivered(self.server.record, self.streams.all)
        assert self.server.status().counters["replay_mismatches"] == 0

    def assert_recovered(self, *lost: int) -> None:
        """These ranks were lost, and nobody had to start again."""
        assert sorted({rank for record in self.recoveries for rank in record.lost_ranks}) == sorted(lost)
        assert [record.recomputed_requests for record in self.recoveries] == [0] * len(self.recoveries)

    def assert_rebuilt(self, *lost: int) -> None:
        """The same, and there was KV that came back from parity."""
        self.assert_recovered(*lost)
        assert all(record.bytes_rebuilt > 0 for record in self.recoveries)
