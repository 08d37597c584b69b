# SPDX-License-Identifier: MIT
"""One rank of an engine: its process group, plan, weights and runner."""

import os

import torch

from .checkpoint import open_checkpoint
from .collectives import Collectives
from .config import EngineConfig
from .model_spec import ModelSpec
from .ops import LayerState
from .runner import Runner, block_bytes
from .sharding import Plan
from .weights import Progress, load_weights

# Of the memory that is free when weights are in, the part that all ranks of a machine together
# give to keys and values if the operator says nothing.
CACHE_SHARE = 0.4


class CacheSizeError(ValueError):
    """There is no room for even one request's keys and values."""


def load_rank(
    engine: EngineConfig,
    rank: int,
    rendezvous: str,
    progress: Progress = lambda done, total: None,
) -> Runner:
    """Bring up rank `rank` of `engine.tp`; ranks meet at `rendezvous`, an init method of torch.

    Raises:
        ValueError: as `ModelSpec.of`, `ModelSpec.plan` and `load_weights` do.
        CacheSizeError: the cache would hold no request.
    """
    torch.set_num_threads(engine.threads or max(1, (os.cpu_count() or 1) // engine.tp))
    spec = ModelSpec.of(engine)
    plan = spec.plan()
    with open_checkpoint(spec.path) as checkpoint:
        packs = load_weights(plan, spec.family.hf(spec.config), checkpoint, rank, progress)
    num_blocks = _num_blocks(engine, spec, plan)
    collectives = Collectives.join(plan.groups, engine.tp, rank, rendezvous)
    return Runner.of(
        plan,
        packs,
        collectives,
        num_blocks=num_blocks,
        block_size=spec.block_size,
        num_slots=engine.max_running,
        max_model_len=spec.max_model_len,
        host_blocks=_host_blocks(engine, plan),
    )


def _num_blocks(engine: EngineConfig, spec: ModelSpec, plan: Plan) -> int:
    """Return the blocks of this rank; the scheduler runs with the smallest of all ranks'."""
    size = block_bytes(plan)
    longest = -(-spec.max_model_len // spec.block_size)
    if engine.num_blocks:
        blocks = engine.num_blocks
    elif engine.kv_cache_bytes:
        blocks = engine.kv_cache_bytes // size
    else:
        share = int(_free_memory() * CACHE_SHARE / engine.tp)
        # More than every slot at full length would never be used.
        blocks = min(share // size, longest * engine.max_running + 1)
    if blocks < 2:
        raise CacheSizeError(
            f"the KV cache has {blocks} blocks of {spec.block_size} tokens ({size} bytes each), of "
            f"which one is scratch; give --kv-cache-bytes at least {2 * size}, or free memory"
        )
    stateful = any(isinstance(layer, LayerState) for layer in plan.caches)
    if stateful and blocks < engine.max_running:
        raise CacheSizeError(
            f"{blocks} blocks hold no state for each of max_running = {engine.max_running} "
            f"requests; give --max-running at most {blocks}, or the cache more memory"
        )
    return blocks


def _host_blocks(engine: EngineConfig, plan: Plan) -> int:
    """Return the blocks of this rank's host tier."""
    size = block_bytes(plan)
    if engine.host_kv and engine.host_kv < size:
        raise CacheSizeError(
            f"host_kv = {engine.host_kv} bytes holds no block of {engine.block_size} tokens "
            f"({size} bytes); give --host-kv more, or 0 for no host tier"
        )
    free = _free_memory()
    if engine.host_kv * engine.tp > free:
        raise CacheSizeError(
            f"host_kv = {engine.host_kv} bytes for each of {engine.tp} ranks is more than the "
            f"{free} bytes that are free; give --host-kv less"
        )
    return engine.host_kv // size


def _free_memory() -> int:
    """Return the bytes that can be allocated without swapping, cgroup limits included."""
    with open("/proc/meminfo") as file:
        fields = dict(line.split(":", 1) for line in file)
    free = int(fields["MemAvailable"].split()[0]) * 1024
    try:
        with (
            open("/sys/fs/cgroup/memory.max") as limit,
            open("/sys/fs/cgroup/memory.current") as current,
        ):
            maximum = limit.read().strip()
            if maximum != "max":
                free = min(free, int(maximum) - int(current.read()))
    except FileNotFoundError:  # no cgroup v2: the machine's own figure stands
        pass
    return max(free, 0)
