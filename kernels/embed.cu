// x[r] = E[token of row r], rounded to the storage type: table E [vocab, hidden], x [rows, hidden].
//
// The token stands in the row's record, or is a beam's, which the SID step left in the search's BeamView; a soft row takes a float32 vector
// instead. What does not exist (a token beyond the vocabulary, a beam beyond the live ones, a soft token that was never sent) is zero, so that
// no row of x is ever undefined.
//
// 4 hidden bytes move per row, all of them to or from memory: a block per row, 16 bytes per thread and step, is as fast as memory for
// prefill and one launch latency for decoding. Nothing else is worth doing.
#include "args.cuh"
#include "device.cuh"

namespace {

constexpr uint32_t THREADS = 128;

// The token of a beam row; NONE if there is none.
__device__ uint32_t beam_token(const EmbedArgs& a, uint32_t row, uint32_t beam) {
    const uint32_t segment = a.row_segment[row];
    if (segment >= a.counts->segments || segment >= a.max_segments) return NONE;
    const SegmentInfo& info = a.segments[segment];
    if (info.kind != SEGMENT_BEAM || info.beams == 0) return NONE;
    const BeamView* const view = reinterpret_cast<const BeamView*>(info.beams);
    return beam < view->live && beam < MAX_WIDTH ? view->token[beam] : NONE;
}

template <class T>
__device__ void embed_body(const EmbedArgs& a) {
    dev::dependency_wait();
    dev::dependency_trigger();
    const uint32_t row = blockIdx.x;
    if (row >= a.counts->rows) return;   // the grid has no more rows than there is room for
    const RowInfo info = a.rows[row];
    T* const x = static_cast<T*>(a.x) + size_t(row) * a.hidden;
    if (info.source == SOURCE_SOFT && info.value < a.soft_tokens) {
        const float* const soft = a.soft + size_t(info.value) * a.hidden;
        for (uint32_t i = threadIdx.x * 8; i < a.hidden; i += THREADS * 8) {
            const uint4 low = dev::load16(soft + i), high = dev::load16(soft + i + 4);
            const float values[8] = {__uint_as_float(low.x), __uint_as_float(low.y), __uint_as_float(low.z), __uint_as_float(low.w),
                                     __uint_as_float(high.x), __uint_as_float(high.y), __uint_as_float(high.z), __uint_as_float(high.w)};
            dev::Vec8<T>::rounded(values).store(x + i);
        }
        return;
    }
    const uint32_t token = info.source == SOURCE_TOKEN ? info.value : info.source == SOURCE_BEAM ? beam_token(a, row, info.value) : NONE;
    const T* const from = static_cast<const T*>(a.table) + size_t(token < a.vocab ? token : 0) * a.hidden;
    for (uint32_t i = threadIdx.x * 8; i < a.hidden; i += THREADS * 8) {
        const dev::Vec8<T> values = token < a.vocab ? dev::Vec8<T>::load(from + i) : dev::Vec8<T>::zero();
        values.store(x + i);
    }
}

}  // namespace

KERNEL(embed_bf16, EmbedArgs, 128, 16) { embed_body<bf16>(a); }
KERNEL(embed_f16, EmbedArgs, 128, 16) { embed_body<f16>(a); }
