"""The command line, `plait`."""
