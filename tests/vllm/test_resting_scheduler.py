"""vLLM's scheduler with blocks that rest, driven by hand: no worker, the answers are made up."""

import pytest

pytest.importorskip("vllm")

from vllm.engine.arg_utils import EngineArgs
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from ghostserve.vllm.scheduler import GhostServeScheduler, ProtectedOutput
from ghostserve.vllm.support import SCHEDULER, WORKER
from vllm import SamplingParams

BLOCK = 32


@pytest.fixture(scope="module")
def config(llama, vllm_environment):
    init_none_hash(sha256)
    return EngineArgs(
        model=str(llama),
        tensor_parallel_size=2,
        enforce_eager=True,
        block_size=BLOCK,
        kv_cache_memory_bytes=64 << 20,
        max_model_len=256,
        max_num_batched_tokens=256,
        disable_log_stats=True,
        distributed_executor_backend="ghostserve.vllm.executor.GhostServeExecutor",
        worker_cls=WORKER,
        scheduler_cls=SCHEDULER,
    ).create_engine_config()


def make(config, blocks=16, kind=GhostServeScheduler):
    config.cache_config.num_gpu_blocks = blocks
    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=4, head_size=64, dtype=config.model_config.dtype)
    caches = KVCacheConfig(num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["l"], spec)])
    return kind(config, caches, StructuredOutputManager(config), block_size=BLOCK)


def request(name, tokens, max_tokens=8):
    """Requests share no prefix."""
    params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    hasher = get_request_block_hasher(BLOCK, sha256)
    return Request(name, [5 + (ord(name) * 17 + i) % 250 for i in range(tokens)], params, None, block_hasher=hasher)


def answer(scheduled, token=7):
    names = list(scheduled.num_scheduled_tokens)
    return ModelRunnerOutput(names, {name: i for i, name in enumerate(names)}, [[token] for _ in names])


def run(scheduler, *, settled, losses=0):
    """One step, answered; `settled`: steps that are never run again."""
    scheduled = scheduler.schedule()
    output = ProtectedOutput.of(answer(scheduled), settled=settled, losses=losses)
    scheduler.update_from_output(scheduled, output)
    return scheduled


def free(scheduler):
    return scheduler.kv_cache_manager.block_pool.get_num_free_blocks()


def test_blocks_of_a_finished_request_rest_until_its_steps_are_settled(config):
    scheduler = make(config)
    before = free(scheduler)
    scheduler.add_request(request("a", 40, max_tokens=2))
    run(scheduler, settled=0)
    run(scheduler, settled=0)
    assert "a" not in scheduler.requests
    assert free(scheduler) < before
    scheduler.add_request(request("b", 5))
    run(scheduler, settled=1)
    assert free(scheduler) < before - 1, "the second step of a may still be run again"
    run(scheduler, settled=2)
    assert free(scheduler) == before - 1


def test_stock_frees_them_at_once(config):
    """The twin: without the plug-in's scheduler the assertion above does not hold."""
    scheduler = make(config, kind=Scheduler)
    before = free(scheduler)
    scheduler.add_request(request("a", 40, max_tokens=2))
    for _ in range(2):
        scheduled = scheduler.schedule()
        scheduler.update_from_output(scheduled, answer(scheduled))
    assert free(scheduler) == before


def test_an_aborted_request_rests_as_well(config):
    scheduler = make(config)
    before = free(scheduler)
    scheduler.add_request(request("a", 40))
    run(scheduler, settled=0)
    scheduler.finish_requests(["a"], RequestStatus.FINISHED_ABORTED)
    assert free(scheduler) < before


def test_who_waits_for_resting_blocks_gets_them_when_steps_settle(config):
    scheduler = make(config, blocks=4)  # one of them is vLLM's null block
    scheduler.add_request(request("a", 60, max_tokens=1))
    run(scheduler, settled=0)
    scheduler.add_request(request("b", 60, max_tokens=1))
    assert run(scheduler, settled=0).total_num_scheduled_tokens == 0
    assert run(scheduler, settled=1).total_num_scheduled_tokens == 0, "settled is told with an answer, and used next"
    assert run(scheduler, settled=1).num_scheduled_tokens == {"b": 60}


def test_a_loss_of_all_kv_makes_every_running_request_start_over_once(config):
    scheduler = make(config)
    scheduler.add_request(request("a", 40))
    run(scheduler, settled=0)
    lost = scheduler.schedule()
    assert lost.known_losses == 0
    scheduler.update_from_output(lost, ProtectedOutput.lost(settled=1, losses=1))
    again = scheduler.schedule()
    assert again.known_losses == 1
    assert again.num_scheduled_tokens == {"a": 41}, "its tokens are kept, its KV is not"
    scheduler.update_from_output(again, ProtectedOutput.of(answer(again), settled=1, losses=1))
    assert run(scheduler, settled=2, losses=1).num_scheduled_tokens == {"a": 1}, "the same loss is told once"


def test_nothing_cached_is_used_after_a_loss(config):
    scheduler = make(config)
    scheduler.add_request(request("a", 64, max_tokens=1))
    run(scheduler, settled=0)
    twin = make(config)
    twin.add_request(request("a", 64, max_tokens=1))
    run(twin, settled=0)
    for kind, losses in ((scheduler, 1), (twin, 0)):
        kind.add_request(request("b", 5, max_tokens=1))
        scheduled = kind.schedule()
        kind.update_from_output(scheduled, ProtectedOutput.of(answer(scheduled), settled=2, losses=losses))
        kind.add_request(request("a", 64, max_tokens=1))
    assert scheduler.schedule().num_scheduled_tokens["a"] == 64
    assert twin.schedule().num_scheduled_tokens["a"] == 32, "without a loss its first block is found"


def test_an_idle_prefix_cache_can_be_reset(config):
    scheduler = make(config)
    scheduler.add_request(request("a", 64, max_tokens=1))
    run(scheduler, settled=0)
    assert scheduler.reset_prefix_cache()


def test_what_can_not_be_protected_gets_vllms_own_scheduler(config):
    config.scheduler_config.disable_hybrid_kv_cache_manager = False
    config.parallel_config.data_parallel_size = 2
    try:
        assert type(make(config)) is Scheduler
    finally:
        config.parallel_config.data_parallel_size = 1
