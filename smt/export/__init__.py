"""Classifiers as programs for other frameworks: torch.export and ONNX."""
