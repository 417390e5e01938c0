"""Artifacts, loading, execution, the kernel cache, measurement."""
