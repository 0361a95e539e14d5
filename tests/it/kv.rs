//! The block pool against a model that keeps plain lists and looks at everything, and the rules one by one.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::collection::vec;
use proptest::prelude::any;
use proptest::test_runner::{Config, TestRunner};
use sidereal::ids::{BlockId, TokenId};
use sidereal::kv::{BLOCK_TOKENS, BeamSlots, Block, BlockPool, PoolStats, Registered, Table};

/// Tokens of a text in which each letter fills a block, and `extra` tokens more.
fn tokens(letters: &[u8], extra: usize) -> Vec<TokenId> {
    let full =
        letters.iter().flat_map(|&c| (0..BLOCK_TOKENS).map(move |i| TokenId(100 * u32::from(c) + i as u32)));
    full.chain((0..extra).map(|i| TokenId(9000 + i as u32))).collect()
}

fn ids(blocks: &[Block]) -> Vec<u32> {
    blocks.iter().map(|block| block.id().0).collect()
}

/// Allocates, and registers as `letters`.
fn cached(pool: &BlockPool, salt: u64, letters: &[u8]) -> Vec<Block> {
    let blocks = pool.allocate(letters.len()).unwrap();
    pool.register(salt, &tokens(letters, 0), &blocks);
    blocks
}

#[test]
fn a_sequence_registered_as_it_grows_is_found_like_one_registered_at_once() {
    let pool = BlockPool::new(8);
    let blocks = pool.allocate(4).unwrap();
    let all = tokens(b"abcd", 0);
    let mut registered = Registered::default();
    // Nothing new, a part of a block, one block, the rest, and the end again.
    for len in [0, BLOCK_TOKENS - 1, BLOCK_TOKENS, 4 * BLOCK_TOKENS, 4 * BLOCK_TOKENS] {
        registered = pool.register_more(0, &all[..len], &blocks, registered);
        assert_eq!(
            ids(&pool.lookup(0, &tokens(b"abcd", 1))),
            ids(&blocks[..len / BLOCK_TOKENS]),
            "after {len}"
        );
    }
    assert!(pool.lookup(1, &tokens(b"abcd", 1)).is_empty());
}

// ---- the model ------------------------------------------------------------------------------------------------

/// What a registration says, and the number of the one before it (0: none).
#[derive(Clone, Debug)]
struct Registration {
    number: usize,
    parent: usize,
    salt: u64,
    letter: u8,
    block: u32,
}

#[derive(Default)]
struct Model {
    refs: Vec<usize>,
    free: BTreeSet<u32>,
    /// Oldest first.
    cached: Vec<u32>,
    /// Block and stamp.
    pending: Vec<(u32, u64)>,
    registered: Vec<Registration>,
    registrations: usize,
    begun: u64,
    ended: u64,
    /// What the steps in flight may read.
    in_flight: VecDeque<BTreeSet<u32>>,
    /// What a device would find in each block: the salt and the letters up to and including the block's own.
    written: BTreeMap<u32, (u64, Vec<u8>)>,
}

impl Model {
    fn new(blocks: usize) -> Model {
        Model { refs: vec![0; blocks], free: (0..blocks as u32).collect(), ..Model::default() }
    }

    fn acquire(&mut self, block: u32) {
        if self.refs[block as usize] == 0 {
            self.free.remove(&block);
            self.cached.retain(|&b| b != block);
            self.pending.retain(|&(b, _)| b != block);
        }
        self.refs[block as usize] += 1;
    }

    fn release(&mut self, block: u32) {
        self.refs[block as usize] -= 1;
        if self.refs[block as usize] == 0 {
            self.pending.push((block, self.begun));
            self.settle();
        }
    }

    fn settle(&mut self) {
        let ended = self.ended;
        let (ready, waiting) = self.pending.iter().copied().partition(|&(_, stamp)| stamp <= ended);
        self.pending = waiting;
        let ready: Vec<(u32, u64)> = ready;
        for (block, _) in ready {
            let Some(own) = self.registered.iter().find(|r| r.block == block) else {
                self.free.insert(block);
                continue;
            };
            let parent = self.registered.iter().find(|r| r.number == own.parent);
            let before = parent.and_then(|p| self.cached.iter().position(|&b| b == p.block));
            self.cached.insert(before.unwrap_or(self.cached.len()), block);
        }
    }

    fn find(&self, parent: usize, salt: u64, letter: u8) -> Option<&Registration> {
        self.registered.iter().find(|r| r.parent == parent && r.salt == salt && r.letter == letter)
    }

    fn lookup(&self, salt: u64, letters: &[u8]) -> Vec<u32> {
        let (mut found, mut parent) = (Vec::new(), 0);
        for &letter in letters {
            let Some(hit) = self.find(parent, salt, letter) else { break };
            found.push(hit.block);
            parent = hit.number;
        }
        found
    }

    fn register(&mut self, salt: u64, letters: &[u8], blocks: &[u32]) {
        let mut parent = 0;
        for (&letter, &block) in letters.iter().zip(blocks) {
            if let Some(first) = self.find(parent, salt, letter) {
                parent = first.number;
                continue;
            }
            self.registered.retain(|r| r.block != block);
            self.registrations += 1;
            self.registered.push(Registration { number: self.registrations, parent, salt, letter, block });
            parent = self.registrations;
        }
    }

    /// Checks what an allocation returned, and carries it out. Returns the number of evicted blocks.
    fn allocated(&mut self, n: usize, got: Option<&[Block]>) -> usize {
        let Some(got) = got else {
            assert!(self.free.len() + self.cached.len() < n, "{n} blocks refused");
            return 0;
        };
        assert_eq!(got.len(), n);
        let evicted = n.saturating_sub(self.free.len());
        let mut allowed = self.free.clone();
        allowed.extend(&self.cached[..evicted]);
        for block in ids(got) {
            assert!(allowed.remove(&block), "block {block} handed out twice, or before its turn");
            assert!(self.in_flight.iter().all(|step| !step.contains(&block)), "block {block} may be read");
            self.registered.retain(|r| r.block != block);
            self.written.remove(&block);
            self.acquire(block);
        }
        assert!(evicted == 0 || allowed.is_empty(), "evicted although blocks were free");
        evicted
    }

    fn stats(&self) -> PoolStats {
        PoolStats {
            total: self.refs.len(),
            free: self.free.len(),
            used: self.refs.iter().filter(|&&refs| refs > 0).count(),
            cached: self.cached.len(),
            pending: self.pending.len(),
        }
    }
}

// ---- schedules ------------------------------------------------------------------------------------------------

struct Sequence {
    salt: u64,
    letters: Vec<u8>,
    /// At least one per letter.
    blocks: Vec<Block>,
}

/// How often the schedules did what they are meant to do.
#[derive(Default)]
struct Seen {
    hits: Cell<usize>,
    evictions: Cell<usize>,
    refusals: Cell<usize>,
    pending: Cell<usize>,
    revived: Cell<usize>,
    unreachable: Cell<usize>,
}

fn count(cell: &Cell<usize>, n: usize) {
    cell.set(cell.get() + n);
}

struct World<'a> {
    pool: BlockPool,
    model: Model,
    sequences: Vec<Sequence>,
    seen: &'a Seen,
}

impl World<'_> {
    fn allocate(&mut self, n: usize) -> Option<Vec<Block>> {
        let got = self.pool.allocate(n);
        let evicted = self.model.allocated(n, got.as_deref());
        count(&self.seen.evictions, evicted);
        count(&self.seen.refusals, usize::from(got.is_none()));
        got
    }

    fn drop_blocks(&mut self, blocks: impl IntoIterator<Item = Block>) {
        for block in blocks {
            self.model.release(block.id().0);
            drop(block);
        }
    }

    fn arrive(&mut self, a: usize, b: usize) {
        let (salt, len, extra) = ((a % 2) as u64, 1 + a / 2 % 5, a / 10 % 3);
        let letters: Vec<u8> = (0..len).map(|i| (b >> (2 * i) & 1) as u8).collect();
        let mut blocks = self.pool.lookup(salt, &tokens(&letters, extra));
        // All but the last token: with none extra the last block is not looked for.
        let most = if extra > 0 { len } else { len - 1 };
        assert_eq!(ids(&blocks), self.model.lookup(salt, &letters[..most]));
        for (i, block) in ids(&blocks).into_iter().enumerate() {
            assert_eq!(self.model.written[&block], (salt, letters[..=i].to_vec()), "a false hit");
            count(&self.seen.revived, usize::from(self.model.pending.iter().any(|&(b, _)| b == block)));
            self.model.acquire(block);
        }
        count(&self.seen.hits, blocks.len());
        let Some(new) = self.allocate(len - blocks.len()) else { return self.drop_blocks(blocks) };
        for (i, block) in ids(&new).into_iter().enumerate() {
            self.model.written.insert(block, (salt, letters[..=blocks.len() + i].to_vec()));
        }
        blocks.extend(new);
        self.sequences.push(Sequence { salt, letters, blocks });
    }

    fn extend(&mut self, i: usize, letter: u8) {
        let Some(new) = self.allocate(1) else { return };
        let sequence = &mut self.sequences[i];
        if sequence.letters.len() == sequence.blocks.len() {
            sequence.letters.push(letter);
            let contents = (sequence.salt, sequence.letters.clone());
            self.model.written.insert(new[0].id().0, contents);
        }
        sequence.blocks.extend(new);
    }

    fn register(&mut self, i: usize, tokens_short: usize) {
        let Sequence { salt, letters, blocks } = &self.sequences[i];
        let text = tokens(letters, 3);
        let text = &text[..text.len().saturating_sub(tokens_short)];
        self.pool.register(*salt, text, &blocks[..letters.len()]);
        let full = letters.len().min(text.len() / BLOCK_TOKENS);
        self.model.register(*salt, &letters[..full], &ids(&blocks[..full]));
    }

    fn fork(&mut self, i: usize, keep: usize) {
        let Sequence { salt, letters, blocks } = &self.sequences[i];
        let blocks = blocks[..keep % (blocks.len() + 1)].to_vec();
        let letters = letters[..letters.len().min(blocks.len())].to_vec();
        blocks.iter().for_each(|block| self.model.acquire(block.id().0));
        self.sequences.push(Sequence { salt: *salt, letters, blocks });
    }

    fn step(&mut self, (op, a, b): (u8, u16, u16)) {
        let (a, b) = (usize::from(a), usize::from(b));
        let i = a % self.sequences.len().max(1);
        match op % 12 {
            0..3 => self.arrive(a, b),
            3 => {
                self.model.begun += 1;
                assert_eq!(self.pool.begin_step(), self.model.begun);
                let held = self.sequences.iter().flat_map(|s| ids(&s.blocks)).collect();
                self.model.in_flight.push_back(held);
            }
            4 if !self.model.in_flight.is_empty() => {
                let steps = 1 + a % self.model.in_flight.len();
                self.model.in_flight.drain(..steps);
                self.model.ended += steps as u64;
                self.pool.end_step(self.model.ended);
                self.model.settle();
            }
            5 => {
                if let Some(blocks) = self.allocate(a % 4) {
                    self.sequences.push(Sequence { salt: 0, letters: Vec::new(), blocks });
                }
            }
            _ if self.sequences.is_empty() => {}
            6..8 => self.register(i, b % 40),
            8 => self.fork(i, b),
            9 => self.extend(i, (b & 1) as u8),
            10 => {
                let mut blocks = self.sequences.swap_remove(i).blocks;
                if b & 1 == 1 {
                    blocks.reverse();
                }
                self.drop_blocks(blocks);
            }
            11 => {
                let sequence = &mut self.sequences[i];
                let keep = b % (sequence.blocks.len() + 1);
                sequence.letters.truncate(keep);
                let cut = sequence.blocks.split_off(keep);
                self.drop_blocks(cut);
            }
            _ => {}
        }
    }

    fn check(&self) {
        assert_eq!(self.pool.stats(), self.model.stats());
        let stats = self.pool.stats();
        assert_eq!(stats.total, stats.free + stats.used + stats.cached + stats.pending);
        let mut handles = vec![0; stats.total];
        for sequence in &self.sequences {
            for (i, block) in sequence.blocks.iter().enumerate() {
                handles[block.id().index()] += 1;
                assert_eq!(block.references(), self.model.refs[block.id().index()]);
                if i < sequence.letters.len() {
                    let contents = &self.model.written[&block.id().0];
                    assert_eq!(contents, &(sequence.salt, sequence.letters[..=i].to_vec()), "overwritten");
                }
            }
        }
        assert_eq!(handles, self.model.refs);
        count(&self.seen.pending, stats.pending);
        let known = |number| number == 0 || self.model.registered.iter().any(|r| r.number == number);
        count(&self.seen.unreachable, self.model.registered.iter().filter(|r| !known(r.parent)).count());
    }

    fn end(mut self) {
        let all = self.pool.stats().total;
        let left: Vec<Block> = self.sequences.drain(..).flat_map(|s| s.blocks).collect();
        self.drop_blocks(left);
        self.pool.end_step(self.model.begun);
        self.model.ended = self.model.begun;
        self.model.in_flight.clear();
        self.model.settle();
        self.check();
        assert_eq!(self.pool.stats().available(), all, "a leak");
        let blocks = self.allocate(all).expect("every block");
        self.drop_blocks(blocks);
        assert_eq!(self.pool.stats(), PoolStats { total: all, free: all, ..PoolStats::default() });
    }
}

#[test]
fn random_schedules_agree_with_the_model() {
    let seen = Seen::default();
    let schedule = (4usize..20, vec((any::<u8>(), any::<u16>(), any::<u16>()), 1..70));
    let config = Config { cases: 10_000, failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(&schedule, |(blocks, operations)| {
            let mut world = World {
                pool: BlockPool::new(blocks),
                model: Model::new(blocks),
                sequences: Vec::new(),
                seen: &seen,
            };
            for operation in operations {
                world.step(operation);
                world.check();
            }
            world.end();
            Ok(())
        })
        .unwrap();
    let Seen { hits, evictions, refusals, pending, revived, unreachable } = seen;
    for (what, often) in [
        ("hits", hits),
        ("evictions", evictions),
        ("refusals", refusals),
        ("pending blocks", pending),
        ("hits of pending blocks", revived),
        ("registrations whose parent is gone", unreachable),
    ] {
        assert!(often.get() > 100, "the schedules show too few {what}: {}", often.get());
    }
}

// ---- the rules, one by one --------------------------------------------------------------------------------------

#[test]
fn allocation_is_all_or_nothing() {
    let pool = BlockPool::new(4);
    let held = cached(&pool, 0, &[1]);
    drop(cached(&pool, 0, &[2, 3]));
    let before = pool.stats();
    assert_eq!(before, PoolStats { total: 4, free: 1, used: 1, cached: 2, pending: 0 });
    assert!(pool.allocate(4).is_none());
    assert_eq!(pool.stats(), before);
    assert_eq!(pool.lookup(0, &tokens(&[2, 3], 1)).len(), 2, "a refused allocation evicts nothing");
    assert_eq!(pool.allocate(3).unwrap().len(), 3);
    assert_eq!(pool.allocate(0).unwrap().len(), 0);
    drop(held);
}

#[test]
fn the_least_recently_used_goes_first_and_the_end_of_a_prefix_before_its_beginning() {
    let pool = BlockPool::new(6);
    // Both orders of dropping: from the first block on, and from the last.
    drop(cached(&pool, 0, &[1, 2, 3]));
    let mut second = cached(&pool, 0, &[4, 5, 6]);
    while second.pop().is_some() {}
    // Used again: now the first is the younger.
    drop(pool.lookup(0, &tokens(&[1, 2, 3], 1)));

    let length = |letters: &[u8]| pool.lookup(0, &tokens(letters, 1)).len();
    let mut taken = Vec::new();
    for (first, second) in [(3, 2), (3, 1), (3, 0), (2, 0), (1, 0), (0, 0)] {
        taken.extend(pool.allocate(1).unwrap());
        // In the order that keeps the first younger.
        assert_eq!((length(&[4, 5, 6]), length(&[1, 2, 3])), (second, first));
    }
    assert!(pool.allocate(1).is_none());
}

#[test]
fn a_hit_leaves_the_last_token_and_needs_salt_and_beginning() {
    let pool = BlockPool::new(8);
    let held = cached(&pool, 7, &[1, 2]);
    let length = |salt, letters: &[u8], extra| pool.lookup(salt, &tokens(letters, extra)).len();
    assert_eq!(length(7, &[1, 2], 1), 2);
    assert_eq!(length(7, &[1, 2], 0), 1, "the last token is left");
    assert_eq!(length(7, &[1, 2, 3], 1), 2);
    assert_eq!(length(7, &[1, 3], 1), 1);
    assert_eq!(length(7, &[2], 1), 0, "the second block alone");
    assert_eq!(length(8, &[1, 2], 1), 0, "another salt");
    assert_eq!(length(7, &[], 0), 0);

    let twin = cached(&pool, 7, &[1, 2, 3]);
    assert_eq!(ids(&pool.lookup(7, &tokens(&[1, 2, 3], 1))), [ids(&held), ids(&twin)[2..].to_vec()].concat());
    drop(twin);
    assert_eq!(pool.stats().cached, 1, "duplicates are not kept");
}

#[test]
fn a_block_waits_for_the_newest_step_that_may_read_it() {
    let pool = BlockPool::new(2);
    let mut blocks = pool.allocate(2).unwrap();
    let first = pool.begin_step();
    blocks.pop();
    let second = pool.begin_step();
    blocks.pop();
    assert_eq!(pool.stats(), PoolStats { total: 2, pending: 2, ..PoolStats::default() });
    assert!(pool.allocate(1).is_none());

    pool.end_step(first);
    assert_eq!(pool.stats(), PoolStats { total: 2, free: 1, pending: 1, ..PoolStats::default() });
    let held = pool.allocate(1).unwrap();
    drop(held);
    assert_eq!(pool.stats().pending, 2, "the second step is still in flight");

    pool.end_step(second);
    pool.end_step(first);
    assert_eq!(pool.stats(), PoolStats { total: 2, free: 2, ..PoolStats::default() });
}

#[test]
fn a_pending_prefix_can_be_used_but_not_evicted() {
    let pool = BlockPool::new(2);
    let blocks = cached(&pool, 0, &[1]);
    let step = pool.begin_step();
    drop(blocks);
    assert_eq!(pool.stats(), PoolStats { total: 2, free: 1, pending: 1, ..PoolStats::default() });
    assert!(pool.allocate(2).is_none());
    let again = pool.lookup(0, &tokens(&[1], 1));
    assert_eq!(again.len(), 1);
    pool.end_step(step);
    assert_eq!(pool.stats(), PoolStats { total: 2, free: 1, used: 1, ..PoolStats::default() });
    drop(again);
    assert_eq!(pool.stats(), PoolStats { total: 2, free: 1, cached: 1, ..PoolStats::default() });
}

#[test]
#[should_panic(expected = "step 1 ends, but only 0 have begun")]
fn a_step_that_never_began_cannot_end() {
    BlockPool::new(1).end_step(1);
}

#[test]
fn handles_may_be_dropped_on_any_thread() {
    let pool = BlockPool::new(64);
    std::thread::scope(|scope| {
        for salt in 0..4 {
            let pool = pool.clone();
            scope.spawn(move || {
                for round in 0..200 {
                    let letters = [round % 5, round % 3];
                    let mut table = Table::new(&pool, pool.lookup(salt, &tokens(&letters, 1)));
                    let step = pool.begin_step();
                    if table.ensure(2 * BLOCK_TOKENS + 1).is_some() {
                        pool.register(salt, &tokens(&letters, 0), table.blocks());
                    }
                    drop(table);
                    pool.end_step(step);
                }
            });
        }
    });
    let stats = pool.stats();
    assert_eq!((stats.used, stats.pending, stats.available()), (0, 0, 64));
}

#[test]
fn a_table_maps_positions_to_slots() {
    let pool = BlockPool::new(6);
    let _other = pool.allocate(2).unwrap();
    let mut table = Table::new(&pool, Vec::new());
    assert_eq!(table.capacity(), 0);
    for (tokens, blocks) in [(0, 0), (1, 1), (16, 1), (17, 2), (5, 2), (48, 3)] {
        table.ensure(tokens).unwrap();
        assert_eq!(table.blocks().len(), blocks, "{tokens} tokens");
    }
    let slots: BTreeSet<u32> = (0..48).map(|position| table.slot(position)).collect();
    assert_eq!(slots.len(), 48);
    for position in 0..48 {
        let (slot, place) = (table.slot(position), position as usize);
        assert_eq!(BlockId(slot / 16), table.ids().nth(place / 16).unwrap());
        assert_eq!(slot as usize % 16, place % 16);
    }

    assert!(table.ensure(5 * 16).is_none(), "one block is free");
    assert_eq!(table.blocks().len(), 3);
    table.truncate(17);
    assert_eq!((table.capacity(), pool.stats().free), (32, 2));
    table.truncate(0);
    assert_eq!(pool.stats().free, 4);
}

#[test]
#[should_panic(expected = "place 16 of a table with room for 16")]
fn a_position_without_room_has_no_slot() {
    let mut table = Table::new(&BlockPool::new(2), Vec::new());
    table.ensure(16).unwrap();
    table.slot(16);
}

#[test]
fn beams_have_a_place_for_every_level_and_row() {
    for (levels, stride, blocks) in [(1, 1, 1), (3, 5, 1), (4, 4, 1), (3, 30, 6), (2, 1024, 128), (0, 9, 0)] {
        assert_eq!(BeamSlots::blocks_needed(levels, stride), blocks, "{levels} x {stride}");
        let pool = BlockPool::new(blocks + 1);
        let _first = pool.allocate(1).unwrap();
        let beams = BeamSlots::new(&pool, levels, stride).unwrap();
        assert_eq!((beams.levels(), beams.stride(), beams.ids().len()), (levels, stride, blocks));
        let mut slots = BTreeSet::new();
        for level in 0..levels {
            for row in 0..stride {
                let (slot, place) = (beams.slot(level, row), u32::from(level) * stride + row);
                assert_eq!(BlockId(slot / 16), beams.ids().nth(place as usize / 16).unwrap());
                assert_eq!(slot % 16, place % 16);
                slots.insert(slot);
            }
        }
        assert_eq!(slots.len(), levels as usize * stride as usize);
        assert!(BeamSlots::new(&pool, 1, 1).is_none());
        drop(beams);
        assert_eq!(pool.stats().free, blocks);
    }
}

#[test]
#[should_panic(expected = "row 4 of a search with 4 private places per level")]
fn a_row_beyond_the_stride_has_no_slot() {
    BeamSlots::new(&BlockPool::new(4), 2, 4).unwrap().slot(0, 4);
}
