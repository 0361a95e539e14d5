// Shared memory, cp.async, and flags between blocks.
#include <cstring>

#include "state.h"

namespace host {

namespace {

size_t rounded_up(size_t value, size_t to) { return (value + to - 1) / to * to; }

// Fills a gap behind an array and remembers it. Returns whether it is new.
bool add_red_zone(Block* block, size_t start, size_t end, Place place) {
  for (const RedZone& zone : block->zones) {
    if (zone.start == start && zone.end == end) return false;
    if (zone.start < end && start < zone.end) fail(place, "dynamic shared memory is carved in two ways: the layout differs between threads or carvers");
  }
  memset(block->arena + start, RED, end - start);
  poison(block->arena + start, end - start);
  block->zones.push_back({uint32_t(start), uint32_t(end), place});
  return true;
}

}  // namespace

void* shared_array(const void* key, size_t bytes, size_t align, Place place) {
  const Quiet quiet;
  Block* const block = block_of(self());
  for (const StaticArray& array : block->arrays)
    if (array.key == key) return array.at;
  align = align < 16 ? 16 : align;
  if (align > 1024) fail(place, "a static shared array aligned to %zu bytes", align);
  block->static_declared = rounded_up(block->static_declared, align) + bytes;
  if (block->static_declared > STATIC_LIMIT)
    fail(place, "static shared arrays take %zu bytes; a block may have %zu", block->static_declared, STATIC_LIMIT);
  if (block->static_declared + block->dynamic_bytes > SHARED_LIMIT)
    fail(place, "static and dynamic shared memory take %zu bytes; a block may have %zu", block->static_declared + block->dynamic_bytes, SHARED_LIMIT);
  const size_t start = SHARED_ARENA + rounded_up(block->static_used, align), end = start + bytes, zone = rounded_up(end + 16, 16);
  if (zone > SHARED_ARENA + STATIC_ARENA) fail(place, "too many static shared arrays for the red zones between them");
  block->static_used = zone - SHARED_ARENA;
  unsigned char* const at = block->arena + start;
  memset(at, POISON, bytes);
  add_red_zone(block, end, zone, place);
  block->arrays.push_back({key, at, bytes});
  return at;
}

void* carve(uint32_t& declared, uint32_t& actual, size_t bytes, size_t align, Place place) {
  const Quiet quiet;
  Block* const block = block_of(self());
  if (align == 0 || (align & (align - 1)) || align > 1024) fail(place, "carver: an alignment of %zu", align);
  const size_t needed = rounded_up(declared, align) + bytes;
  if (needed > block->dynamic_bytes)
    fail(place, "shared-memory overrun: the carver needs %zu bytes of dynamic shared memory; the launch gave %u", needed, block->dynamic_bytes);
  declared = uint32_t(needed);
  if (!block->carved) {  // red zones between the arrays take the place of the one at the end, which is the first of all
    block->carved = true;
    block->zones.erase(block->zones.begin());
    block->dynamic_used = 0;
  }
  const size_t start = rounded_up(actual, align), end = start + bytes, zone = rounded_up(end + 16, 16);
  if (zone > SHARED_ARENA) fail(place, "too many arrays in dynamic shared memory for the red zones between them");
  actual = uint32_t(zone);
  if (zone > block->dynamic_used) {
    memset(block->arena + start, POISON, bytes);
    add_red_zone(block, end, zone, place);
    block->dynamic_used = zone;
  } else {
    add_red_zone(block, end, zone, place);
  }
  return block->arena + start;
}

uint32_t shared_address(const void* pointer, Place place) {
  Block* const block = block_of(self());
  const size_t offset = size_t(static_cast<const unsigned char*>(pointer) - block->arena);
  if (offset >= SHARED_ARENA + STATIC_ARENA) fail(place, "%p is not an address in shared memory", pointer);
  return uint32_t(offset);
}

// ---- cp.async: lands when issued, or when waited for

namespace {

void land(const PendingCopy& copy) {
  if (copy.valid) reads(copy.from, copy.valid);
  writes(copy.to, copy.bytes);
  const Quiet quiet;
  if (copy.valid) memcpy(copy.to, copy.from, copy.valid);
  memset(static_cast<unsigned char*>(copy.to) + copy.valid, 0, copy.bytes - copy.valid);
}

CopyGroups& groups_of(Fiber* f) {
  if (!f->copies) f->copies = std::make_unique<CopyGroups>();
  return *f->copies;
}

}  // namespace

void cp_async(void* to, const void* from, uint32_t bytes, uint32_t valid, Place place) {
  Fiber* const f = self();
  Block* const block = block_of(f);
  check_aligned(to, bytes, "cp.async into shared memory", place);
  if (valid) check_aligned(from, bytes, "cp.async from global memory", place);
  const size_t offset = size_t(static_cast<unsigned char*>(to) - block->arena);
  if (offset + bytes > SHARED_ARENA + STATIC_ARENA) fail(place, "cp.async: %p is not an address in shared memory", to);
  f->place = place;
  const PendingCopy copy{to, from, bytes, valid};
  if (launch_of(f).early) {
    land(copy);
    return;
  }
  const Quiet quiet;
  groups_of(f).open.push_back(copy);
}

void cp_async_commit() {
  Fiber* const f = self();
  if (launch_of(f).early) return;
  const Quiet quiet;
  CopyGroups& groups = groups_of(f);
  groups.closed.push_back(std::move(groups.open));
  groups.open.clear();
}

void cp_async_wait(uint32_t newest_left) {
  Fiber* const f = self();
  if (!f->copies) return;
  while (f->copies->closed.size() > newest_left) {
    for (const PendingCopy& copy : f->copies->closed.front()) land(copy);
    const Quiet quiet;
    f->copies->closed.pop_front();
  }
}

// ---- flags

uint32_t load_acquire(const uint32_t* flag) {
  const uint32_t value = __atomic_load_n(flag, __ATOMIC_ACQUIRE);
  happens_after(flag);
  return value;
}

uint32_t add_release(uint32_t* flag, uint32_t value) {
  happens_after(flag);
  happens_before(flag);
  return __atomic_fetch_add(flag, value, __ATOMIC_ACQ_REL);
}

void store_release(uint32_t* flag, uint32_t value) {
  happens_before(flag);
  __atomic_store_n(flag, value, __ATOMIC_RELEASE);
}

}  // namespace host
