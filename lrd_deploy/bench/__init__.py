"""Measuring so that the figure can be believed: fresh processes, interleaved blocks, an interval, a control."""
