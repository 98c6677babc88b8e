"""`python -m smt.engine.exchange_check`: one of two processes that add up a tensor on this node.

A training of several GPUs exchanges gradients so. What keeps NCCL from working is often no fault
of a GPU: shared memory of a container, a network interface, two processes on one GPU.
"""

import os
import subprocess
import sys

import torch
import torch.distributed as dist

from smt.engine import distributed
from smt.engine.launch import free_port

_PROCESSES = 2
_TIMEOUT = 180.0
"""Seconds: imports of torch from a cold network disk, and NCCL's set-up."""
_SIZE = 2**20
"""Numbers that are added: more than NCCL sends through its buffers for small messages."""


def problem() -> str | None:
    """Start two processes here, with a GPU each if there are two; return why they fail, or None."""
    port = str(free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "smt.engine.exchange_check"], stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, env=_environment(rank, port), text=True,
        )
        for rank in range(_PROCESSES)
    ]  # fmt: skip
    try:
        errors = [process.communicate(timeout=_TIMEOUT)[1] for process in processes]
    except subprocess.TimeoutExpired:
        return f"no end of an exchange between two processes after {_TIMEOUT:.0f} s"
    finally:
        for process in processes:
            process.kill()
            process.wait()
    failures = (
        _last_line(text)
        for process, text in zip(processes, errors, strict=True)
        if process.returncode
    )
    return next(failures, None)


def _environment(rank: int, port: str) -> dict[str, str]:
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(_PROCESSES),
           "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # fmt: skip
    if torch.cuda.device_count() >= _PROCESSES:
        return {**os.environ, **own}
    # On the CPU, as processes that were given no GPU.
    others = {name: value for name, value in os.environ.items() if "GPU" not in name}
    return {**others, **own, "CUDA_VISIBLE_DEVICES": "-1"}


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else "a process ended without a message"


def main() -> None:
    """Be one of the processes: exit with a message where the sum is wrong or not to be had."""
    try:
        ranks = distributed.start(threads=1)
        values = torch.full((_SIZE,), float(ranks.rank + 1), device=ranks.device)
        dist.all_reduce(values)
        ranks.barrier()
        distributed.stop()
    except Exception as error:
        distributed.refuse_misconfiguration(error)
        raise
    if not bool((values == 3).all()):
        sys.exit("a sum over two processes is wrong")


if __name__ == "__main__":
    main()
