"""What is trained: model, data, loss and metric of each task."""
