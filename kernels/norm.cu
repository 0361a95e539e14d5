// h [rows, hidden] = x [source, hidden] / sqrt(mean(x^2) + eps) * weight [hidden], rounded once.
//
// Row r of h, first <= r < first + rows of the group, comes from row list[r] of x, or from row r without a list (the head gathers the
// rows that it needs). A block of 256 threads takes one row: at hidden 4096 each thread has two 16-byte pieces in flight, so that a row
// costs one trip to memory and one barrier, which is what counts with a few rows; with a thousand, 8 blocks share a multiprocessor and
// the bytes count: 4 * hidden per row, the second reading of x being served by the first-level cache.
#include "products.cuh"

namespace {

template <class T>
DEVICE_INLINE void rms_norm(const NormArgs& a) {
    using namespace products;
    SHARED(float, shares, NORM_WARPS);
    dev::dependency_trigger();
    dev::dependency_wait();
    const RowGroup group = *a.group;
    const uint32_t row = group.first + blockIdx.x;
    if (blockIdx.x >= group.rows || group.first >= a.max_out || row >= a.max_out) return;
    const uint32_t source = a.list ? a.list[row] : row;
    if (source >= a.max_rows) return;
    const T* const x = static_cast<const T*>(a.x) + size_t(source) * a.hidden;
    T* const out = static_cast<T*>(a.out) + size_t(row) * a.hidden;

    const float sum = square_sum(x, a.hidden, threadIdx.x);
    if (threadIdx.x % 32 == 0) shares[threadIdx.x / 32] = sum;
    __syncthreads();
    const float scale = inverse_rms(shares, a.hidden, a.eps);
    for (uint32_t at = threadIdx.x * 8; at < a.hidden; at += NORM_THREADS * 8)
        normed(dev::Vec8<T>::load(x + at), scale, a.weight + at).store(out + at);
}

}  // namespace

KERNEL(rms_norm_bf16, NormArgs, 256, 6) { rms_norm<bf16>(a); }
KERNEL(rms_norm_f16, NormArgs, 256, 6) { rms_norm<f16>(a); }
