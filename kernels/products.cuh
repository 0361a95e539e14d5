// What the matrix products and the norm share: which rows a group names, how a result is written, and the mean square of a row.
//
// A result is computed in float32 and rounded once. Whoever writes it holds two neighbouring columns, as mma's and wgmma's
// fragments do.
#pragma once
#include "args.cuh"
#include "device.cuh"

namespace products {

// The rows of a group that exist, whatever the plan buffer says.
struct Span {
    uint32_t first;   // row of x
    uint32_t rows;
    uint64_t out;     // element of out at which row 0 begins
};

DEVICE_INLINE Span span_of(const ProductArgs& a) {
    const RowGroup group = *a.group;
    const bool inside = group.first < a.max_rows && group.out <= a.capacity;
    return {group.first, inside ? min(min(group.rows, a.bucket), a.max_rows - group.first) : 0, group.out};
}

// Columns of the result.
DEVICE_INLINE uint32_t width_of(const ProductArgs& a) { return a.epilogue == EPILOGUE_GATED ? a.n / 2 : a.n; }

DEVICE_INLINE float silu(float x) { return x / (1.0f + expf(-x)); }

// Two neighbours, to be moved as one; the host checks that they may.
template <class Pair>
DEVICE_INLINE Pair* pair_at(void* first SIDEREAL_PLACE) {
#ifndef __CUDACC__
    host::check_aligned(first, sizeof(Pair), "access to a pair", place);
#endif
    return static_cast<Pair*>(first);
}

// Writes columns j and j + 1 of a row of the group, j even; nothing outside of the result, nor outside of `out`.
template <class T>
DEVICE_INLINE void write_pair(const ProductArgs& a, const Span& span, uint32_t row, uint32_t j, float first, float second) {
    const uint32_t width = width_of(a);
    if (row >= span.rows || j >= width) return;
    const uint64_t line = span.out + uint64_t(row) * a.ld_out;
    if (line + width > a.capacity) return;
    const uint64_t at = line + j;
    const bool both = j + 1 < width, paired = both && at % 2 == 0;
    if (a.bias) {
        first += a.bias[j];
        if (both) second += a.bias[j + 1];
    }
    if (a.epilogue == EPILOGUE_FLOAT) {
        float* const out = static_cast<float*>(a.out) + at;
        if (paired) {
            *pair_at<float2>(out) = make_float2(first, second);
        } else {
            out[0] = first;
            if (both) out[1] = second;
        }
        return;
    }
    T* const out = static_cast<T*>(a.out) + at;
    if (paired) {
        uint32_t* const word = pair_at<uint32_t>(out);
        if (a.epilogue == EPILOGUE_RESIDUAL) {
            const float2 x = dev::unpack2<T>(*word);
            first += x.x;
            second += x.y;
        }
        *word = dev::pack2<T>(first, second);
        return;
    }
    const bool residual = a.epilogue == EPILOGUE_RESIDUAL;
    out[0] = from_float<T>(residual ? first + to_float(out[0]) : first);
    if (both) out[1] = from_float<T>(residual ? second + to_float(out[1]) : second);
}

// ---- RMS norm. The sum of squares has one order, wherever it is computed: piece p of a row (8 elements) belongs to thread
// p % 256, which adds its pieces in order, in four interleaved sums; then the lanes of a warp by halves, then the warps in order.

constexpr uint32_t NORM_THREADS = 256, NORM_WARPS = NORM_THREADS / 32;

// This warp's share of the sum of squares of x [k]; called by warps 0 to 7 with thread = threadIdx.x.
template <class T>
DEVICE_INLINE float square_sum(const T* x, uint32_t k, uint32_t thread) {
    float sums[4] = {};
#pragma unroll 2
    for (uint32_t at = thread * 8; at < k; at += NORM_THREADS * 8) {
        float v[8];
        dev::Vec8<T>::load(x + at).to_floats(v);
#pragma unroll
        for (int i = 0; i < 8; i++) sums[i % 4] = dev::fma_rn(v[i], v[i], sums[i % 4]);
    }
    float sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(dev::FULL_MASK, sum, lanes);
    return sum;
}

// 1 / sqrt(mean + eps), from the shares of the 8 warps.
DEVICE_INLINE float inverse_rms(const float* shares, uint32_t k, float eps) {
    float sum = shares[0];
#pragma unroll
    for (uint32_t warp = 1; warp < NORM_WARPS; warp++) sum += shares[warp];
    return rsqrtf(dev::fma_rn(sum, 1.0f / float(k), eps));
}

// Eight normed elements, rounded.
template <class T>
DEVICE_INLINE dev::Vec8<T> normed(const dev::Vec8<T>& x, float scale, const float* weight) {
    float v[8];
    x.to_floats(v);
    const float4 low = *reinterpret_cast<const float4*>(weight), high = *reinterpret_cast<const float4*>(weight + 4);
    const float w[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = v[i] * scale * w[i];
    return dev::Vec8<T>::rounded(v);
}

}  // namespace products
