"""How every run of a scale stands: from SLURM's queue, and from what runs leave on disk."""
