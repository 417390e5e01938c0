"""Graph passes: rewriting, fusion, kernel selection, ordering and memory planning."""
