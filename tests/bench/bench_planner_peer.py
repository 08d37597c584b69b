# SPDX-License-Identifier: MIT
"""The step of the `tokenspeed-scheduler` package (0.1.42), for bench_planner.py.

Runs in an interpreter that has that package, which needs nothing of ours:
`python bench_planner_peer.py RUNNING PASSES` prints one median of microseconds a pass.  A step is
next_execution_plan, reading ids, lengths and block tables, one result event a request, advance.
"""

import json
import statistics
import sys
import time

import tokenspeed_scheduler as peer

PAGE = 16
PROMPT = 512
STEPS = 300


def make(running: int, left: dict[str, int]) -> peer.Scheduler:
    """Submit the requests; `left` takes the prompt tokens of each."""
    config = peer.SchedulerConfig()
    pages = running * 120 + 200
    config.cache_groups = [
        peer.CacheGroupConfig(
            group_id="full",
            block_granularity=PAGE,
            total_pages=pages,
            attn_kind=peer.AttnKind.Full,
        )
    ]
    config.num_device_pages = pages
    config.num_snapshot_pages = 1
    config.prefix_granularity = PAGE
    config.max_batch_size = running
    config.max_scheduled_tokens = 8192 + running
    config.disable_l2_cache = True
    scheduler = peer.Scheduler(config)
    for index in range(running):
        spec = peer.RequestSpec()
        spec.request_id = f"r{index:05d}"
        spec.tokens = [(index * 7919 + i * 31) % 32_000 for i in range(PROMPT + index % PAGE)]
        spec.max_new_tokens = 1200
        left[spec.request_id] = len(spec.tokens)
        scheduler.submit_requests([spec])
    return scheduler


def step(scheduler: peer.Scheduler, left: dict[str, int]) -> int:
    """One step; the number of its rows. `left`: prompt tokens still to be computed, by request."""
    plan = scheduler.next_execution_plan()
    if not plan.forward:
        return 0
    batch = plan.forward[0]
    ids, lengths, _ = list(batch.request_ids), list(batch.input_lengths), batch.block_tables_arrays
    event = peer.ExecutionEvent()
    for request, length in zip(ids, lengths, strict=True):
        result = peer.ForwardEvent.ExtendResult()
        result.request_id = request
        left_now = left.pop(request, length) - length if left else 0
        if left_now > 0:
            left[request] = left_now
        result.tokens = [] if left_now > 0 else [7]
        event.add_event(result)
    scheduler.advance(event)
    return len(lengths)


def main() -> None:
    running, passes = int(sys.argv[1]), int(sys.argv[2])
    left: dict[str, int] = {}
    scheduler = make(running, left)
    for _ in range(100_000):
        if scheduler.decoding_size() == running:
            break
        step(scheduler, left)
    for _ in range(20):
        assert step(scheduler, left) == running
    medians = []
    for _ in range(passes):
        times = []
        for _ in range(STEPS // passes if running > 300 else STEPS):
            start = time.perf_counter()
            step(scheduler, left)
            times.append((time.perf_counter() - start) * 1e6)
        medians.append(statistics.median(times))
    print(json.dumps(medians))


if __name__ == "__main__":
    main()
