"""The latency gate: a candidate beside its baseline, measured here and now, and a verdict of three values."""
