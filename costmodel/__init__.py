"""Where a learned model of kernels' cost belongs; the analytic ones stand beside the schedules."""
