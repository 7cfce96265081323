"""Where things lie in a model's memory: shared by the generator and both hosts."""

CONTROL_BYTES = 256
"""Control block at address 0."""

BARRIER_COUNT = 0  # i32: threads that have arrived at the current barrier
BARRIER_GENERATION = 64  # i32 on a cache line of its own: bumped when all have arrived
HOST_GENERATION = 128  # i32 per thread: changed by the host to start a run; the thread waits on it
HOST_DONE = 192  # i32: threads that have finished the run
FAULT = 252  # i32: which item of the program stopped the run, counted from 1; the host clears it

PARAMS_BASE = CONTROL_BYTES
"""First entry of the parameter block."""

SLOT_ALIGN = 64
READ_SLACK = 64
"""Bytes past a buffer's end that a kernel may read."""


LINE = 64
"""Bytes of a cache line: what two threads write at a time lies on two of them."""

COUNTS = "counts"
"""The module's variable with the address of the step's counter of thread 0: how many pieces of its
share are taken. The next thread's is `LINE` bytes on. 0: shares are not divided."""

MOST_COUNTED = 16
"""Threads that take over from each other; a larger team has fixed shares. Also how many steps a
team plays between two barriers, each with counters of its own."""


def counts_base(n_params: int) -> int:
    """Address of the counters, `MOST_COUNTED` lines, in a module with that many parameters."""
    return (PARAMS_BASE + 4 * n_params + LINE - 1) // LINE * LINE


def weights_base(n_params: int) -> int:
    """Address of the weight space in a module with that many parameters."""
    return (counts_base(n_params) + MOST_COUNTED * LINE + 255) // 256 * 256
