"""A rank on a GPU: its streams, libraries and kernels warm, its cache shared by handle, its weights copied in."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ghostserve.codes import Code
from ghostserve.cuda.host import RegisteredRegion
from ghostserve.cuda.path import CudaDataPath
from ghostserve.cuda.payload import pin_payload
from ghostserve.cuda.runtime import CudaRuntime, Stream
from ghostserve.cuda.staged import StagedDataPath
from ghostserve.engine import varlen
from ghostserve.engine.caches import DeviceCaches
from ghostserve.engine.communicator import Communicator
from ghostserve.engine.dryrun import rehearse
from ghostserve.engine.hardware import Hardware
from ghostserve.engine.launch import WorkerConfig
from ghostserve.engine.model import ShardedModel
from ghostserve.engine.weights import HostWeights
from ghostserve.errors import CudaError
from ghostserve.parity.file_store import FileStore
from ghostserve.parity.memory import SharedRegion
from ghostserve.parity.store import ParityStore

__all__ = ["CudaHardware"]

log = logging.getLogger("ghostserve.engine")


@dataclass
class _Site:
    """A GPU that this process has its libraries, kernels and, where parity is kept, a data path on."""

    runtime: CudaRuntime
    stream: Stream
    attention: str
    path: CudaDataPath | StagedDataPath | None = None


class CudaHardware(Hardware):
    """`prepare` takes the device where all ranks share one; else the device is known only with the rank.

    Then a standby makes itself at home on all of them (`warm_up`): whatever rank is lost, it need not begin with a
    context. That costs each GPU what a context and a ring take.
    """

    def __init__(self, config: WorkerConfig) -> None:
        super().__init__(config)
        self._sites: dict[int, _Site] = {}
        self._site: _Site | None = None
        self._caches: DeviceCaches | None = None
        self._rank = -1
        self._pinned: RegisteredRegion | None = None
        self._mirrors: list[SharedRegion] = []
        if config.data_path == "cuda-staged":
            size = StagedDataPath.mirror_bytes(config.spec.cache_layout)
            self._mirrors = [SharedRegion.attach(fd, size) for fd in config.arena_fds]
        self._weights: PinnedWeights | None = None
        if config.weight_fds:
            self._weights = PinnedWeights(config.weight_fds, config.weight_bytes)

    def prepare(self, model: ShardedModel, communicator: Communicator) -> None:
        """Context, streams, libraries, kernels, the parity store pinned, and the weights that are there already."""
        _deterministic()
        if len(set(self.config.devices)) == 1:
            self._settle(self.config.devices[0], model, communicator)
            self._pin_weights()

    @property
    def waits_warm(self) -> bool:
        return len(set(self.config.devices)) > 1

    def warm_up(self, model: ShardedModel, communicator: Communicator) -> None:
        """Everything but the weights, on every GPU that a rank lives on."""
        for index in dict.fromkeys(self.config.devices):
            try:
                self._settle(index, model, communicator)
            except (CudaError, torch.OutOfMemoryError) as error:  # beside ranks that fill it: only slower later
                log.warning("a standby can't prepare on GPU %d: %s", index, error)
        self._pin_weights()

    def load(self, model: ShardedModel, rank: int, communicator: Communicator) -> int:
        self._rank = rank
        index = self.config.devices[rank]
        if index not in self._sites:
            self._settle(index, model, communicator)
        self._site = site = self._sites[index]
        for other in self._sites.values():
            if other is not site and other.path is not None:
                other.path.close()
        self._sites = {index: site}
        torch.cuda.empty_cache()
        # Last of all: closing the others has made them the current ones.
        torch.cuda.set_device(index)
        torch.cuda.set_stream(site.stream)  # type: ignore[arg-type]
        if site.path is None and self.store is not None and self.code is not None:
            site.path = self._make_path(index, site.runtime, self.store, self.code)
        self.attention, self.path = site.attention, site.path
        if self._weights is not None:
            self._weights.copy_by(site.runtime)
        return model.load(rank, site.runtime.device, self._weights)

    def join(self) -> bytes:
        """See `Hardware.join`; raises `DeviceMemoryError` if the GPU has no room, `PeerAccessError` without IPC."""
        assert self._site is not None
        path = self._site.path
        if self._caches is None:
            self._caches = DeviceCaches(self._site.runtime, self.config.spec.cache_layout.total_bytes)
            if isinstance(path, StagedDataPath):
                path.connect(self._rank, self._caches.own)
        if not isinstance(path, CudaDataPath):
            return b""
        if self.config.spec.tensor_parallel_size == 1:  # nobody to share with, so CUDA need not be able to
            path.connect(self._rank, [self._caches.own])
            return b""
        return self._caches.own.handle

    def cache(self) -> torch.Tensor:
        assert self._caches is not None
        return self._caches.own.tensor

    def attach(self, handles: Sequence[bytes]) -> None:
        """See `Hardware.attach`; raises `PeerAccessError` for a peer that has died since."""
        assert self._caches is not None
        assert self._site is not None
        assert isinstance(self._site.path, CudaDataPath)
        self._site.path.connect(self._rank, self._caches.attach(self._rank, handles))

    def release(self) -> None:
        if self._site is not None:
            self._site.runtime.current_stream().synchronize()
        if self._caches is not None:
            self._caches.release()

    # ---- the devices

    def _settle(self, index: int, model: ShardedModel, communicator: Communicator) -> None:
        """Be ready to be a rank on the GPU `index`."""
        torch.cuda.set_device(index)
        runtime = CudaRuntime(index)
        # A stream above the flushes' one: they yield to it.
        stream = runtime.stream()
        torch.cuda.set_stream(stream)  # type: ignore[arg-type]
        if not self._sites:
            communicator.warm_up()
        site = _Site(runtime, stream, self._choose_attention(runtime.device))
        try:
            rehearse(model, communicator, runtime.device, site.attention)
        except torch.OutOfMemoryError as error:  # a standby beside ranks that fill the GPU: only slower later
            log.warning("no room on %s to load the model's kernels in advance: %s", runtime.device, error)
        if self.store is not None and self.code is not None:
            site.path = self._make_path(index, runtime, self.store, self.code)
        self._sites[index] = site

    def _pin_weights(self) -> None:
        """For all devices at once, by any of them."""
        if self._weights is not None and self._sites:
            self._weights.pin(next(iter(self._sites.values())).runtime)

    def _make_path(
        self, index: int, runtime: CudaRuntime, store: ParityStore, code: Code
    ) -> CudaDataPath | StagedDataPath | None:
        spec, layout = self.config.spec, self.config.spec.cache_layout
        if self.config.data_path == "cuda-staged":
            if self._rank < 0 and self.waits_warm:
                return None  # its mirrors are pinned for one device
            return StagedDataPath(
                runtime=runtime,
                store=store,
                code=code,
                layout=layout,
                shard_map=spec.shard_map,
                mirrors=self._mirrors,
            )
        if self._pinned is None and not isinstance(store, FileStore):
            self._pinned = pin_payload(runtime, store)
        path = CudaDataPath(
            runtime=runtime,
            store=store,
            code=code,
            layout=layout,
            shard_map=spec.shard_map,
            pinned=self._pinned,
        )
        # The loss of any one rank, which is what mostly happens; other patterns are compiled when they do.
        for rank, home in enumerate(self.config.devices):
            if home == index and self._rank in (-1, rank):
                path.warm_up((rank,), (rank,))
        return path

    def _choose_attention(self, device: torch.device) -> str:
        spec = self.config.spec
        kind, _ = varlen.choose(
            device=device.type,
            dtype=spec.torch_dtype,
            head_dim=spec.head_dim,
            block_size=spec.block_size,
            accepts=varlen.parameters(),
        )
        while kind != varlen.SDPA:
            wrong = varlen.verify(
                kind,
                heads=spec.num_heads // spec.tensor_parallel_size,
                kv_heads=spec.kv_heads_per_rank,
                head_dim=spec.head_dim,
                block_size=spec.block_size,
                dtype=spec.torch_dtype,
                device=device,
            )
            if wrong is None:
                break
            log.warning("attention: %s", wrong)
            kind = varlen.GATHERED if kind == varlen.PAGED else varlen.SDPA
        return kind


class PinnedWeights(HostWeights):
    """The ranks' weights in host memory, pinned for one device as far as they were there when it was started."""

    def __init__(self, fds: Sequence[int], nbytes: int) -> None:
        super().__init__(fds, nbytes)
        self._runtime: CudaRuntime | None = None
        self._pinned: dict[int, RegisteredRegion] = {}

    def pin(self, runtime: CudaRuntime) -> None:
        """Pin what is filled; what the driver refuses is copied unpinned, slower."""
        for rank in self.ranks:
            if self.filled(rank):
                try:
                    self._pinned[rank] = RegisteredRegion(runtime, self.region(rank))
                except CudaError as error:
                    log.warning("the weights of rank %d stay unpinned: %s", rank, error)
                    return

    def copy_by(self, runtime: CudaRuntime) -> None:
        """From now on copies go to this device; what is pinned is so for all."""
        self._runtime = runtime

    def copy_to(self, target: torch.Tensor, rank: int) -> None:
        """See `HostWeights.copy_to`."""
        pinned, runtime = self._pinned.get(rank), self._runtime
        if pinned is None or runtime is None:
            super().copy_to(target, rank)
            return
        stream = runtime.current_stream()
        for address, nbytes in pinned.split(pinned.address, target.numel()):
            runtime.copy(target.data_ptr() + address - pinned.address, address, nbytes, stream)
        stream.synchronize()


def _deterministic() -> None:
    """The same batch gives the same bits in every process: what a replay and the oracle rest on."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    # cuDNN's attention makes a plan for every new length, at each step of each sequence.
    torch.backends.cuda.enable_cudnn_sdp(False)
