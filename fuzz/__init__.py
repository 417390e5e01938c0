"""The miscompile hunter: generation, oracles, reduction, campaigns."""
