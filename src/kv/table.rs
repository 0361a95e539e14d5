//! Where keys go: the block table of a sequence and the private places of a search.
//!
//! Both are a list of blocks read as one array of places, place `p` being place `p % BLOCK_TOKENS` of block
//! `p / BLOCK_TOKENS`. In a [`Table`] the place of a token is its position; in [`BeamSlots`] it is `level * stride + row`,
//! so that a beam's keys never move: who descends from whom is the device's affair.

use super::{BLOCK_TOKENS, Block, BlockPool};
use crate::ids::BlockId;

/// The cache blocks of one sequence, in order of position.
#[derive(Debug)]
pub struct Table {
    pool: BlockPool,
    blocks: Vec<Block>,
}

impl Table {
    /// A table that begins with `prefix`, the blocks of a [`BlockPool::lookup`], and grows from `pool`.
    pub fn new(pool: &BlockPool, prefix: Vec<Block>) -> Table {
        Table { pool: pool.clone(), blocks: prefix }
    }

    /// The blocks.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// The ids of the blocks, as a plan wants them.
    pub fn ids(&self) -> impl ExactSizeIterator<Item = BlockId> + '_ {
        self.blocks.iter().map(Block::id)
    }

    /// Tokens that the blocks have room for.
    pub fn capacity(&self) -> usize {
        self.blocks.len() * BLOCK_TOKENS
    }

    /// The cache slot of a position.
    ///
    /// # Panics
    /// If the position is beyond [`Table::capacity`].
    pub fn slot(&self, position: u32) -> u32 {
        slot(&self.blocks, position as usize)
    }

    /// Makes room for `tokens` tokens in all; never shrinks.
    ///
    /// `None`: the pool has too few blocks; the table is as it was.
    #[must_use = "without room there are no slots"]
    pub fn ensure(&mut self, tokens: usize) -> Option<()> {
        let missing = tokens.div_ceil(BLOCK_TOKENS).saturating_sub(self.blocks.len());
        if missing > 0 {
            self.blocks.extend(self.pool.allocate(missing)?);
        }
        Some(())
    }

    /// Gives back the blocks that `tokens` tokens do not need.
    ///
    /// A block that is kept in part may be written again only if it has not been registered and is not shared.
    pub fn truncate(&mut self, tokens: usize) {
        self.blocks.truncate(tokens.div_ceil(BLOCK_TOKENS));
    }
}

/// The private cache places of a beam search: one for each level and row.
#[derive(Debug)]
pub struct BeamSlots {
    blocks: Vec<Block>,
    levels: u8,
    stride: u32,
}

impl BeamSlots {
    /// Places for `levels` levels of `stride` rows.
    ///
    /// `None`: the pool has fewer than [`BeamSlots::blocks_needed`] blocks.
    pub fn new(pool: &BlockPool, levels: u8, stride: u32) -> Option<BeamSlots> {
        let blocks = pool.allocate(BeamSlots::blocks_needed(levels, stride))?;
        Some(BeamSlots { blocks, levels, stride })
    }

    /// The number of blocks that `levels * stride` places take.
    pub fn blocks_needed(levels: u8, stride: u32) -> usize {
        (usize::from(levels) * stride as usize).div_ceil(BLOCK_TOKENS)
    }

    /// The cache slot of a row's key at a level.
    ///
    /// # Panics
    /// If there is no such level or row.
    pub fn slot(&self, level: u8, row: u32) -> u32 {
        assert!(level < self.levels, "level {level} of a search with private places for {}", self.levels);
        assert!(row < self.stride, "row {row} of a search with {} private places per level", self.stride);
        slot(&self.blocks, usize::from(level) * self.stride as usize + row as usize)
    }

    /// The ids of the blocks, as a plan wants them.
    pub fn ids(&self) -> impl ExactSizeIterator<Item = BlockId> + '_ {
        self.blocks.iter().map(Block::id)
    }

    /// Levels that there are places for.
    pub fn levels(&self) -> u8 {
        self.levels
    }

    /// Places per level.
    pub fn stride(&self) -> u32 {
        self.stride
    }
}

fn slot(blocks: &[Block], place: usize) -> u32 {
    assert!(
        place < blocks.len() * BLOCK_TOKENS,
        "place {place} of a table with room for {}",
        blocks.len() * BLOCK_TOKENS
    );
    blocks[place / BLOCK_TOKENS].slot(place % BLOCK_TOKENS)
}
