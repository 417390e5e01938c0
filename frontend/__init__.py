"""Capture of PyTorch models into the IR and the `torch.compile` backend."""
