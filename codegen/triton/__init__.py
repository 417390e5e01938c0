"""GPU kernels: Triton sources compiled to cubins."""
