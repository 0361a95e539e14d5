// Barriers and what the lanes of a warp do together. The last lane to arrive computes for all.
#include <bit>
#include <cstring>

#include "state.h"
#include "wide.h"

namespace host {

// ---- barriers

namespace {

uint32_t folded(const Barrier& b, Fold fold, uint32_t parity) {
  switch (fold) {
    case Fold::Count: return b.count[parity];
    case Fold::And: return b.count[parity] == b.total[parity];
    case Fold::Or: return b.count[parity] != 0;
    default: return 0;
  }
}

void complete(Barrier& b) {
  b.arrived = 0;
  b.generation++;
  b.count[b.generation & 1] = b.total[b.generation & 1] = 0;
  self()->worker->steps++;
}

// Lanes of one warp have to meet a barrier at one place.
void check_warp_meets(Barrier& b, uint32_t id, Place place) {
  Warp& warp = *self()->warp;
  if (warp.barrier_generation[id] == b.generation + 1) {
    const Place first = warp.barrier_place[id];
    if (first.line != place.line || first.file != place.file)
      fail(place, "divergence at a barrier: lanes of one warp meet barrier %u here and at %s:%u", id, first.file, first.line);
  } else {
    warp.barrier_generation[id] = b.generation + 1;
    warp.barrier_place[id] = place;
  }
}

// Counts an arrival; returns whether it was the last.
bool arrive(Barrier& b, uint32_t id, uint32_t threads, uint32_t value, Place place) {
  Fiber* const f = self();
  if (id > 15) fail(place, "barrier %u: there are barriers 0 to 15", id);
  if (threads % 32) fail(place, "barrier %u for %u threads, which is no multiple of 32", id, threads);
  check_warp_meets(b, id, place);
  if (b.arrived && b.threads != threads)
    fail(place, "divergence at a barrier: barrier %u is for %u threads here and for %u elsewhere", id, threads, b.threads);
  b.threads = threads;
  const uint32_t parity = b.generation & 1;
  happens_before(&b.sync[parity]);
  b.count[parity] += value;
  b.total[parity]++;
  b.arrived++;
  const uint32_t needed = threads ? threads : block_of(f)->alive;
  if (b.arrived < needed) return false;
  complete(b);
  return true;
}

}  // namespace

uint32_t barrier(uint32_t id, uint32_t threads, Fold fold, uint32_t value, Place place) {
  Barrier& b = block_of(self())->barrier[id & 15];
  const uint32_t generation = b.generation;
  if (!arrive(b, id, threads, value, place)) suspend_until(&b.generation, generation, "waits at a barrier", place);
  happens_after(&b.sync[generation & 1]);
  return folded(b, fold, generation & 1);
}

void barrier_arrive(uint32_t id, uint32_t threads, Place place) {
  if (threads == 0) fail(place, "barrier %u: an arrival needs the number of threads", id);
  arrive(block_of(self())->barrier[id & 15], id, threads, 0, place);
}

void leave_barriers(Fiber* fiber) {
  Block* const block = block_of(fiber);
  block->alive--;
  Barrier& b = block->barrier[0];
  if (b.arrived && b.threads == 0 && b.arrived == block->alive) complete(b);
}

void dependency_wait() { self()->waited_for_dependency = true; }

// ---- warps

namespace {

// Meets the other lanes of `mask`; the last runs `complete(warp)`, which sets the lanes' results.
template <class Complete>
inline uint64_t meet(uint32_t mask, const char* kind, LaneArgument argument, Place place, Complete complete) {
  Fiber* const f = self();
  Warp& warp = *f->warp;
  if (!(mask >> f->lane & 1)) fail(place, "%s: the mask 0x%08x does not name the calling lane %u", kind, mask, f->lane);
  if (mask & warp.exited) fail(place, "exited lane: %s with mask 0x%08x, of which 0x%08x have returned", kind, mask, mask & warp.exited);
  Meeting& m = warp.meeting[std::countr_zero(mask)];
  if (!m.arrived) {
    m.mask = mask;
    m.kind = kind;
  } else if (m.mask != mask || m.kind != kind) {
    fail(place, "divergence in a warp: %s with mask 0x%08x here, %s with mask 0x%08x elsewhere", kind, mask,
         static_cast<const char*>(m.kind), m.mask);
  }
  warp.argument[f->lane] = argument;
  m.arrived |= 1u << f->lane;
  if (m.arrived == mask) {
    m.arrived = 0;
    m.generation++;
    f->place = place;
    f->worker->steps++;
    complete(warp);
  } else {
    suspend_until(&m.generation, m.generation, kind, place);
  }
  return f->result;
}

template <class Visit>
inline void each_lane(uint32_t mask, Visit visit) {
  for (; mask; mask &= mask - 1) visit(std::countr_zero(mask));
}

constexpr uint32_t ALL = ~0u;
constexpr uint64_t NOT_TAKING_PART = 0xdeadbeefdeadbeefull;  // what a shuffle reads from a lane outside of the mask

}  // namespace

void sync_warp(uint32_t mask, Place place) {
  Fiber* const f = self();
  const int low = mask ? std::countr_zero(mask) : 0;
  SyncObject& sync = f->warp->sync[low][f->warp->meeting[low].generation & 1];
  happens_before(&sync);
  meet(mask, "__syncwarp", {}, place, [](Warp&) {});
  happens_after(&sync);
}

uint64_t shuffle(uint32_t mask, uint64_t value, uint32_t source_lane, Place place) {
  const void* const source = reinterpret_cast<const void*>(uintptr_t(source_lane));
  return meet(mask, "__shfl_sync", {value, source, nullptr, nullptr}, place, [mask](Warp& warp) {
    each_lane(mask, [&](int lane) {
      const uint32_t from = uint32_t(reinterpret_cast<uintptr_t>(warp.argument[lane].in)) & 31;
      warp.lane[lane]->result = (mask >> from & 1) ? warp.argument[from].value : NOT_TAKING_PART;
    });
  });
}

uint32_t ballot(uint32_t mask, bool value, Place place) {
  return uint32_t(meet(mask, "a warp vote", {value, nullptr, nullptr, nullptr}, place, [mask](Warp& warp) {
    uint32_t votes = 0;
    each_lane(mask, [&](int lane) { votes |= uint32_t(warp.argument[lane].value) << lane; });
    each_lane(mask, [&](int lane) { warp.lane[lane]->result = votes; });
  }));
}

bool elect_one(Place place) {
  meet(ALL, "elect_one", {}, place, [](Warp&) {});
  return self()->lane == 0;
}

uint32_t reduce(uint32_t mask, uint32_t value, Reduce op, Place place) {
  return uint32_t(meet(mask, "__reduce_sync", {value, nullptr, nullptr, nullptr}, place, [mask, op](Warp& warp) {
    uint32_t sum = uint32_t(warp.argument[std::countr_zero(mask)].value);
    each_lane(mask & (mask - 1), [&](int lane) {
      const uint32_t x = uint32_t(warp.argument[lane].value);
      switch (op) {
        case Reduce::Add: sum += x; break;
        case Reduce::Min: sum = x < sum ? x : sum; break;
        case Reduce::Max: sum = x > sum ? x : sum; break;
        case Reduce::MinSigned: sum = int32_t(x) < int32_t(sum) ? x : sum; break;
        case Reduce::MaxSigned: sum = int32_t(x) > int32_t(sum) ? x : sum; break;
        case Reduce::And: sum &= x; break;
        case Reduce::Or: sum |= x; break;
        case Reduce::Xor: sum ^= x; break;
      }
    });
    each_lane(mask, [&](int lane) { warp.lane[lane]->result = sum; });
  }));
}

uint32_t match_any(uint32_t mask, uint64_t value, Place place) {
  return uint32_t(meet(mask, "__match_any_sync", {value, nullptr, nullptr, nullptr}, place, [mask](Warp& warp) {
    each_lane(mask, [&](int lane) {
      uint32_t same = 0;
      each_lane(mask, [&](int other) {
        same |= uint32_t(warp.argument[other].value == warp.argument[lane].value) << other;
      });
      warp.lane[lane]->result = same;
    });
  }));
}

// ---- fragments

namespace {

bool in_shared(const Block* block, const void* at, size_t bytes) {
  const size_t offset = size_t(static_cast<const unsigned char*>(at) - block->arena);
  return offset + bytes <= SHARED_ARENA + STATIC_ARENA;
}

template <bool Transposed>
void gather(Warp& warp, int count) {
  for (int matrix = 0; matrix < count; matrix++) {
    uint16_t tile[8][8];
    for (int r = 0; r < 8; r++) memcpy(tile[r], warp.argument[matrix * 8 + r].in, 16);
    for (int lane = 0; lane < 32; lane++) {
      const int r = lane >> 2, c = (lane & 3) * 2;
      const uint32_t low = Transposed ? tile[c][r] : tile[r][c], high = Transposed ? tile[c + 1][r] : tile[r][c + 1];
      static_cast<uint32_t*>(warp.argument[lane].out)[matrix] = low | high << 16;
    }
  }
}

// The layout of fragments is in device.cuh, at mma_16816.
void multiply_fragments(Warp& warp, bool is_bf16) {
  uint32_t words_a[32][4], words_b[32][2];
  for (int lane = 0; lane < 32; lane++) {
    memcpy(words_a[lane], warp.argument[lane].in, sizeof words_a[lane]);
    memcpy(words_b[lane], warp.argument[lane].in2, sizeof words_b[lane]);
  }
  float low_a[32][4], high_a[32][4], low_b[32][2], high_b[32][2];
  widen(words_a[0], 128, is_bf16, low_a[0], high_a[0]);
  widen(words_b[0], 64, is_bf16, low_b[0], high_b[0]);
  float a[16][16], b[16][8], sums[16][8];
  for (int lane = 0; lane < 32; lane++) {
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; i++) {
      float* const pair = &a[g + i % 2 * 8][t * 2 + i / 2 * 8];
      pair[0] = low_a[lane][i];
      pair[1] = high_a[lane][i];
    }
    for (int i = 0; i < 2; i++) {
      b[t * 2 + i * 8][g] = low_b[lane][i];
      b[t * 2 + i * 8 + 1][g] = high_b[lane][i];
    }
  }
  multiply_16x8(a, b, sums);
  for (int lane = 0; lane < 32; lane++) {
    float* const d = static_cast<float*>(warp.argument[lane].out);
    const float* const upper = &sums[lane / 4][lane % 4 * 2];
    const float* const lower = &sums[lane / 4 + 8][lane % 4 * 2];
    d[0] += upper[0];
    d[1] += upper[1];
    d[2] += lower[0];
    d[3] += lower[1];
  }
}

}  // namespace

void ldmatrix(uint32_t* registers, int count, bool transposed, const void* row, Place place) {
  Fiber* const f = self();
  check_aligned(row, 16, "a row for ldmatrix", place);
  if (int(f->lane) < count * 8) {
    if (!in_shared(block_of(f), row, 16) || !reads(row, 16)) fail(place, "ldmatrix: a row at %p, which is not in shared memory", row);
    uint64_t words[2];
    memcpy(words, row, 16);
    constexpr uint64_t red = 0xa5a5a5a5a5a5a5a5ull;
    if (words[0] == red && words[1] == red) fail(place, "shared-memory overrun: ldmatrix reads a row past the end of an array");
  }
  meet(ALL, transposed ? "ldmatrix.trans" : "ldmatrix", {0, row, nullptr, registers}, place,
       [&](Warp& warp) { transposed ? gather<true>(warp, count) : gather<false>(warp, count); });
}

void mma_16816(float* d, const uint32_t* a, const uint32_t* b, bool is_bf16, Place place) {
  meet(ALL, "mma", {0, a, b, d}, place,
       [is_bf16](Warp& warp) { multiply_fragments(warp, is_bf16); });
}

}  // namespace host
