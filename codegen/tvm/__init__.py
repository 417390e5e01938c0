"""CPU kernels: TIR schedules compiled to object code through TVM."""
