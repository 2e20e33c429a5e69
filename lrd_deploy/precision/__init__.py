"""The precision that a graph computes in: FP16 and BF16 by casts, INT8 by symmetric quantisation."""
