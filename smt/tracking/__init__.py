"""MLflow as a view of the journals."""
