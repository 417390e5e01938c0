"""Predicted cost of a kernel: the analytic roofline and the learned model."""
