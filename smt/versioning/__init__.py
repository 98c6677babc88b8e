"""Data, runs and tables in DVC: Snakemake makes them, DVC records and carries them."""
