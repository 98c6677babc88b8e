"""A toy trainer: counts steps, stops on SIGUSR2, and resumes when it is started again.

Usage: train.py DATA STATE STEPS MODEL
"""

import os
import signal
import sys
import time
from pathlib import Path

data, state, model = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[4])
steps = int(sys.argv[3])
stop = False


def request_stop(number: int, frame: object) -> None:
    """Let the loop below stop after the current step."""
    global stop
    stop = True


def save(step: int) -> None:
    """Save the state, and then report progress."""
    temporary = state.with_suffix(".draft")
    temporary.write_text(str(step))
    temporary.replace(state)  # atomic: a reader never sees half of it
    if "SNAKEMAKE_SUBMITIT_PROGRESS" in os.environ:  # not set by other executors
        Path(os.environ["SNAKEMAKE_SUBMITIT_PROGRESS"]).write_text(f"step {step}")


signal.signal(signal.SIGUSR2, request_stop)  # before the time limit, and before preemption
step = int(state.read_text()) if state.exists() else 0
print(f"begins at step {step} of {steps}", flush=True)
while step < steps and not stop:
    time.sleep(0.1)  # here a trainer would work
    step += 1
    if step % 10 == 0:
        save(step)
save(step)
if step < steps:
    print(f"stopped after step {step}", flush=True)
    sys.exit(75)  # any code but 0: the job is requeued, and resumes from the state
total = sum(map(int, data.read_text().split()))
model.write_text(f"{steps} steps, sum {total}\n")
print("done", flush=True)
