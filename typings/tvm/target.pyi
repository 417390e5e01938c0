"""Any name may be in this package: most of them are made at import."""

from typing import Any

def __getattr__(name: str) -> Any: ...
