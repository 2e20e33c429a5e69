"""Rewriting ONNX graphs so that every rank is one the hardware likes."""
