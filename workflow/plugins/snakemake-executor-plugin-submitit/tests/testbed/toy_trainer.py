"""A toy trainer: counts steps, saves on SIGUSR2 or SIGTERM, and requests a requeue.

It implements what the plugin's documents say of a command, and uses nothing else of this project.
Usage: toy_trainer.py STATE STEPS [ignore | stuck]; if STEPS is `endless`, it trains until the file
STATE.finish exists. Once there is a file STATE.allocate, it asks for a GB of memory.
"""

import os
import signal
import sys
import time
from pathlib import Path

state, mode = Path(sys.argv[1]), "".join(sys.argv[3:])
steps = None if sys.argv[2] == "endless" else int(sys.argv[2])
finish_file, allocate_file = Path(f"{state}.finish"), Path(f"{state}.allocate")
received: list[int] = []
for number in (signal.SIGUSR2, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN if mode == "ignore" else lambda n, _: received.append(n))

step = int(state.read_text()) if state.exists() else 0
with Path(f"{state}.starts").open("a") as starts:
    starts.write(f"{step} {os.environ.get('SLURM_JOB_ID')}\n")
print(f"trainer begins at step {step}", flush=True)


def is_finished() -> bool:
    return finish_file.exists() if steps is None else step >= steps


def save() -> None:
    temporary = state.with_name(state.name + ".draft")
    temporary.write_text(str(step))
    temporary.replace(state)
    Path(os.environ["SNAKEMAKE_SUBMITIT_PROGRESS"]).write_text(f"step {step}")


while not (complete := is_finished()) and not received:
    time.sleep(0.03)
    if allocate_file.exists():
        memory = bytearray(1 << 30)
    if mode != "stuck":
        step += 1
    if step % 10 == 0:
        save()
save()
if not complete:
    print(f"trainer saved step {step}", flush=True)
    Path(os.environ["SNAKEMAKE_SUBMITIT_RESUME"]).write_text(f"step {step}")
    sys.exit(75)
