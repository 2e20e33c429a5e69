"""PyTorch to ONNX, with node names that lead back to the module."""
