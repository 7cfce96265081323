"""Where things lie in a model's memory: shared by the generator and both hosts."""

CONTROL_BYTES = 256
"""Control block at address 0."""

BARRIER_COUNT = 0  # i32: threads that have arrived at the current barrier
BARRIER_GENERATION = 64  # i32 on a cache line of its own: bumped when all have arrived
HOST_GENERATION = 128  # i32: bumped by the host to start a run; workers wait on it
HOST_DONE = 192  # i32: threads that have finished the run
FAULT = 252  # i32: which item of the program stopped the run, counted from 1; the host clears it

PARAMS_BASE = CONTROL_BYTES
"""First entry of the parameter block."""

SLOT_ALIGN = 64
READ_SLACK = 64
"""Bytes past a buffer's end that a kernel may read."""


def weights_base(n_params: int) -> int:
    """Address of the weight space in a module with that many parameters."""
    return (PARAMS_BASE + 4 * n_params + 255) // 256 * 256
