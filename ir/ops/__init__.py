"""Op families; every module here registers its ops when it is imported."""
