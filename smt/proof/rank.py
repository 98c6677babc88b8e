"""What SLURM starts for each rank of a training: on its node, it runs the rank and kills it.

It talks with `smt.proof.slurm` through `srun`, in lines of JSON: commands come to all ranks on
stdin, and what happens goes back on stdout. Both take milliseconds, which a shared file system does
not promise, and an end of stdin tells that nobody waits for the training any more.
"""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any

from smt.engine.launch import free_port
from smt.proof.launch import kill_child, rank_log

_FOR_THE_TRAINING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
"""What SLURM sends to every process of a step, and the training answers."""


def main(log: Path, arguments: list[str]) -> None:
    """Run `smt ARGUMENTS` as the rank that SLURM says this is; it writes to its file beside `log`.

    Says {"rank", "step", "address", "port"} first, where rank 0 could be met, waits for
    {"meet": [address, port]}, and says {"rank", "node", "pid"} of the training. Obeys
    {"kill": signal, "rank": rank or null for all} and {"kill_worker": rank}, to which it answers
    {"rank", "worker": whether there was one}. Says {"rank", "code"} in the end, negative for a
    signal as in `subprocess`.

    Raises:
        OSError: `log` cannot be written here, or the training cannot be started.
    """
    for number in _FOR_THE_TRAINING:
        signal.signal(number, _stay)
    rank, commands = int(os.environ["SLURM_PROCID"]), io.FileIO(sys.stdin.fileno())
    with rank_log(log, rank).open("wb") as file:
        step = f"{os.environ['SLURM_JOB_ID']}.{os.environ['SLURM_STEP_ID']}"
        _say(rank, step=step, address=_address(), port=free_port())
        first = commands.readline()
        if not first:
            return
        process = subprocess.Popen(
            [sys.executable, "-m", "smt", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **_place(rank, *json.loads(first)["meet"])},
        )
    _say(rank, node=os.environ["SLURMD_NODENAME"], pid=process.pid)
    threading.Thread(target=_obey, args=(commands, rank, process), daemon=True).start()
    _say(rank, code=process.wait())


def _stay(number: int, frame: FrameType | None) -> None:
    """Live on: unlike a signal that is ignored, one with a handler is not ignored by children."""


def _place(rank: int, address: str, port: int) -> dict[str, str]:
    """Return the variables by which the ranks find each other, as `torchrun` sets them."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": os.environ["SLURM_NTASKS"],
        "LOCAL_RANK": os.environ["SLURM_LOCALID"],
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }


def _address() -> str:
    """Return this node's address on the way to `srun`; names of nodes may not resolve."""
    srun = os.environ["SLURM_LAUNCH_NODE_IPADDR"]
    family = socket.AF_INET6 if ":" in srun else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((srun, 1))  # sends nothing: it looks up the way
        address: str = probe.getsockname()[0]
        return address


def _obey(commands: Iterable[bytes], rank: int, process: "subprocess.Popen[bytes]") -> None:
    for line in commands:
        command = json.loads(line)
        if "kill" in command and command["rank"] in (rank, None):
            process.send_signal(command["kill"])
        elif command.get("kill_worker") == rank:
            _say(rank, worker=kill_child(process.pid))
    process.kill()


def _say(rank: int, **what: Any) -> None:
    # In one write, so that no line of another thread gets into it.
    os.write(1, f"{json.dumps({'rank': rank, **what})}\n".encode())


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), sys.argv[2:])
    except OSError as error:
        sys.exit(
            f"error: {os.environ.get('SLURMD_NODENAME')}: {error}; results have to lie in a folder "
            "that every node sees: smt --results DIR"
        )
