# SPDX-License-Identifier: MIT
"""The step of vLLM's scheduler (0.32, V1), for bench_planner.py.

Runs in an interpreter that has vLLM, or its CPU build, which needs nothing of ours:
`python bench_planner_vllm.py RUNNING PASSES` prints one median of microseconds a pass.  A step is
schedule, reading the scheduled rows, update_from_output; making the runner's output is not timed.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from vllm import SamplingParams
from vllm.config import CacheConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

PAGE = 16
PROMPT = 512
STEPS = 300
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 1,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "vocab_size": 32_000,
    "torch_dtype": "float32",
}


def make(running: int, folder: str) -> Scheduler:
    Path(folder, "config.json").write_text(json.dumps(MODEL))
    pages = running * 120 + 200
    cache = CacheConfig(block_size=PAGE, enable_prefix_caching=True)
    cache.num_gpu_blocks = pages
    config = VllmConfig(
        model_config=ModelConfig(model=folder, skip_tokenizer_init=True, max_model_len=4096),
        cache_config=cache,
        scheduler_config=SchedulerConfig(
            max_num_seqs=running,
            max_num_batched_tokens=8192 + running,
            max_model_len=4096,
            is_encoder_decoder=False,
            async_scheduling=False,
        ),
    )
    spec = FullAttentionSpec(block_size=PAGE, num_kv_heads=1, head_size=1, dtype=torch.float32)
    scheduler = Scheduler(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(pages, [], [KVCacheGroupSpec(["layer"], spec)]),
        structured_output_manager=StructuredOutputManager(config),
        block_size=PAGE,
    )
    init_none_hash(sha256)
    hasher = get_request_block_hasher(PAGE, sha256)
    for index in range(running):
        scheduler.add_request(
            Request(
                request_id=f"r{index:05d}",
                prompt_token_ids=[
                    (index * 7919 + i * 31) % 32_000 for i in range(PROMPT + index % PAGE)
                ],
                sampling_params=SamplingParams(max_tokens=1200, ignore_eos=True),
                pooling_params=None,
                block_hasher=hasher,
            )
        )
    return scheduler


def step(scheduler: Scheduler) -> tuple[int, float]:
    """Tokens of the step, and its microseconds."""
    start = time.perf_counter()
    plan = scheduler.schedule()
    rows = list(plan.num_scheduled_tokens.items())
    scheduled = time.perf_counter()
    ids = [request for request, _ in rows]
    computing = {request for request, _ in rows if scheduler.requests[request].is_prefill_chunk}
    output = ModelRunnerOutput(
        req_ids=ids,
        req_id_to_index={request: i for i, request in enumerate(ids)},
        sampled_token_ids=[[] if request in computing else [7] for request in ids],
    )
    resumed = time.perf_counter()
    scheduler.update_from_output(plan, output)
    done = time.perf_counter()
    return plan.total_num_scheduled_tokens, (scheduled - start + done - resumed) * 1e6


def main() -> None:
    running, passes = int(sys.argv[1]), int(sys.argv[2])
    with tempfile.TemporaryDirectory() as folder:
        scheduler = make(running, folder)
        for _ in range(100_000):
            if step(scheduler)[0] == running and len(scheduler.running) == running:
                break
        for _ in range(20):
            assert step(scheduler)[0] == running
        count = STEPS // passes if running > 100 else STEPS
        medians = [
            statistics.median(step(scheduler)[1] for _ in range(count)) for _ in range(passes)
        ]
    print(json.dumps(medians))


if __name__ == "__main__":
    main()
