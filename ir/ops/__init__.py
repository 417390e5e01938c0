"""Op families.  Every module here registers its ops when it is imported (`plait.ir.op.load_all`)."""
