"""SLURM's client and queue; cost estimates of runs: GPU-hours, memory, storage."""
