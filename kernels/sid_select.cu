// sid_select: the choice of searches without groups and caps (sid_select.cuh), a block of 512 threads per step.
#include "sid_select.cuh"

KERNEL(sid_select, SidStepArgs, 512, 1) { select_body(a); }
