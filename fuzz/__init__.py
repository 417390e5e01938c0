"""What hunts miscompiles: random graphs, samples of every op, oracles to hold results to."""
