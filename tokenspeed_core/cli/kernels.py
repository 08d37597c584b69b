# SPDX-License-Identifier: MIT
"""`tokenspeed kernels`: which kernels there are, which would run, whether and how fast they do."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

HELP = "list, explain, check or time the kernels of this machine"
DESCRIPTION = (
    "list: every kernel of every op; explain: which one an op runs here, why not the others, and "
    "what was measured, on released machines or by --kernels tuned; "
    "check: each kernel against the torch reference in float64 on random data, exit 1 if one "
    "differs; bench: the time of each beside the least time that its bytes take."
)
_DTYPES = ("float32", "bfloat16", "float16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the action, the device and the sizes."""
    parser.add_argument("action", choices=("list", "explain", "check", "bench"))
    parser.add_argument("op", nargs="?", help="only this op")
    parser.add_argument("--device", default=None, help="cpu or cuda (default: cuda if it is here)")
    parser.add_argument("--dtype", choices=_DTYPES, default="bfloat16")
    parser.add_argument("--tokens", type=int, default=1, metavar="N", help="of a case (default 1)")
    parser.add_argument(
        "--width", type=int, default=1024, metavar="D", help="of the model (default 1024)"
    )
    parser.add_argument(
        "--bandwidth",
        type=float,
        default=None,
        metavar="TB/s",
        help="of the memory; bench then prints the least time that a kernel's bytes take",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print a row for each kernel."""
    import torch

    from .. import ops  # noqa: F401  (registers every backend)
    from ..kernels.case import TOLERANCE, cases, microseconds
    from ..kernels.registry import NoKernelError, load_plug_ins, operations
    from ..kernels.tuning import SHIPPED, TABLE
    from ..rank import tuning_file

    load_plug_ins()
    TABLE.load(SHIPPED)
    TABLE.load(tuning_file())

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, arguments.dtype)
    chosen = [op for op in operations() if arguments.op in (None, op)]
    if not chosen:
        raise NoKernelError(
            f"no kernel is registered for an op {arguments.op!r}; ops: {', '.join(operations())}"
        )
    if arguments.action in ("list", "explain"):
        for op in chosen:
            _describe(op, device, dtype, explains=arguments.action == "explain")
        return 0
    failed = 0
    for case in cases(device, dtype, arguments.tokens, arguments.width):
        if case.op not in chosen:
            continue
        for kernel in case.kernels():
            row = f"{case.op:<16} {kernel.backend:<8} {case.sizes:<28}"
            if arguments.action == "check":
                error = case.error(kernel)
                holds = error < TOLERANCE[dtype]
                failed += not holds
                print(f"{row} error {error:.1e}{'' if holds else '  DIFFERS'}", flush=True)
                continue
            spent = microseconds(lambda k=kernel, c=case: k.run(*c.args), device)  # type: ignore[misc]
            floor = ""
            if arguments.bandwidth:
                floor = f"  floor {case.bytes / arguments.bandwidth / 1e6:9.2f} us"
            print(f"{row} {spent:9.2f} us{floor}", flush=True)
    if arguments.action == "check":
        print(f"{failed} differ" if failed else f"all hold on {device}")
    return 1 if failed else 0


def _describe(op: str, device: str, dtype: "torch.dtype", explains: bool) -> None:
    """Print the kernels of an op, those that are legal here first in order of preference."""
    from ..kernels.registry import candidates
    from ..kernels.tuning import TABLE, explained

    kernels = sorted(candidates(op), key=lambda kernel: -kernel.preference)
    legal = [kernel for kernel in kernels if kernel.supports(device, dtype)]
    for kernel in kernels:
        runs = "contests" if kernel.contests else "legal"
        state = "not legal" if kernel not in legal else "runs" if kernel is legal[0] else runs
        features = ", ".join(sorted(kernel.features))
        line = f"{op:<24} {kernel.backend:<8} {state:<10} {features}".rstrip()
        if explains and kernel not in legal:
            line += f"  (its predicate refuses {device} with {dtype})"
        elif explains and kernel is not legal[0]:
            line += f"  (preference {kernel.preference} < {legal[0].preference})"
        print(line)
    for line in explained(op, TABLE.times) if explains else ():
        print(line)
