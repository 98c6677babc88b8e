"""Versioning with DVC: Snakemake makes data, runs and tables, and DVC records them."""
