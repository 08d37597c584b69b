# SPDX-License-Identifier: MIT
"""Compiles kernels in processes beside this one, before anything is launched.

A compilation holds its interpreter for a second or two: threads would take turns.
"""

import hashlib
import json
import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import attrs
import torch
import triton
from torch.overrides import TorchFunctionMode
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

_log = logging.getLogger(__name__)


@attrs.frozen(eq=False)
class Source:
    """A kernel by module and name, with what its arguments and options make of it."""

    module: str
    name: str
    signature: dict[str, str]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], Any]
    options: dict[str, Any]

    def compile(self, target: GPUTarget) -> Any:
        """Compile for a target, which need not be here; the result stays in Triton's cache."""
        function = getattr(import_module(self.module), self.name)
        source = source_of(function, self.signature, self.constants, self.attributes)
        return triton.compile(source, target=target, options=self.options)


def source_of(
    function: Any,
    signature: dict[str, str],
    constants: dict[tuple[int, ...], Any],
    attributes: dict[tuple[int, ...], Any],
) -> Any:
    """Return what `triton.compile` takes of a kernel, in Triton's language or in Gluon's."""
    kind = ASTSource
    if function.is_gluon():
        from triton.experimental.gluon._runtime import GluonASTSource

        kind = GluonASTSource
    return kind(function, signature, constants, attributes)


def compile_ahead(
    launches: Callable[[], None], about: str, agreed: Callable[[bool], bool] = bool
) -> None:
    """Compile what `launches` launches, which is called with all launches left out.

    Once everything is in Triton's cache a stamp lies beside it, and next time nothing is done.
    `about` names what, kernels, device and versions aside, the launches depend on; `agreed` whether
    any rank has something to do.
    """
    target = triton.runtime.driver.active.get_current_target()
    stamp = Path(knobs.cache.dir) / f"tokenspeed-{_digest(about, str(target))}"
    if not agreed(not stamp.exists()):
        return
    started = time.monotonic()
    with _Compilers(target) as compilers:
        with recorded(compilers.start):
            launches()
        _log.info("start: finding launches took %.1f s", time.monotonic() - started)
    if not compilers.failures:
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.touch()


class _Compilers:
    """Processes that compile side by side, one a core; the end of the context awaits them.

    What fails is only logged: its launch will fail too, and say more.
    """

    def __init__(self, target: GPUTarget) -> None:
        self._target = target
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([f"{__package__}.attention"])
        cores = len(os.sched_getaffinity(0))
        self._pool = ProcessPoolExecutor(cores, context)
        # The first process is there when its imports are done: threads wait for it, not launches.
        self._threads = ThreadPoolExecutor(cores)
        self._started: list[tuple[Source, Future[None]]] = []
        self.failures = 0

    def start(self, source: Source) -> None:
        self._started.append((source, self._threads.submit(self._run, source)))

    def _run(self, source: Source) -> None:
        self._pool.submit(_compile, source, self._target).result()

    def __enter__(self) -> "_Compilers":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._pool, self._threads:
            for source, done in self._started if kind is None else ():
                try:
                    done.result()
                except Exception as error:  # whatever a compiler, or its process, may die of
                    self.failures += 1
                    _log.warning("%s was not compiled ahead: %s", source.name, error)


def _compile(source: Source, target: GPUTarget) -> None:
    """Compile a kernel, and where there is a driver what calls it from the host."""
    made = source.compile(target)
    if torch.cuda.is_available():
        triton.runtime.driver.active.launcher_cls(made.src, made.metadata)


@contextmanager
def recorded(found: Callable[[Source], None]) -> Iterator[None]:
    """Tell what launches within would compile, and leave them out; new memory is zeros."""
    left_out: list[tuple[dict[str, Any], str]] = []

    def take(*, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        options = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in json.loads(compile["specialization_data"])["options"].items()
        }
        constants, attributes = compile["constants"], compile["configs"][0]
        found(Source(fn.module, fn.name, compile["signature"], constants, attributes, options))
        # To ask again at every launch would take longer than the compilers do.
        kernels = fn.jit_function.device_caches[compile["device"]][0]
        kernels[compile["key"]] = _LeftOut()
        left_out.append((kernels, compile["key"]))
        return True

    before = knobs.runtime.jit_cache_hook
    knobs.runtime.jit_cache_hook = take
    try:
        with _Zeroed():
            yield
    finally:
        knobs.runtime.jit_cache_hook = before
        for kernels, key in left_out:
            del kernels[key]


class _LeftOut:
    """Stands in for a kernel that is not compiled yet."""

    function = packed_metadata = None

    def launch_metadata(self, *_: object) -> None: ...
    def run(self, *_: object) -> None: ...


class _Zeroed(TorchFunctionMode):
    """Zeros where memory would be as it was: kernels left out leave indices there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        return made.zero_() if func in _UNDEFINED else made


_UNDEFINED = {
    torch.empty,
    torch.empty_like,
    torch.empty_strided,
    torch.Tensor.new_empty,
    torch.Tensor.new_empty_strided,
}


def _digest(*about: str) -> str:
    parts = (*about, triton.__version__, torch.__version__, _kernels())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


@cache
def _kernels() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
