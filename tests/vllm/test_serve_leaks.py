"""Ranks of one server die, one after the other, and nothing gathers: processes, memory, files, descriptors.

`test_serve_kills.py` looks at that too, over its own dozen of kills.
"""

from pathlib import Path

import pytest

pytest.importorskip("vllm")

from life import Scene
from vllm_server import VllmServer

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


def test_twenty_kills_leave_nothing_behind(llama: Path, tmp_path: Path) -> None:
    with VllmServer(llama, tmp_path) as server:
        for number in range(20):
            scene = Scene(server)
            scene.streams.start([40] * 4, tokens=20)
            scene.streams.when_all_have(2)
            server.kill(number % 2)
            scene.finish(recoveries=1)
            if number == 1:  # what comes with a first time is there now
                server.wait_standbys(1)
                owned = server.possessions()
        server.wait_standbys(1)
        server.until(lambda: server.possessions() == owned, f"had {owned}, and never again", patience=10)
        server.close()
        assert not server.leftovers(), "\n".join(server.leftovers(0))
