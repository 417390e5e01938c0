"""Garbage, collected later."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collected_later() -> Iterator[None]:
    """No garbage is collected inside, where little is made: imports, passes, linking.

    A collection walks all objects of the process: beside torch and a model of it 0.25 s, a fifth of
    what BERT-base takes to compile when its kernels are in the cache.
    """
    enabled = gc.isenabled()
    if enabled:  # whoever finds it disabled, perhaps by another thread, leaves it to them
        gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
