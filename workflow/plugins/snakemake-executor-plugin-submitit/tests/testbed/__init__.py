"""What tests of the executor share: a real SLURM on this host, and workflows that run on it."""
