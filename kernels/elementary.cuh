// exp, ln, log-sum-exp and random numbers with the same bits as the host: src/device/elementary.rs, random.rs and cpu/logsum.rs.
//
// Scores and draws are compared across devices, so nothing here rests on a mathematical library or on how a compiler joins operations:
// every product and sum is rounded on its own. What each function is for and how good it is stands beside its twin.
#pragma once
#include "device.cuh"

namespace elementary {

constexpr float MINUS_INFINITY = -__builtin_huge_valf();
constexpr float INFINITE = __builtin_huge_valf();

// 1.5 * 2^23: adding it rounds a small float to the nearest integer, which the low bits of the sum then hold.
constexpr float ROUND = 12582912.0f;
constexpr uint32_t ROUND_BITS = 0x4b400000u;
constexpr float LN2_HIGH = 0.6933594f;
constexpr float LN2_LOW = -2.1219444e-4f;
constexpr float LOG2_E = 1.44269504088896340736f;
constexpr float EXP_MIN = -87.0f;
constexpr float EXP_MAX = 88.0f;

// x * y + z, rounded twice.
DEVICE_INLINE float mul_add(float x, float y, float z) { return dev::add_rn(dev::mul_rn(x, y), z); }

// e^x; 0 below -87 and for minus infinity, no more than e^88. Not for NaN.
DEVICE_INLINE float exp(float x) {
    float inside = x > EXP_MIN ? x : EXP_MIN;
    inside = inside < EXP_MAX ? inside : EXP_MAX;
    const float rounded = mul_add(inside, LOG2_E, ROUND);
    const float n = dev::sub_rn(rounded, ROUND);
    const float r = dev::sub_rn(dev::sub_rn(inside, dev::mul_rn(n, LN2_HIGH)), dev::mul_rn(n, LN2_LOW));
    float p = 1.3951714e-3f;
    p = mul_add(p, r, 8.369599e-3f);
    p = mul_add(p, r, 4.1666187e-2f);
    p = mul_add(p, r, 1.6666513e-1f);
    p = mul_add(p, r, 0.5f);
    const float significand = dev::add_rn(mul_add(p, dev::mul_rn(r, r), r), 1.0f);
    const uint32_t exponent = (__float_as_uint(rounded) - ROUND_BITS + 127u) << 23;
    const float value = dev::mul_rn(significand, __uint_as_float(exponent));
    return x < EXP_MIN ? 0.0f : value;
}

// ln x for positive normal x.
DEVICE_INLINE float ln(float x) {
    // The exponent that leaves a significand between sqrt(1/2) and sqrt(2), where the series is about zero.
    constexpr uint32_t SQRT_HALF = 0x3f3504f3u;
    const int32_t exponent = static_cast<int32_t>(__float_as_uint(x) - SQRT_HALF) >> 23;
    const float f = dev::sub_rn(__uint_as_float(__float_as_uint(x) - (static_cast<uint32_t>(exponent) << 23)), 1.0f);
    const float n = static_cast<float>(exponent);
    float p = -7.859421e-2f;
    p = mul_add(p, f, 1.2881575e-1f);
    p = dev::sub_rn(dev::mul_rn(p, f), 1.3128792e-1f);
    p = mul_add(p, f, 1.4181204e-1f);
    p = dev::sub_rn(dev::mul_rn(p, f), 1.662455e-1f);
    p = mul_add(p, f, 2.0002286e-1f);
    p = dev::sub_rn(dev::mul_rn(p, f), 2.500081e-1f);
    p = mul_add(p, f, 3.3333317e-1f);
    const float square = dev::mul_rn(f, f);
    const float series = dev::sub_rn(dev::mul_rn(dev::mul_rn(square, f), p), dev::mul_rn(0.5f, square));
    const float small = mul_add(n, LN2_LOW, series);
    return dev::add_rn(dev::add_rn(small, f), dev::mul_rn(n, LN2_HIGH));
}

DEVICE_INLINE bool is_nan(float x) { return x != x; }
DEVICE_INLINE bool is_infinite(float x) { return x == INFINITE || x == MINUS_INFINITY; }

// The logarithm of a sum given as its largest term's exponent and the sum relative to it; NaN stays NaN.
DEVICE_INLINE float log_sum(float max, float sum) { return is_infinite(max) ? max : dev::add_rn(max, ln(sum)); }

// The log-probability of a value under a logarithm of a sum, defined for every value but NaN.
DEVICE_INLINE float log_probability(float value, float log_of_sum) {
    const float difference = dev::sub_rn(value, log_of_sum);
    if (!is_nan(difference)) return difference;
    return value == INFINITE ? 0.0f : MINUS_INFINITY;
}

// The sum of a score and a log-probability; minus infinity where it is not a number.
DEVICE_INLINE float add_score(float score, float log_of_probability) {
    const float sum = dev::add_rn(score, log_of_probability);
    return is_nan(sum) ? MINUS_INFINITY : sum;
}

// An integer that orders as the float does; both zeros are one. NaN is the caller's to keep out.
DEVICE_INLINE uint32_t ordered(float x) {
    const uint32_t bits = __float_as_uint(dev::add_rn(x, 0.0f));
    return bits >> 31 == 0 ? bits | 0x80000000u : ~bits;
}
// The float of `ordered`.
DEVICE_INLINE float from_ordered(uint32_t bits) {
    return __uint_as_float(bits >> 31 == 1 ? bits & 0x7fffffffu : ~bits);
}

// ---- random numbers; the table of domains and counters is in src/device/random.rs

constexpr uint32_t DOMAIN_TEXT = 0xffffffffu;

// Philox4x32-10: four random words for a counter under a key.
DEVICE_INLINE uint4 philox(uint4 c, uint2 key) {
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const uint32_t even_high = __umulhi(0xd2511f53u, c.x), even_low = 0xd2511f53u * c.x;
        const uint32_t odd_high = __umulhi(0xcd9e8d57u, c.z), odd_low = 0xcd9e8d57u * c.z;
        c = make_uint4(odd_high ^ c.y ^ key.x, odd_low, even_high ^ c.w ^ key.y, even_low);
        key = make_uint2(key.x + 0x9e3779b9u, key.y + 0xbb67ae85u);
    }
    return c;
}

// A word as standard Gumbel noise, -ln(-ln(1 - w)) with w = (word + 1/2) / 2^32.
DEVICE_INLINE float gumbel(uint32_t word) {
    constexpr float LARGEST = 1.0f - 5.9604645e-8f;
    float w = dev::mul_rn(dev::add_rn(static_cast<float>(word), 0.5f), 2.3283064365386963e-10f);
    w = w < LARGEST ? w : LARGEST;
    // -ln(1 - w) without the rounding of 1 - w: the slope between 1 - w and 1 hardly changes over that error.
    const float rest = dev::sub_rn(1.0f, w);
    const float gone = dev::sub_rn(1.0f, rest);
    const float exponential = gone == 0.0f ? w : dev::mul_rn(-ln(rest), dev::div_rn(w, gone));
    return -ln(exponential);
}

// Domain of the noise of a search.
DEVICE_INLINE uint32_t search_domain(uint32_t item_type, uint32_t level, uint32_t group) {
    return item_type | level << 16 | group << 20;
}

// The numbers of one draw of one request; `seed` and `draw` as (low word, high word).
struct Noise {
    uint2 seed;
    uint2 draw;
    uint32_t domain;

    DEVICE_INLINE uint4 words(uint32_t index) const { return philox(make_uint4(index, domain, draw.x, draw.y), seed); }
    // Noise of text token `token` (domain DOMAIN_TEXT). Tokens 64 b + l, + 16, + 32, + 48 (l below 16) share the counter 16 b + l: words x, y, z, w.
    DEVICE_INLINE float gumbel_of_token(uint32_t token) const {
        const uint4 four = words(token / 64 * 16 + token % 16);
        const uint32_t which = token / 16 % 4;
        return gumbel(which == 0 ? four.x : which == 1 ? four.y : which == 2 ? four.z : four.w);
    }
    // Noise of a child of a search.
    DEVICE_INLINE float gumbel_of_child(uint32_t first_sid) const { return gumbel(words(first_sid).x); }
};

}  // namespace elementary
