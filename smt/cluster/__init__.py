"""SLURM's answers, and what runs cost: GPU hours, memory, storage."""
