"""The op records, one module per family."""
