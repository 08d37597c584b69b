# SPDX-License-Identifier: MIT
"""One rank of an engine: its process group, plan, weights and runner."""

import logging
from functools import partial
from pathlib import Path

import torch

from .block_groups import BlockGroups, block_groups
from .checkpoint import open_checkpoint
from .collectives import Collectives
from .config import ConfigError, EngineConfig
from .kernels import registry
from .kernels.tuning import SHIPPED, TABLE
from .model_source import cache_directory
from .model_spec import ModelSpec
from .rank_groups import RankGroups
from .runner import Runner
from .sharding import Mesh
from .start_clock import timed
from .warm_up import warm_up
from .weights import Progress, dummy_weights, load_weights

_log = logging.getLogger(__name__)

# Of the memory that is free when weights are in, the part that all ranks of a machine together
# give to keys and values if the operator says nothing.
CACHE_SHARE = 0.4
# A card's memory is ours.  Where steps cannot be run before there is a cache, the rest is theirs.
DEVICE_CACHE_SHARE = 0.9
# Of a card, for the nodes of captured graphs, fragments and libraries.
_SPARE_BYTES = 1 << 30


class CacheSizeError(ValueError):
    """There is no room for even one request's keys and values."""


def load_rank(
    engine: EngineConfig,
    rank: int,
    rendezvous: str,
    progress: Progress = lambda done, total: None,
) -> Runner:
    """Bring up rank `rank`; all ranks meet at `rendezvous`, an init method of torch.

    Raises:
        ValueError: as `ModelSpec.of`, `ModelSpec.plans` and `load_weights` do.
        CacheSizeError: the cache would hold no request.
    """
    # Torch's own count heeds the cores that are ours, and OMP_NUM_THREADS.
    torch.set_num_threads(engine.threads or max(1, torch.get_num_threads() // engine.num_ranks))
    spec = ModelSpec.of(engine)
    device = _device(engine, rank)
    if device.type == "cuda" and _in_float8(engine, spec) and _architecture(device) < (8, 9):
        raise ConfigError(
            f"this GPU has no float8 (it is of architecture {_architecture(device)}, 8.9 and newer "
            f"have); leave --kv-cache fp8 and --weights fp8 out, or give --weights plain"
        )
    _choose_kernels(engine, spec, device)
    with timed("the plan"):
        plans = spec.plans(device.type)
    whole, plans = plans.first, plans.of_rank(rank)
    groups = block_groups(whole, spec.block_size, spec.max_model_len, engine.state_interval)
    groups, plan = groups.of_rank(whole, rank), plans.first
    if plan.mesh.requests:
        _refuse_with_requests(engine, groups, device)
    with timed("weights"):
        if engine.load_format == "dummy":
            packs = dummy_weights(plan, rank, device, spec.weights)
        else:
            with open_checkpoint(spec.path) as checkpoint:
                sources = spec.family.hf(spec.config)
                packs = load_weights(
                    plan, sources, checkpoint, rank, progress, device, spec.weights
                )
    with timed("meeting the other ranks"):
        axes = {**plan.groups, **_request_groups(plan.mesh)}
        ranks = RankGroups.join(axes, engine.num_ranks, rank, rendezvous, device)
        collectives = Collectives.of(ranks)
    warms_up = device.type == "cuda" and len(groups) == 1
    if len(plans.plans) > 1:
        starts = ", ".join(map(str, plans.starts))
        _log.info("plans of steps by their tokens, each from: %s", starts)
    chooses = engine.num_ranks > 1 and not spec.embeds
    runner = Runner.of(
        plans,
        packs,
        collectives,
        ranks=ranks,
        groups=groups,
        num_blocks=1 if warms_up else ranks.smallest(_num_blocks(engine, spec, groups, device)),
        num_slots=engine.max_running,
        max_model_len=spec.max_model_len,
        host_blocks=_host_blocks(engine, groups),
        multiples=[way.multiple(spec.layout) for way in plans.ways],
        chosen=partial(spec.chosen, device_type=device.type) if chooses else None,
        embeds=spec.embeds,
    )
    if not warms_up:
        return runner
    with timed("kernels"):
        taken = warm_up(runner, engine.step_tokens)
    if TABLE.tunes and rank == 0:
        TABLE.save(tuning_file())
    _log.info("steps of %d tokens take %d MiB", engine.step_tokens, taken >> 20)
    return runner.with_blocks(ranks.smallest(_num_blocks(engine, spec, groups, device, taken)))


def _device(engine: EngineConfig, rank: int) -> torch.device:
    wanted = engine.device
    if wanted == "auto":
        wanted = "cuda" if engine.on_gpu and torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device = cuda, but torch finds no CUDA device; give --device cpu")
    if wanted == "cpu" or engine.num_ranks == 1:
        return torch.device(wanted)
    if torch.cuda.device_count() < engine.num_ranks:
        raise ConfigError(
            f"{engine.num_ranks} ranks need a GPU each, but torch finds "
            f"{torch.cuda.device_count()}; give fewer ranks, or --device cpu"
        )
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)  # where kernels go that no tensor leads elsewhere
    return device


def _request_groups(mesh: Mesh) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Return the ranks that differ by the requests they serve: they exchange tokens and blocks."""
    return {mesh.group(mesh.requests): mesh.groups(mesh.requests)} if mesh.requests else {}


def _refuse_with_requests(engine: EngineConfig, groups: BlockGroups, device: torch.device) -> None:
    """Refuse what is not built where ranks serve different requests."""
    kinds = ", ".join(group.kind.name for group in groups)
    for wrong, fix in (
        (device.type != "cpu", "--device cpu"),
        (engine.host_kv > 0, "--host-kv 0"),
        (len(groups) > 1, f"another model: its layers keep different things ({kinds})"),
    ):
        if wrong:
            raise ConfigError(
                f"layout = {engine.layout!r} spreads requests over ranks, which is served with "
                f"one kind of cache, on CPUs, without a host tier only; give {fix}, or leave "
                f"requests: out"
            )


def tuning_file() -> Path:
    """Return where measured kernels are kept."""
    return cache_directory() / "kernels.json"


def _choose_kernels(engine: EngineConfig, spec: ModelSpec, device: torch.device) -> None:
    """Load plug-ins, and what was measured or asked for.

    Raises:
        ConfigError: a kernel that was asked for is not legal here.
    """
    if found := registry.load_plug_ins():
        _log.info("kernels of %s", ", ".join(found))
    asked = [each.strip() for each in engine.kernels.split(",") if each.strip()]
    registry.tune("tuned" in asked)
    TABLE.load(SHIPPED)
    if TABLE.tunes and engine.num_ranks == 1:  # ranks might find different files
        TABLE.load(tuning_file())
    wanted = dict(each.split("=", 1) for each in asked if "=" in each)
    if unread := [each for each in asked if "=" not in each and each != "tuned"]:
        raise ConfigError(
            f"kernels = {engine.kernels!r} has {unread[0]!r}, which is neither OP=BACKEND nor tuned"
        )
    try:
        registry.prefer(wanted, device.type, spec.dtype)
    except registry.NoKernelError as error:
        raise ConfigError(f"kernels = {engine.kernels!r}: {error}") from error


def _in_float8(engine: EngineConfig, spec: ModelSpec) -> bool:
    return engine.kv_cache == "fp8" or spec.weights.startswith("fp8")


def _architecture(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _num_blocks(
    engine: EngineConfig,
    spec: ModelSpec,
    groups: BlockGroups,
    device: torch.device,
    taken: int | None = None,
) -> int:
    """Return how many blocks this rank has room for, parents with several groups.

    Steps have `taken` so many bytes beside, if that is known.
    """
    size = groups.parent_bytes
    longest = groups.parents(spec.max_model_len)
    if engine.num_blocks:
        blocks = engine.num_blocks
    elif engine.kv_cache_bytes:
        blocks = engine.kv_cache_bytes // size
    else:
        on_gpu = device.type == "cuda"
        free: int = torch.cuda.mem_get_info(device)[0] if on_gpu else _free_memory()
        if taken is not None and not engine.cache_percent:
            share = free - taken - _SPARE_BYTES
        else:
            usual = DEVICE_CACHE_SHARE if on_gpu else CACHE_SHARE
            # A GPU is one rank's; ranks on CPUs share the machine's memory.
            sharers = 1 if on_gpu else engine.num_ranks
            share = int(free * (engine.cache_percent / 100 or usual) / sharers)
        # More than every slot at full length would never be used.
        blocks = min(share // size, longest * engine.max_running + 1)
    if blocks < 2:
        steps = f"; steps of {engine.step_tokens} tokens take {taken} bytes" if taken else ""
        raise CacheSizeError(
            f"the KV cache has {max(blocks, 0)} blocks of {size} bytes, of which one is "
            f"scratch{steps}; give --kv-cache-bytes at least {2 * size}, or free memory"
        )
    return blocks


def _host_blocks(engine: EngineConfig, groups: BlockGroups) -> int:
    """Return the blocks of this rank's host tier, parents with several groups."""
    size = groups.parent_bytes
    if engine.host_kv and engine.host_kv < size:
        unit = (
            f"block of {engine.block_size} tokens" if len(groups) == 1 else "parent of its blocks"
        )
        raise CacheSizeError(
            f"host_kv = {engine.host_kv} bytes holds no {unit} ({size} bytes); give --host-kv "
            f"more, or 0 for no host tier"
        )
    free = _free_memory()
    if engine.host_kv * engine.num_ranks > free:
        raise CacheSizeError(
            f"host_kv = {engine.host_kv} bytes for each of {engine.num_ranks} ranks is more than "
            f"the {free} bytes that are free; give --host-kv less"
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
