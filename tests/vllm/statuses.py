"""A status as an executor would publish it."""

from ghostserve.status import EngineStatus, RankStatus, RecoveryRecord


def make_status(state: str = "serving", *, step: int = 41) -> EngineStatus:
    record = RecoveryRecord(
        epoch=2, reason="rank 1 died", lost_ranks=[1], seconds=1.5, bytes_rebuilt=1000, replayed_steps=2,
        recomputed_requests=0, phases=[("detected", 0.0), ("resumed", 1.5)],
    )  # fmt: skip
    return EngineStatus(
        state=state, epoch=2, step=step, watermark=40, parity="rs:1", parity_bytes=4096, recoveries=[record],
        ranks=[RankStatus(0, 100, "up"), RankStatus(1, 101, "lost")], counters={"unprotected_features_total": 3},
    )  # type: ignore[arg-type]  # fmt: skip
