"""What `smt doctor` looks at before a first launch: SLURM, a node, data, MLflow, disk."""
