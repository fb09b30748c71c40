"""NCCL in a worker of vLLM: which communicators an epoch has, and how another thread cuts them off.

vLLM has a communicator of its own for each group (pynccl) beside torch's. On a release the receiver's thread shuts the
gate that their collectives pass, then aborts them all at once: a kernel of one can stand in the stream behind a
kernel of another, and the abort of either waits for both.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from ghostserve.errors import GhostServeError
from ghostserve.vllm.gate import Gate, GatedCommunicator
from ghostserve.workers.nccl import Moment

__all__ = ["Abort", "AbortError", "NcclLinks", "abort_all", "torch_aborts"]

_ABORT_SECONDS = 10.0

log = logging.getLogger("vllm.ghostserve.worker")

Abort = tuple[str, Callable[[], object]]
"""What is aborted, for people, and how."""


class AbortError(GhostServeError):
    """Communicators could not be aborted: this process can't be used any more."""


class NcclLinks:
    """This worker's communicators, epoch after epoch. `cut` and `waiting` are for any thread, all else for the main."""

    clean_cut = False
    """A kernel that is aborted ends with garbage, and without an error."""

    def __init__(
        self,
        *,
        mark: Callable[[], Moment] | None = None,
        others: Callable[[torch.device], Sequence[Abort]] | None = None,
        abort_seconds: float = _ABORT_SECONDS,
    ) -> None:
        """`mark` records an event on the current stream; `others`: what to abort beside vLLM's own communicators.

        `abort_seconds`: what all aborts together may take.
        """
        self._mark = _mark if mark is None else mark
        self._others = torch_aborts if others is None else others
        self._abort_seconds = abort_seconds
        self._lock = threading.Lock()
        """Held while communicators are aborted or taken over: these may not overlap."""
        self._released = 0
        self._epoch = 0
        self._device = torch.device("cpu")
        self._gate = Gate(self._mark)
        self._aborts: Sequence[Abort] = ()

    def open(self, epoch: int, groups: Iterable[Any], device: torch.device) -> None:
        """`groups`, vLLM's coordinators on `device`, are up for `epoch`: their collectives pass the gate from here on.

        Raises `ReleasedError`, and aborts, if the epoch was released in the meantime.
        """
        with self._lock:
            self._epoch, self._device, self._gate = epoch, device, Gate(self._mark)
            self._aborts = [*_gated(groups, self._gate), *self._others(device)]
        if self._released > epoch:
            self.cut(self._released)
        self.check()

    def cut(self, epoch: int) -> None:
        """Nothing of an epoch below `epoch` counts any more; returns when what hung on the device has been let go.

        Each communicator is aborted once. Raises `AbortError` when that does not come to an end.
        """
        self._released = max(self._released, epoch)
        with self._lock:
            if self._epoch >= self._released:
                return
            # Before the abort: what it lets go must find the gate shut.
            self._gate.shut(f"epoch {self._epoch} was released at epoch {self._released}")
            aborts, self._aborts = self._aborts, ()
            failed = abort_all(aborts, self._abort_seconds)
        if failed:
            raise AbortError(f"not aborted within {self._abort_seconds:g} s: {', '.join(failed)}")

    def check(self) -> None:
        """Raises `ReleasedError` if what was computed in the open epoch may be garbage."""
        self._gate.check()

    def settle(self) -> None:
        """Wait for the model's stream, after a `cut`. What the device raises then is this worker's own failure."""
        torch.cuda.current_stream().synchronize()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """In here collectives have no peers: for a newcomer's warm-up, which the others do not take part in."""
        gate = self._gate
        gate.alone = True
        try:
            yield
        finally:
            gate.alone = False

    @property
    def waiting(self) -> bool:
        """The device stands in a collective; in any other kernel it is busy, however long that takes."""
        with _on(self._device):  # a thread that names no GPU gets a context on the first one
            return self._gate.progress.in_collective


def torch_aborts(device: torch.device) -> list[Abort]:
    """For each of torch's NCCL groups in this process; one that was never used has nothing to abort."""
    groups = dist.distributed_c10d._world.pg_map.items()
    return [
        (f"torch's {group.group_name}", group._get_backend(device).abort)
        for group, (backend, _) in groups
        if "nccl" in str(backend)
    ]


def abort_all(aborts: Sequence[Abort], seconds: float) -> list[str]:
    """Run all `aborts` at once, each on a thread of its own; returns which have not ended after `seconds`.

    One that raises has ended: it may have done its work, and if not, whoever waits for the device will notice.
    """
    began = time.monotonic()
    threads = [(name, threading.Thread(target=_run, args=(name, abort), daemon=True)) for name, abort in aborts]
    for _, thread in threads:
        thread.start()
    for _, thread in threads:
        thread.join(max(0.0, began + seconds - time.monotonic()))
    log.info("aborted %d communicators in %.2f s", len(aborts), time.monotonic() - began)
    return [name for name, thread in threads if thread.is_alive()]


def _run(name: str, abort: Callable[[], object]) -> None:
    try:
        abort()
    except Exception as error:  # noqa: BLE001 - the others are to be aborted all the same
        log.warning("the abort of %s: %s: %s", name, type(error).__name__, error)


def _gated(groups: Iterable[Any], gate: Gate) -> Iterator[Abort]:
    """Put the gate before each group's collectives, and say how its own communicator is aborted."""
    for group in groups:
        communicator = group.device_communicator
        if communicator is None:
            continue
        group.device_communicator = GatedCommunicator(communicator, gate)
        pynccl = communicator.pynccl_comm
        if pynccl is not None and pynccl.available and not pynccl.disabled:
            yield f"pynccl's of {group.unique_name}", partial(_abort_pynccl, pynccl)


def _abort_pynccl(pynccl: Any) -> None:
    """As vLLM's `destroy` does it. That finds nothing left to do afterwards: a second abort would crash."""
    try:
        with _on(pynccl.device):
            pynccl.nccl.ncclCommAbort(pynccl.comm)
    finally:
        pynccl.available, pynccl.disabled = False, True


def _on(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _mark() -> Moment:
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return event
