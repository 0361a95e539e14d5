// Transaction barriers, bulk tensor copies and warpgroup products. Both kinds of asynchronous work wait in queues, and take effect
// as late as they may, or at once.
#include <cstring>

#include "state.h"
#include "wide.h"

namespace host {

namespace {

constexpr uint64_t ALIVE = 0x5ba7;  // tells a barrier from memory that nobody initialised

// What the 64 bits of a barrier hold here.
struct MBarrier {
  uint32_t pending, expected;
  int32_t bytes;  // announced and not landed, or negative: landed and not announced
  uint32_t phase;
};

MBarrier unpacked(uint64_t word) {
  return {uint32_t(word & 0xfff), uint32_t(word >> 12 & 0xfff), int32_t(uint32_t(word >> 24 & 0xffffff) << 8) >> 8,
          uint32_t(word >> 48 & 1)};
}
uint64_t packed(const MBarrier& b) {
  return uint64_t(b.pending) | uint64_t(b.expected) << 12 | (uint64_t(uint32_t(b.bytes)) & 0xffffff) << 24 |
         uint64_t(b.phase) << 48 | ALIVE << 49;
}

void check_mbarrier(const uint64_t* barrier, Place place) {
  check_aligned(barrier, 8, "an mbarrier", place);
  shared_address(barrier, place);
  if (*barrier >> 49 != ALIVE) fail(place, "this mbarrier was never initialised, or was overwritten");
}

void update(uint64_t* barrier, uint32_t arrivals, int32_t bytes, Place place) {
  MBarrier b = unpacked(*barrier);
  if (b.pending < arrivals)
    fail(place, "more arrivals than expected: this mbarrier is for %u a phase, and all of them have come", b.expected);
  happens_before(reinterpret_cast<char*>(barrier) + b.phase * 4);
  b.pending -= arrivals;
  b.bytes += bytes;
  if (b.pending == 0 && b.bytes == 0) {
    b.pending = b.expected;
    b.phase ^= 1;
    self()->worker->steps++;
  }
  *barrier = packed(b);
}

}  // namespace

bool mbarrier_phase(const volatile void* barrier) { return *static_cast<const volatile uint64_t*>(barrier) >> 48 & 1; }

void mbarrier_init(uint64_t* barrier, uint32_t arrivals, Place place) {
  check_aligned(barrier, 8, "an mbarrier", place);
  shared_address(barrier, place);
  if (arrivals == 0 || arrivals > 0xfff) fail(place, "an mbarrier for %u arrivals", arrivals);
  *barrier = packed({arrivals, arrivals, 0, 0});
}

void mbarrier_arrive(uint64_t* barrier, uint32_t arrivals, uint32_t bytes, Place place) {
  check_mbarrier(barrier, place);
  update(barrier, arrivals, int32_t(bytes), place);
}

bool mbarrier_test(const uint64_t* barrier, uint32_t parity, Place place) {
  check_mbarrier(barrier, place);
  if (mbarrier_phase(barrier) == (parity & 1)) yield(place);
  const bool done = mbarrier_phase(barrier) != (parity & 1);
  if (done) happens_after(reinterpret_cast<const char*>(barrier) + (parity & 1) * 4);
  return done;
}

void mbarrier_wait(const uint64_t* barrier, uint32_t parity, Place place) {
  check_mbarrier(barrier, place);
  if (mbarrier_phase(barrier) == (parity & 1)) {
    Fiber* const f = self();
    f->word = barrier;
    f->value = parity;
    suspend(Wait::MBarrier, "waits at an mbarrier", place);
  }
  happens_after(reinterpret_cast<const char*>(barrier) + (parity & 1) * 4);
}

// ---- bulk tensor copies

namespace {

// What the emulated driver writes into a TensorMap (src/device/cuda/emulated.rs).
struct HostTensorMap {
  uint64_t magic, base, rows, columns, stride, box_rows, is_bf16;
};
constexpr uint64_t TENSOR_MAP = 0x7e450a3a;
constexpr int BOX_COLUMNS = 64, CHUNK = 8;  // elements

size_t swizzled(size_t offset) { return offset ^ ((offset >> 7 & 7) << 4); }

void land_chunk(const HostTensorMap& map, int64_t row, int64_t column, unsigned char* to) {
  uint16_t chunk[CHUNK] = {};
  if (row >= 0 && row < int64_t(map.rows)) {
    const uint16_t* const line = reinterpret_cast<const uint16_t*>(map.base + uint64_t(row) * map.stride);
    for (int i = 0; i < CHUNK; i++)
      if (column + i >= 0 && column + i < int64_t(map.columns)) chunk[i] = line[column + i];
  }
  memcpy(to, chunk, sizeof chunk);
}

void land(Block* block, const PendingTile& tile) {
  const HostTensorMap& map = *static_cast<const HostTensorMap*>(tile.map);
  Fiber* const f = self();
  const Place place = f->place;
  f->place = tile.place;
#ifdef SIDEREAL_HOST_TSAN
  __tsan_switch_to_fiber(tile.by->sanitizer.tsan, 1);
#endif
  const size_t start = size_t(tile.to - block->arena);
  writes(tile.to, map.box_rows * 128);
  for (uint64_t r = 0; r < map.box_rows; r++)
    for (int c = 0; c < BOX_COLUMNS; c += CHUNK)
      land_chunk(map, tile.row + int64_t(r), tile.column + c, block->arena + swizzled(start + r * 128 + size_t(c) * 2));
  update(tile.barrier, 0, -int32_t(map.box_rows * 128), tile.place);
#ifdef SIDEREAL_HOST_TSAN
  __tsan_switch_to_fiber(f->sanitizer.tsan, 1);
#endif
  f->place = place;
}

}  // namespace

void tma_load_2d(void* to, const void* tensor_map, int column, int row, uint64_t* barrier, Place place) {
  Fiber* const f = self();
  Block* const block = block_of(f);
  const HostTensorMap& map = *static_cast<const HostTensorMap*>(tensor_map);
  check_aligned(tensor_map, 64, "a tensor map", place);
  if (map.magic != TENSOR_MAP) fail(place, "tma: this is no tensor map");
  check_aligned(to, 1024, "a swizzled tile", place);
  check_mbarrier(barrier, place);
  const size_t offset = size_t(static_cast<unsigned char*>(to) - block->arena);
  if (offset + map.box_rows * 128 > SHARED_ARENA) fail(place, "tma: the tile at %p is not in dynamic shared memory", to);
  f->place = place;
  const PendingTile tile{static_cast<unsigned char*>(to), tensor_map, column, row, barrier, f, place};
  if (launch_of(f).early) {
    land(block, tile);
    return;
  }
  const Quiet quiet;
  block->tiles.push_back(tile);
}

// One at a time, the first or the last by the order of the launch: copies may land in any order.
void land_tile(Block* block) {
  const bool last = launch_of(self()).order & 1;
  const PendingTile tile = last ? block->tiles.back() : block->tiles.front();
  {
    const Quiet quiet;
    block->tiles.erase(last ? block->tiles.end() - 1 : block->tiles.begin());
  }
  land(block, tile);
}

// ---- products

namespace {

constexpr int GROUP = 128, ROWS = 64, DEPTH = 16, MOST_COLUMNS = 256;

// Meets the other threads of the warpgroup; the last runs `complete(group)`.
template <class Complete>
void meet_group(const char* kind, void* argument, Place place, Complete complete) {
  Fiber* const f = self();
  Block* const block = block_of(f);
  if (f->linear / GROUP * GROUP + GROUP > block->threads_total) fail(place, "%s: the last warps of the block are no whole warpgroup", kind);
  WarpGroup& group = block->groups[f->linear / GROUP];
  if (!group.arrived)
    group.kind = kind;
  else if (group.kind != kind)
    fail(place, "divergence in a warpgroup: %s here, %s elsewhere", kind, static_cast<const char*>(group.kind));
  group.argument[f->linear % GROUP] = argument;
  if (++group.arrived < GROUP) {
    suspend_until(&group.generation, group.generation, kind, place);
    return;
  }
  group.arrived = 0;
  group.generation++;
  f->place = place;
  f->worker->steps++;
  complete(group);
}

struct Scratch {
  uint32_t words[MOST_COLUMNS][DEPTH / 2];
  float low[MOST_COLUMNS][DEPTH / 2], high[MOST_COLUMNS][DEPTH / 2];
  float a[ROWS][DEPTH], b[DEPTH][MOST_COLUMNS], sums[ROWS][MOST_COLUMNS];
};

// The rows of an operand as floats: columns 2w in `low`, 2w + 1 in `high`.
void decode(const Block* block, uint64_t descriptor, int rows, bool is_bf16, Scratch& s) {
  const size_t start = size_t(descriptor & 0x3fff) << 4, group = size_t(descriptor >> 32 & 0x3fff) << 4;
  for (int r = 0; r < rows; r++)
    for (int half = 0; half < 2; half++)
      memcpy(&s.words[r][half * 4],
             block->arena + swizzled(start + size_t(r / 8) * group + size_t(r % 8) * 128 + size_t(half) * 16), 16);
  widen(s.words[0], rows * DEPTH / 2, is_bf16, s.low[0], s.high[0]);
}

// What the sanitizers should know of a product's reads, row by row.
void watch_reads(const Block* block, uint64_t descriptor, int rows) {
  const size_t start = size_t(descriptor & 0x3fff) << 4, group = size_t(descriptor >> 32 & 0x3fff) << 4;
  for (int r = 0; r < rows; r++)
    for (size_t c = 0; c < DEPTH * 2; c += 16)
      reads(block->arena + swizzled(start + size_t(r / 8) * group + size_t(r % 8) * 128 + c), 16);
}

// Both factors as floats, of tiles that both lie in shared memory.
void factors_of_tiles(const Block* block, const PendingProduct& product, Scratch& s) {
  watch_reads(block, product.a, ROWS);
  watch_reads(block, product.b, int(product.n));
  const Quiet quiet;
  const int n = int(product.n);
  decode(block, product.a, ROWS, product.is_bf16, s);
  for (int r = 0; r < ROWS; r++)
    for (int w = 0; w < DEPTH / 2; w++) {
      s.a[r][w * 2] = s.low[r][w];
      s.a[r][w * 2 + 1] = s.high[r][w];
    }
  decode(block, product.b, n, product.is_bf16, s);
  for (int w = 0; w < DEPTH / 2; w++)
    for (int j = 0; j < n; j++) {
      s.b[w * 2][j] = s.low[j][w];
      s.b[w * 2 + 1][j] = s.high[j][w];
    }
}

// Offset in shared memory of eight columns from `column` on of a row of the sum.
size_t values_at(uint64_t descriptor, int row, int column) {
  const size_t start = size_t(descriptor & 0x3fff) << 4, next = size_t(descriptor >> 16 & 0x3fff) << 4, group = size_t(descriptor >> 32 & 0x3fff) << 4;
  return swizzled(start + size_t(column / BOX_COLUMNS) * next + size_t(row / 8) * group + size_t(row % 8) * 128 + size_t(column % BOX_COLUMNS) * 2);
}

// The same where the left one lies in registers, and the rows of the right one are summed over.
void factors_of_values(const Block* block, const PendingProduct& product, Scratch& s) {
  const int n = int(product.n);
  for (int k = 0; k < DEPTH; k++)
    for (int column = 0; column < n; column += CHUNK) reads(block->arena + values_at(product.b, k, column), 16);
  const Quiet quiet;
  for (int t = 0; t < GROUP; t++) {
    float low[4], high[4];
    widen(product.words[t], 4, product.is_bf16, low, high);
    for (int i = 0; i < 4; i++) {
      float* const row = s.a[t / 32 * 16 + t % 32 / 4 + i % 2 * 8];
      row[i / 2 * 8 + t % 4 * 2] = low[i];
      row[i / 2 * 8 + t % 4 * 2 + 1] = high[i];
    }
  }
  for (int k = 0; k < DEPTH; k++)
    for (int column = 0; column < n; column += CHUNK) {
      uint32_t words[CHUNK / 2];
      float low[CHUNK / 2], high[CHUNK / 2];
      memcpy(words, block->arena + values_at(product.b, k, column), 16);
      widen(words, CHUNK / 2, product.is_bf16, low, high);
      for (int i = 0; i < CHUNK / 2; i++) {
        s.b[k][column + 2 * i] = low[i];
        s.b[k][column + 2 * i + 1] = high[i];
      }
    }
}

void perform(const Block* block, const PendingProduct& product) {
  static thread_local std::unique_ptr<Scratch> scratch = std::make_unique<Scratch>();
  Scratch& s = *scratch;
  const int n = int(product.n);
  if (product.values)
    factors_of_values(block, product, s);
  else
    factors_of_tiles(block, product, s);
  const Quiet quiet;
  multiply_64(s.a, s.b, n, s.sums);
  for (int t = 0; t < GROUP; t++) {
    const int row = t / 32 * 16 + t % 32 / 4, column = t % 4 * 2;
    const float* const upper = &s.sums[row][column];
    const float* const lower = &s.sums[row + 8][column];
    float* const d = product.d[t];
    for (int j = 0; j < n; j += 8) {
      const float sums[4] = {upper[j], upper[j + 1], lower[j], lower[j + 1]};
      for (int i = 0; i < 4; i++) d[j / 2 + i] = product.accumulate ? d[j / 2 + i] + sums[i] : sums[i];
    }
  }
}

void check_operand(uint64_t descriptor, uint32_t rows, Place place) {
  const size_t start = size_t(descriptor & 0x3fff) << 4, group = size_t(descriptor >> 32 & 0x3fff) << 4;
  if (descriptor >> 62 != 1) fail(place, "wgmma: only operands with 128-byte swizzle are known here");
  if (start % 1024 > 96 || start % 32) fail(place, "wgmma: an operand at byte %zu of shared memory; tiles start at multiples of 1024", start);
  if (start + (rows / 8 - 1) * group + 1024 > SHARED_ARENA + 1024) fail(place, "wgmma: an operand beyond shared memory");
}

void check_values(uint64_t descriptor, uint32_t columns, Place place) {
  const size_t start = size_t(descriptor & 0x3fff) << 4, next = size_t(descriptor >> 16 & 0x3fff) << 4;
  if (descriptor >> 62 != 1) fail(place, "wgmma: only operands with 128-byte swizzle are known here");
  if (start % 1024 || next % 1024) fail(place, "wgmma: values at byte %zu of shared memory, %zu apart; both are multiples of 1024", start, next);
  if (start + (columns / BOX_COLUMNS - 1) * next + 2048 > SHARED_ARENA) fail(place, "wgmma: an operand beyond shared memory");
}

}  // namespace

namespace {

// Issues a product whose operands all threads agree on.
void issue(const char* kind, float* d, Place place) {
  Fiber* const f = self();
  meet_group(kind, d, place, [f](WarpGroup& group) {
    for (int t = 0; t < GROUP; t++) group.next.d[t] = static_cast<float*>(group.argument[t]);
    if (launch_of(f).early) {
      perform(block_of(f), group.next);
      happens_before(&group.performed);
      return;
    }
    const Quiet quiet;
    group.open.push_back(group.next);
  });
}

}  // namespace

void wgmma(float* d, uint32_t n, bool is_bf16, uint64_t a, uint64_t b, bool accumulate, Place place) {
  check_operand(a, ROWS, place);
  check_operand(b, n, place);
  Fiber* const f = self();
  WarpGroup& meeting = block_of(f)->groups[f->linear / GROUP];
  if (!meeting.arrived) {
    meeting.next = {a, b, n, is_bf16, accumulate, false, {}, {}};
  } else if (meeting.next.a != a || meeting.next.b != b || meeting.next.n != n || meeting.next.accumulate != accumulate) {
    fail(place, "divergence in a warpgroup: its threads give wgmma different operands");
  }
  issue("wgmma", d, place);
}

void wgmma_values(float* d, uint32_t n, bool is_bf16, const uint32_t* a, uint64_t b, Place place) {
  check_values(b, n, place);
  Fiber* const f = self();
  WarpGroup& meeting = block_of(f)->groups[f->linear / GROUP];
  if (!meeting.arrived) {
    meeting.next = {0, b, n, is_bf16, true, true, {}, {}};
  } else if (meeting.next.b != b || meeting.next.n != n) {
    fail(place, "divergence in a warpgroup: its threads give wgmma different operands");
  }
  meeting.next.words[f->linear % GROUP] = a;
  issue("wgmma of values", d, place);
}

// All products of a group were issued when the first thread, which took part in each, comes here.
void wgmma_commit(Place place) {
  Fiber* const f = self();
  f->place = place;
  if (f->linear % GROUP) return;
  WarpGroup& group = block_of(f)->groups[f->linear / GROUP];
  const Quiet quiet;
  group.closed.push_back(std::move(group.open));
  group.open.clear();
}

void wgmma_wait(uint32_t newest_left, Place place) {
  Block* const block = block_of(self());
  meet_group("wgmma_wait", nullptr, place, [block, newest_left](WarpGroup& group) {
    while (group.closed.size() > newest_left) {
      for (const PendingProduct& product : group.closed.front()) perform(block, product);
      const Quiet quiet;
      group.closed.pop_front();
    }
    happens_before(&group.performed);
  });
  happens_after(&block->groups[self()->linear / GROUP].performed);
}

}  // namespace host
