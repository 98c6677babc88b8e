"""A trainer of twenty lines: counts steps, saves on SIGUSR2 or SIGTERM, and asks to go on.

It follows what the plugin's documents ask of a command, and knows nothing else of this project.
Usage: trainer.py STATE STEPS [ignore | stuck]; where STEPS is `told`, it trains until there is a
file STATE.finish.
"""

import os
import signal
import sys
import time
from pathlib import Path

state, manner = Path(sys.argv[1]), "".join(sys.argv[3:])
steps = None if sys.argv[2] == "told" else int(sys.argv[2])
told = Path(f"{state}.finish")
stop: list[int] = []
for number in (signal.SIGUSR2, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN if manner == "ignore" else lambda n, _: stop.append(n))

step = int(state.read_text()) if state.exists() else 0
with Path(f"{state}.starts").open("a") as starts:
    starts.write(f"{step} {os.environ.get('SLURM_JOB_ID')}\n")
print(f"trainer begins at step {step}", flush=True)


def is_finished() -> bool:
    return told.exists() if steps is None else step >= steps


def save() -> None:
    draft = state.with_name(state.name + ".draft")
    draft.write_text(str(step))
    draft.replace(state)
    Path(os.environ["SNAKEMAKE_SUBMITIT_PROGRESS"]).write_text(f"step {step}")


while not (finished := is_finished()) and not stop:
    time.sleep(0.03)
    if manner != "stuck":
        step += 1
    if step % 10 == 0:
        save()
save()
if not finished:
    print(f"trainer saved step {step}", flush=True)
    Path(os.environ["SNAKEMAKE_SUBMITIT_RESUME"]).write_text(f"step {step}")
    sys.exit(75)
