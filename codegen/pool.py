"""What a process calls of its pool of threads, which `plait.codegen.tvm.pool` compiles.

made() -> int       make the pool, once; where the function is that parallel loops launch with, or 0
                    if the process has no key of threads left
asked(count)        loops that the calling thread launches are of so many tasks
left()              in a forked process: the workers are in another
ended()             end the workers, and wait until they have
"""

from __future__ import annotations

PREFIX = "plait_pool_"
MADE, ASKED, LEFT, ENDED = FUNCTIONS = [PREFIX + f for f in ("made", "asked", "left", "ended")]
