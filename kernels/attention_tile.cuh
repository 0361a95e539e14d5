// A tile of packed queries (args.cuh, SegmentInfo) of one segment and key/value head against a range of the segment's keys, as the attention kernels
// find it in the work list. Every bound is checked here: a record that lies makes a tile empty, it never leads out of a buffer.
#pragma once
#include "attention.cuh"

constexpr uint32_t LINES = 16;                  // packed queries of a unit of partial results, and of a warp
constexpr uint32_t PIECE_KEYS = BLOCK_TOKENS;   // keys of a cache block
constexpr size_t NOWHERE = ~size_t(0);

// A tile, with every bound checked: its lines are rows of the batch, its keys have entries in the block table.
struct Tile {
    const SegmentInfo* segment;
    uint32_t kv_head;
    uint32_t packed;           // first packed query
    uint32_t lines;            // packed queries that exist
    uint32_t keys;             // keys that the table can hold
    uint32_t begin, end;       // keys that any line sees
    uint32_t split;
};

template <uint32_t M>
DEVICE_INLINE bool tile_of(const AttentionArgs& a, uint32_t unit, Tile& t) {
    const AttentionItem item = a.items[unit / a.kv_heads];
    if (item.segment >= min(a.counts->segments, a.max_segments)) return false;
    const SegmentInfo& s = a.segments[item.segment];
    const uint32_t group = a.heads / a.kv_heads;
    const uint32_t count = live_rows(s, a.max_rows) * group;
    if (item.packed >= count) return false;
    t.segment = &s;
    t.kv_head = unit % a.kv_heads;
    t.packed = item.packed;
    t.lines = min(M, count - item.packed);
    t.keys = table_keys(s.table, s.table_blocks, a.max_table);
    // Rows see further the later they come: the first line has the lowest key, the last line the highest.
    t.begin = max(item.key_begin, visible_keys(s, t.packed / group, a.window, t.keys).begin);
    t.end = min(item.key_end, visible_keys(s, (t.packed + t.lines - 1) / group, a.window, t.keys).end);
    t.split = item.split;
    return t.begin < t.end;
}

// The keys of the tile that a line sees.
DEVICE_INLINE KeyRange line_keys(const AttentionArgs& a, const Tile& t, uint32_t line) {
    if (line >= t.lines) return {0, 0};
    const KeyRange seen = visible_keys(*t.segment, (t.packed + line) / (a.heads / a.kv_heads), a.window, t.keys);
    return {max(seen.begin, t.begin), min(seen.end, t.end)};
}

// Element of q and out where the line begins.
template <int HD>
DEVICE_INLINE size_t line_place(const AttentionArgs& a, const Tile& t, uint32_t line) {
    const uint32_t group = a.heads / a.kv_heads, p = t.packed + line;
    return (size_t(t.segment->first_row + p / group) * a.heads + t.kv_head * group + p % group) * HD;
}

// Cache block of the keys from 16 * entry on; NONE if the table does not tell or lies.
DEVICE_INLINE uint32_t block_of(const AttentionArgs& a, const Tile& t, uint32_t entry) {
    if (entry * PIECE_KEYS >= t.keys) return NONE;
    const uint32_t block = a.blocks[t.segment->table + entry];
    return block < a.cache_blocks ? block : NONE;
}

// Line of the partial results that a line of the tile writes; NOWHERE if there is no room for it.
DEVICE_INLINE size_t partial_place(const AttentionArgs& a, const Tile& t, uint32_t line) {
    const uint32_t p = t.packed + line;
    const uint32_t unit = t.segment->partial + t.split * t.segment->split_units + p / LINES;
    if (unit >= a.max_units) return NOWHERE;
    return (size_t(unit) * a.kv_heads + t.kv_head) * LINES + p % LINES;
}

// Read anew for each unit: the wide kernel has no register to keep it in.
DEVICE_INLINE uint32_t unit_count(const AttentionArgs& a) { return min(*a.item_count, a.max_items) * a.kv_heads; }
