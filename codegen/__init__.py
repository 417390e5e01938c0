"""Targets and the code generators that lower kernels for them."""
