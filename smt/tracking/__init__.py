"""The journal of a run, its provenance, and MLflow as a view of them."""
