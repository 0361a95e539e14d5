// sid_select_general: the choice of searches with groups or a cap (sid_select.cuh).
//
// It also scores rows by every rule, which takes more than the 128 registers that a thread of 512 has: blocks of 256. The shared code is
// compiled for that size under a name of its own, since on the host both sizes are linked into one program.
#define SID_THREADS 256
#define sid sid_of_256_threads
#include "sid_select.cuh"

KERNEL(sid_select_general, SidStepArgs, 256, 1) { select_general_body(a); }
