"""The jobs of `submission.py` by submitit alone, without a DAG.

`python submission_alone.py loop COUNT` submits one after the other, `array COUNT` all at once. As
quick as submitit can be: no pause between two jobs, no srun inside them, a look for results every
tenth of a second.
"""

import os
import sys
import time
from pathlib import Path

import submitit


def job(number: int) -> None:
    """Record that this job has run, as the rule of the toy workflow does, and make its output."""
    with Path("ran", str(number)).open("a") as file:
        file.write(f"{os.environ['SLURM_JOB_ID']} {time.time()}\n")
    Path("out", str(number)).touch()


def main() -> None:
    """Submit all jobs, one by one or as one array, and wait for them."""
    mode, numbers = sys.argv[1], range(int(sys.argv[2]))
    Path("out").mkdir()
    executor = submitit.SlurmExecutor("jobs")
    executor._throttling = 0.0  # it would sleep for 0.2 s before each job
    executor.update_parameters(
        time=5, nodes=1, ntasks_per_node=1, cpus_per_task=1, mem="500M", use_srun=False,
        array_parallelism=len(numbers),
    )  # fmt: skip
    jobs = (
        executor.map_array(job, numbers)
        if mode == "array"
        else [executor.submit(job, number) for number in numbers]
    )
    results = [submitted.paths.result_pickle for submitted in jobs]
    while not all(path.exists() for path in results):
        time.sleep(0.1)
    for submitted in jobs:
        submitted.result()


if __name__ == "__main__":
    main()
