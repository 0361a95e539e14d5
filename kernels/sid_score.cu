// sid_score, sid_score_general: one block per slot of the step scores the row's alive children and writes those that may be among its
// search's best, as keys (sid.cuh) with the entries they lead to; sid_vocab_norm: ln sum exp of whole rows of logits.
//
// Reads 4 bytes per code of the codebook once: 32 rows of 64 beams with 8,192 codes are 67 MB, 15.6 us at 4.3 TB/s. A block of 512 threads holds
// 16 logits per thread in registers, so 8,192 codes are one batch of loads; two blocks on a multiprocessor overlap one's loads with another's
// scan. Survivors are some hundred bytes per row. Which rows run first changes how many survivors a row writes, never which are chosen.
#include "sid_general.cuh"

namespace {

// The slot of this block if there is one, it was resolved for this plan, and it is for the kernels of the plain or of the general road.
DEVICE_INLINE const SidSlot* own_slot(const SidStepArgs& a, uint32_t kind) {
    if (blockIdx.x >= a.max_slots || a.counts->sid_steps == 0) return nullptr;
    const SidSlot& slot = a.slots[blockIdx.x];
    // Slots begin as zeros, and no plan has epoch 0.
    if (slot.epoch == 0 || slot.epoch != a.steps[0].epoch || (slot.kind & (KIND_GENERAL | KIND_GROUPED)) != kind) return nullptr;
    return &slot;
}

__device__ void score_body(const SidStepArgs& a) {
    SHARED(sid::RowShared, shared, 1);
    dev::dependency_wait();
    dev::dependency_trigger();
    const SidSlot* slot = own_slot(a, 0);
    if (slot != nullptr) sid::score_plain(a, *slot, blockIdx.x, shared[0]);
}

__device__ void score_general_body(const SidStepArgs& a) {
    SHARED(sid::RowShared, shared, 1);
    SHARED(sid::GeneralShared, general, 1);
    dev::dependency_wait();
    dev::dependency_trigger();
    const SidSlot* slot = own_slot(a, KIND_GENERAL);
    if (slot != nullptr) sid::score_general(a, *slot, blockIdx.x, 0, shared[0], general[0]);
}

__device__ void vocab_norm_body(const SidNormArgs& a) {
    SHARED(float, maxima, sid::WARPS);
    SHARED(float, sums, sid::WARPS);
    dev::dependency_wait();
    dev::dependency_trigger();
    const uint32_t row = blockIdx.x;
    if (row >= min(a.group->rows, a.max_rows)) return;
    const float norm = sid::block_log_sum(a.logits + size_t(row) * a.columns, a.columns, maxima, sums).norm;
    if (threadIdx.x == 0) a.norms[row] = norm;
}

}  // namespace

// Two blocks fill a multiprocessor's threads; before sm_90 the 64 registers that this leaves are one too few.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define SCORE_BLOCKS 1
#else
#define SCORE_BLOCKS 2
#endif

KERNEL(sid_score, SidStepArgs, 512, SCORE_BLOCKS) { score_body(a); }
KERNEL(sid_score_general, SidStepArgs, 512, 1) { score_general_body(a); }
KERNEL(sid_vocab_norm, SidNormArgs, 512, 2) { vocab_norm_body(a); }
