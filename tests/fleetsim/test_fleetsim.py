"""The fleet: queues against theory, failures that can only cost, and a seed that decides everything."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from ghostserve.cli.main import main
from ghostserve.errors import ConfigError
from ghostserve.fleetsim import (
    Constants,
    FleetOutcome,
    FleetSettings,
    Served,
    draw_faults,
    restore_of,
    serve,
    trace_load,
)
from ghostserve.fleetsim import simulate_fleet as simulate
from ghostserve.traces import Arrival, poisson

SMALL = Constants(
    ranks=4, prefill_tokens_per_s=1000.0, decode_step_s=0.01, decode_seq_s=0.001, kv_bytes_per_token=4000,
    rebuild_bytes_per_s=1e7, host_copy_bytes_per_s=1e7, ssd_bytes_per_s=1e5, detect_s=0.1, rejoin_s=0.4,
    max_num_seqs=8, max_num_batched_tokens=128,
)  # fmt: skip
FLEET = FleetSettings(gpus=16, seconds=600.0, per_gpu_hour=2.0, spares=2, repair_s=60.0, seed=5)


def run(
    arrivals: Sequence[Arrival],
    faults: Sequence[tuple[float, float, int]] = (),
    *,
    strategy: str = "none",
    constants: Constants = SMALL,
) -> Served:
    at, down, lost = zip(*faults, strict=True) if faults else ((), (), ())
    return serve(
        np.array([a.at_seconds for a in arrivals]),
        np.array([a.prompt_tokens for a in arrivals]),
        np.array([a.output_tokens for a in arrivals]),
        fault_at=np.array(at, np.float64),
        fault_down=np.array(down, np.float64),
        fault_lost=np.array(lost, np.int64),
        constants=constants,
        restore=restore_of(strategy, constants),
    )


def fleet(fleet: FleetSettings = FLEET, strategies: Sequence[str] = ("none", "parity:1")) -> list[FleetOutcome]:
    return simulate(fleet, SMALL, lambda e: poisson(1.0, 500, prompt=(50, 300), output=(10, 60), seed=e), strategies)


def test_one_request_by_hand() -> None:
    served = run([Arrival(2.0, 300, 11)])
    prefill = 3 * 0.01 + 0.3  # chunks of 128, 128 and 44
    assert served.first[0] == pytest.approx(2 + prefill)
    assert served.end[0] == pytest.approx(2 + prefill + 10 * 0.011)


def test_queue_is_m_d_1() -> None:
    """One at a time, all alike: Pollaczek-Khinchine's mean wait, rho s / (2 (1 - rho))."""
    alone = replace(SMALL, max_num_seqs=1)
    service = 0.01 + 0.1 + 9 * 0.011
    rate = 0.5 / service
    arrivals = poisson(rate, 200_000, prompt=(100, 100), output=(10, 10), seed=1)
    wait = (run(arrivals, constants=alone).end - [a.at_seconds for a in arrivals]).mean() - service
    assert wait == pytest.approx(0.5 * service / (2 * 0.5), rel=0.03)


def test_a_failure_by_hand() -> None:
    """300 + 5 tokens in flight: restored at 4000 / 4 / 1e7 s a token, or computed again in three chunks."""
    ask, calm = [Arrival(0.0, 300, 11)], 0.33 + 10 * 0.011
    at = 0.33 + 5 * 0.011 + 0.004  # the sixth decode step is lost after 4 ms
    covered = run(ask, [(at, 0.5, 1)], strategy="parity:1")
    assert covered.end[0] == pytest.approx(calm + 0.004 + 0.5 + 305 * 1e-4)
    assert covered.recomputed_tokens == 0
    for strategy, lost in (("none", 1), ("parity:1", 2)):
        again = run(ask, [(at, 0.5, lost)], strategy=strategy)
        # Its last chunk draws the token that the lost step would have drawn.
        assert again.end[0] == pytest.approx(calm + 0.004 + 0.5 + 0.03 + 0.305 - 0.011)
        assert again.recomputed_tokens == 305


def test_nobody_is_served_during_a_recovery() -> None:
    arrivals = poisson(2.0, 400, prompt=(20, 200), output=(5, 50), seed=2)
    down = (50.0, 10.0, 1)
    calm, hit = run(arrivals), run(arrivals, [down], strategy="parity:1")
    inside = [(times > 50.0) & (times < 60.0) for times in (hit.first, hit.end)]
    assert not any(mask.any() for mask in inside)
    assert ((calm.end > 50.0) & (calm.end < 60.0)).any()  # the twin: without the failure somebody was
    assert not np.isnan(hit.end).any()


def test_failures_that_meet_are_lost_together() -> None:
    ask = [Arrival(0.0, 100, 500)]
    apart = run(ask, [(1.0, 0.5, 1), (3.0, 0.5, 1)], strategy="parity:1")
    meeting = run(ask, [(1.0, 0.5, 1), (1.2, 0.5, 1)], strategy="parity:1")
    assert apart.recomputed_tokens == 0 < meeting.recomputed_tokens
    assert run(ask, [(1.0, 0.5, 1), (1.2, 0.5, 1)], strategy="parity:2").recomputed_tokens == 0


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000), st.lists(st.floats(0, 60), max_size=6), st.sampled_from(["none", "parity:1", "hybrid:2"])
)
def test_more_failures_lose_no_less(seed: int, times: list[float], strategy: str) -> None:
    arrivals = poisson(1.0, 40, prompt=(1, 300), output=(1, 50), seed=seed)
    served = [run(arrivals, [(t, 0.5, 1) for t in sorted(times)[:k]], strategy=strategy) for k in range(len(times) + 1)]
    for fewer, more in pairwise(served):
        assert more.pause_s >= fewer.pause_s - 1e-9
        assert not np.isnan(more.end).any()
        assert (more.end >= more.first).all()
    assert served[0].pause_s == served[0].recomputed_tokens == 0


def test_fleet_is_its_seed() -> None:
    assert fleet() == fleet()
    assert fleet() != fleet(replace(FLEET, seed=6))


def test_no_failures_no_work_lost() -> None:
    for outcome in fleet(replace(FLEET, per_gpu_hour=0.0)):
        assert (outcome.faults, outcome.lost_gpu_hours, outcome.mean_recovery_s, outcome.availability) == (0, 0, 0, 1)
    none, parity = fleet()
    assert none.faults == parity.faults > 0
    assert none.lost_gpu_hours > 0
    assert none.availability < 1


def test_protection_recovers_sooner_and_loses_less() -> None:
    only_gpus = replace(FLEET, gpu_share=1.0, multi_share=0.0)
    none, parity = fleet(only_gpus)
    assert parity.lost_gpu_hours < none.lost_gpu_hours
    assert parity.mean_recovery_s < none.mean_recovery_s
    lost_hosts = [o.lost_gpu_hours for o in fleet(replace(FLEET, gpu_share=0.0))]
    assert lost_hosts[0] == lost_hosts[1]  # the host's memory is gone: parity with it


def test_spares_run_out() -> None:
    busy = replace(FLEET, per_gpu_hour=20.0, gpu_share=1.0, multi_share=0.0, repair_s=120.0)
    plenty, few = (draw_faults(replace(busy, spares=s), SMALL) for s in (1000, 1))
    assert [(f.engine, f.at) for f in plenty] == [(f.engine, f.at) for f in few]
    assert {round(f.down, 6) for f in plenty} == {0.5}
    assert max(f.down for f in few) > 100


def test_rate_of_faults() -> None:
    many = FleetSettings(gpus=10_000, seconds=86400.0, per_gpu_hour=0.01)
    expected = 2400
    assert abs(len(draw_faults(many, SMALL)) - expected) < 5 * expected**0.5


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="strategy 'prayer' is unknown; allowed: none"):
        restore_of("prayer", SMALL)
    with pytest.raises(ConfigError, match="gpus must be at least 4"):
        draw_faults(replace(FLEET, gpus=3), SMALL)
    with pytest.raises(ConfigError, match="prefill_tokens_per_s must be a number above 0"):
        replace(SMALL, prefill_tokens_per_s=0.0)


def test_a_trace_is_repeated() -> None:
    trace = [Arrival(0.0, 1, 1), Arrival(1.0, 2, 2), Arrival(3.0, 3, 3)]
    load = trace_load(trace, 40.0, seed=1)
    for engine in range(6):
        times = [a.at_seconds for a in load(engine)]
        assert times[0] == 0.0
        assert times == sorted(times)
        assert 36 < times[-1] < 40
        assert [a.prompt_tokens for a in load(engine)][:4] in ([1, 2, 3, 1], [2, 3, 1, 2], [3, 1, 2, 3])
    assert len({load(engine)[0].prompt_tokens for engine in range(20)}) == 3
    with pytest.raises(ConfigError, match="no time passes"):
        trace_load(trace[:1], 40.0, seed=1)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["simulate", "--gpus", "32", "--hours", "0.2", "--per-gpu-hour", "2", "--rate", "0.2"]
    written = []
    for name in ("a", "b"):
        assert main([*words, "--output", str(tmp_path / name), "--plot", str(tmp_path / "p.png")]) == 0
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1]
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert "parity:1" in capsys.readouterr().out
    (tmp_path / "c.json").write_text('{"speed": 1}')
    assert main([*words, "--constants", str(tmp_path / "c.json")]) == 2
    assert "c.json: Object contains unknown field `speed`" in capsys.readouterr().err
