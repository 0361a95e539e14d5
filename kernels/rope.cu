// Norm, rotation and cache write: from the rows of the q/k/v product, qkv [rows, (heads + 2 kv_heads) * head_dim] in float, to
//
//   q [rows, heads, head_dim]                            x = q * rsqrt(mean(q^2) + eps) * q_norm, where there is a norm; rotated
//   k [cache_blocks, kv_heads, 16, head_dim], at slot    the same with k_norm
//   v [cache_blocks, kv_heads, 16, head_dim], at slot    as it is
//
// each rounded once, to bf16 or f16. The pair (i, i + head_dim / 2) is turned by position * inv_freq[i] (a float product) and scaled.
//
// A block is a row: its sines and cosines are made once, with the full reduction of the angle (positions reach beyond 2^17), and while
// the product before is still under way, for they depend on the plan alone. head_dim / 16 lanes are a head: a lane holds eight dimensions of either
// half, so both of every pair; it reads 64 bytes and writes 32. Bound by bytes: 6 per element.
#include "args.cuh"
#include "device.cuh"

namespace {

constexpr uint32_t THREADS = 128;

DEVICE_INLINE void load8(float (&x)[8], const float* from) {
    const float4* const at = reinterpret_cast<const float4*>(from);
    const float4 low = at[0], high = at[1];
    x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w, x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
}

// x *= factor * norm.
DEVICE_INLINE void normalise(float (&x)[8], float factor, const float* norm) {
    float w[8];
    load8(w, norm);
#pragma unroll
    for (uint32_t i = 0; i < 8; i++) x[i] = dev::mul_rn(dev::mul_rn(x[i], factor), w[i]);
}

DEVICE_INLINE void rotate(float (&low)[8], float (&high)[8], const float* cosines, const float* sines) {
#pragma unroll
    for (uint32_t i = 0; i < 8; i++) {
        const float x = low[i], y = high[i], c = cosines[i], s = sines[i];
        low[i] = dev::fma_rn(x, c, -dev::mul_rn(y, s));
        high[i] = dev::fma_rn(y, c, dev::mul_rn(x, s));
    }
}

template <class T, int HD>
DEVICE_INLINE void rope_cache(const RopeArgs& a) {
    constexpr uint32_t HALF = HD / 2, LANES = HD / 16, HEADS = THREADS / LANES;
    SHARED(float, cosines, HALF);
    SHARED(float, sines, HALF);
    const uint32_t row = blockIdx.x;
    const bool present = row < min(a.counts->rows, a.max_rows);
    const RowInfo info = present ? a.rows[row] : RowInfo{};
    if (present && threadIdx.x < HALF) {
        float s, c;
        sincosf(dev::mul_rn(float(info.position), a.inv_freq[threadIdx.x]), &s, &c);
        cosines[threadIdx.x] = dev::mul_rn(c, a.scale);
        sines[threadIdx.x] = dev::mul_rn(s, a.scale);
    }
    dev::dependency_wait();
    dev::dependency_trigger();
    if (!present) return;
    __syncthreads();   // sines and cosines are there

    const uint32_t all = a.heads + 2 * a.kv_heads, lane = threadIdx.x % LANES;
    const uint32_t block = info.slot / BLOCK_TOKENS, place = info.slot % BLOCK_TOKENS;
    for (uint32_t first = 0; first < all; first += HEADS) {   // alike in all lanes, which sum together
        const uint32_t head = first + threadIdx.x / LANES;
        const bool mine = head < all;
        const float* const from = a.qkv + (size_t(row) * all + (mine ? head : 0)) * HD + lane * 8;
        float low[8], high[8];
        load8(low, from);
        load8(high, from + HALF);
        const bool is_q = head < a.heads, is_v = head >= a.heads + a.kv_heads;
        const float* const norm = is_v ? nullptr : is_q ? a.q_norm : a.k_norm;
        float sum = 0.0f;
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) sum = dev::fma_rn(low[i], low[i], sum);
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) sum = dev::fma_rn(high[i], high[i], sum);
#pragma unroll
        for (uint32_t bit = 1; bit < LANES; bit *= 2) sum += __shfl_xor_sync(dev::FULL_MASK, sum, bit);
        if (!mine) continue;
        if (norm != nullptr) {
            const float factor = dev::div_rn(1.0f, dev::sqrt_rn(dev::add_rn(dev::div_rn(sum, HD), a.eps)));
            normalise(low, factor, norm + lane * 8);
            normalise(high, factor, norm + HALF + lane * 8);
        }
        if (!is_v) rotate(low, high, cosines + lane * 8, sines + lane * 8);
        T* to;
        if (is_q) {
            to = static_cast<T*>(a.q) + (size_t(row) * a.heads + head) * HD;
        } else {
            if (block >= a.cache_blocks) continue;
            const uint32_t kv_head = (head - a.heads) % a.kv_heads;
            to = static_cast<T*>(is_v ? a.v : a.k) + ((size_t(block) * a.kv_heads + kv_head) * BLOCK_TOKENS + place) * HD;
        }
        dev::Vec8<T>::rounded(low).store(to + lane * 8);
        dev::Vec8<T>::rounded(high).store(to + HALF + lane * 8);
    }
}

}  // namespace

KERNEL(rope_cache_16_bf16, RopeArgs, 128, 8) { rope_cache<bf16, 16>(a); }
KERNEL(rope_cache_32_bf16, RopeArgs, 128, 8) { rope_cache<bf16, 32>(a); }
KERNEL(rope_cache_64_bf16, RopeArgs, 128, 8) { rope_cache<bf16, 64>(a); }
KERNEL(rope_cache_128_bf16, RopeArgs, 128, 8) { rope_cache<bf16, 128>(a); }
KERNEL(rope_cache_16_f16, RopeArgs, 128, 8) { rope_cache<f16, 16>(a); }
KERNEL(rope_cache_32_f16, RopeArgs, 128, 8) { rope_cache<f16, 32>(a); }
KERNEL(rope_cache_64_f16, RopeArgs, 128, 8) { rope_cache<f16, 64>(a); }
KERNEL(rope_cache_128_f16, RopeArgs, 128, 8) { rope_cache<f16, 128>(a); }
