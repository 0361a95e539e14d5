//! What every device checks: what it is made from, before anything is allocated; and each step's plan, before anything is run.

use super::ops::{DType, DeviceConfig, LayerWeights, Plan, Segment, SegmentKind, Shape, Tensor};
use crate::error::{Error, Result};
use crate::kv::BLOCK_TOKENS;

fn wrong(what: String) -> Error {
    Error::Device(what)
}

/// Checks sizes and the shapes of all weights; `most_group` is how many heads may share a key/value head.
///
/// # Errors
/// [`Error::Device`] naming the size or tensor, what was found and what was expected; [`Error::Unsupported`] for what this device does
/// not serve.
pub(super) fn config(config: &DeviceConfig, most_group: usize) -> Result<()> {
    let s = &config.shape;
    let sizes = [
        ("layers", s.layers),
        ("hidden", s.hidden),
        ("heads", s.heads),
        ("kv_heads", s.kv_heads),
        ("head_dim", s.head_dim),
        ("ffn", s.ffn),
        ("vocab", s.vocab),
        ("cache_blocks", config.cache_blocks),
        ("max_rows", config.max_rows),
    ];
    if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == 0) {
        return Err(wrong(format!("{name} is 0, at least 1 is needed")));
    }
    if !s.heads.is_multiple_of(s.kv_heads) || s.heads / s.kv_heads > most_group {
        let (heads, kv) = (s.heads, s.kv_heads);
        return Err(Error::Unsupported(format!(
            "{heads} heads over {kv} key/value heads: the quotient must be a whole number, at most {most_group}"
        )));
    }
    if s.rope.inv_freq.len() * 2 != s.head_dim {
        let found = s.rope.inv_freq.len();
        return Err(wrong(format!(
            "rope has {found} frequencies, a head of {} has pairs of them",
            s.head_dim
        )));
    }
    if s.window.len() != s.layers || config.weights.layers.len() != s.layers {
        let (w, l) = (s.window.len(), config.weights.layers.len());
        return Err(wrong(format!("{} layers with {w} windows and {l} sets of weights", s.layers)));
    }
    expect("embed", &config.weights.embed, &[s.vocab, s.hidden])?;
    expect("head", &config.weights.head, &[s.vocab, s.hidden])?;
    expect("norm", &config.weights.norm, &[s.hidden])?;
    config.weights.layers.iter().enumerate().try_for_each(|(i, layer)| check_layer(i, layer, s))
}

fn check_layer(i: usize, w: &LayerWeights, s: &Shape) -> Result<()> {
    let (q, kv) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
    let named = |name: &str| format!("layers.{i}.{name}");
    let tensors: [(&str, &Tensor, [usize; 2]); 7] = [
        ("q", &w.q, [q, s.hidden]),
        ("k", &w.k, [kv, s.hidden]),
        ("v", &w.v, [kv, s.hidden]),
        ("o", &w.o, [s.hidden, q]),
        ("gate", &w.gate, [s.ffn, s.hidden]),
        ("up", &w.up, [s.ffn, s.hidden]),
        ("down", &w.down, [s.hidden, s.ffn]),
    ];
    for (name, tensor, shape) in tensors {
        expect(&named(name), tensor, &shape)?;
    }
    expect(&named("input_norm"), &w.input_norm, &[s.hidden])?;
    expect(&named("post_norm"), &w.post_norm, &[s.hidden])?;
    for (norm, name) in w.qk_norm.iter().flatten().zip(["q_norm", "k_norm"]) {
        expect(&named(name), norm, &[s.head_dim])?;
    }
    for ((bias, name), len) in
        w.qkv_bias.iter().flatten().zip(["q_bias", "k_bias", "v_bias"]).zip([q, kv, kv])
    {
        expect(&named(name), bias, &[len])?;
    }
    if let Some(bias) = &w.o_bias {
        expect(&named("o_bias"), bias, &[s.hidden])?;
    }
    same_type(&named("q, k and v"), &[&w.q, &w.k, &w.v])?;
    same_type(&named("gate and up"), &[&w.gate, &w.up])
}

fn expect(name: &str, tensor: &Tensor, shape: &[usize]) -> Result<()> {
    if tensor.shape() == shape {
        return Ok(());
    }
    Err(wrong(format!("{name}: expected {shape:?}, found {tensor:?}")))
}

fn same_type(name: &str, tensors: &[&Tensor]) -> Result<()> {
    let types: Vec<DType> = tensors.iter().map(|t| t.dtype()).collect();
    if types.windows(2).all(|t| t[0] == t[1]) {
        return Ok(());
    }
    let types: Vec<String> = types.iter().map(DType::to_string).collect();
    Err(Error::Unsupported(format!(
        "{name} are one product and must have one type, found {}",
        types.join(", ")
    )))
}

/// What a plan is checked against.
pub(super) struct Bounds {
    /// Most rows of a plan.
    pub max_rows: usize,
    /// Blocks of the cache.
    pub cache_blocks: usize,
}

fn bad(what: String) -> Error {
    Error::Device(format!("plan: {what}"))
}

/// Checks that `value < bound`.
pub(super) fn below(what: impl FnOnce() -> String, value: usize, bound: usize) -> Result<()> {
    if value < bound { Ok(()) } else { Err(bad(format!("{} is {value}, not below {bound}", what()))) }
}

/// Checks a plan: every row, slot, block, token and segment is within bounds and agrees with the others. What only the device's searches
/// know is not looked at.
///
/// # Errors
/// [`Error::Device`] with the first that is not.
pub(super) fn plan(plan: &Plan, shape: &Shape, bounds: &Bounds) -> Result<()> {
    let rows = plan.rows();
    if rows > bounds.max_rows {
        return Err(bad(format!("{rows} rows, more than the {} of the device", bounds.max_rows)));
    }
    if plan.positions.len() != rows || plan.slots.len() != rows {
        let (p, s) = (plan.positions.len(), plan.slots.len());
        return Err(bad(format!("{rows} tokens, {p} positions and {s} slots")));
    }
    for (row, &slot) in plan.slots.iter().enumerate() {
        below(|| format!("slot of row {row}"), slot as usize, bounds.cache_blocks * BLOCK_TOKENS)?;
    }
    for (i, block) in plan.blocks.iter().enumerate() {
        below(|| format!("block {i}"), block.index(), bounds.cache_blocks)?;
    }
    for (i, soft) in plan.soft.iter().enumerate() {
        below(|| format!("row of soft token {i}"), soft.row as usize, rows)?;
        if soft.values.len() != shape.hidden {
            let (found, hidden) = (soft.values.len(), shape.hidden);
            return Err(bad(format!("soft token {i} has {found} values, the model's width is {hidden}")));
        }
    }
    segments(plan, shape)?;
    let wanted = plan.full_logits.iter().copied().chain(plan.text.iter().map(|text| text.row));
    for row in wanted {
        below(|| "a row whose logits are wanted".into(), row as usize, rows)?;
    }
    Ok(())
}

fn segments(plan: &Plan, shape: &Shape) -> Result<()> {
    let mut covered = 0;
    for (i, segment) in plan.segments.iter().enumerate() {
        if segment.rows.start != covered || segment.rows.end < segment.rows.start {
            return Err(bad(format!("segment {i} has rows {:?}, expected {covered}..", segment.rows)));
        }
        covered = segment.rows.end;
        below(|| format!("end of the rows of segment {i}"), covered as usize, plan.rows() + 1)?;
        for table in [Some(&segment.table), segment.private()].into_iter().flatten() {
            if table.start > table.end || table.end as usize > plan.blocks.len() {
                let found = plan.blocks.len();
                return Err(bad(format!("segment {i} has blocks {table:?}, the plan has {found}")));
            }
        }
        match segment.kind {
            SegmentKind::Causal => causal(i, segment, plan, shape)?,
            SegmentKind::Beam { .. } => beams(i, segment, plan)?,
        }
    }
    if covered as usize != plan.rows() {
        return Err(bad(format!("segments cover {covered} rows of {}", plan.rows())));
    }
    Ok(())
}

fn causal(i: usize, segment: &Segment, plan: &Plan, shape: &Shape) -> Result<()> {
    let context = segment.context as usize;
    let last = (context + segment.rows.len()).saturating_sub(1);
    below(|| format!("last position of segment {i}"), last, segment.table.len() * BLOCK_TOKENS)?;
    for (at, row) in segment.rows.clone().enumerate() {
        let (position, row) = (context + at, row as usize);
        let block = plan.blocks[segment.table.start as usize + position / BLOCK_TOKENS].index();
        place(row, plan, position, block * BLOCK_TOKENS + position % BLOCK_TOKENS)?;
        if !plan.soft.iter().any(|soft| soft.row as usize == row) {
            below(|| format!("token of row {row}"), plan.tokens[row].index(), shape.vocab)?;
        }
    }
    Ok(())
}

fn beams(i: usize, segment: &Segment, plan: &Plan) -> Result<()> {
    let SegmentKind::Beam { level, ref private, stride, .. } = segment.kind else { return Ok(()) };
    let (context, level, stride) = (segment.context as usize, level as usize, stride as usize);
    below(|| format!("context of segment {i}"), context, segment.table.len() * BLOCK_TOKENS + 1)?;
    below(|| format!("beams of segment {i}"), segment.rows.len(), stride + 1)?;
    let end = level * stride + segment.rows.len();
    below(|| format!("places of segment {i}"), end, private.len() * BLOCK_TOKENS + 1)?;
    for (beam, row) in segment.rows.clone().enumerate() {
        let at = level * stride + beam;
        let block = plan.blocks[private.start as usize + at / BLOCK_TOKENS].index();
        place(row as usize, plan, context + level, block * BLOCK_TOKENS + at % BLOCK_TOKENS)?;
    }
    Ok(())
}

/// Checks that a row stands where its segment says.
fn place(row: usize, plan: &Plan, position: usize, slot: usize) -> Result<()> {
    let found = (plan.positions[row] as usize, plan.slots[row] as usize);
    if found == (position, slot) {
        return Ok(());
    }
    Err(bad(format!(
        "row {row} has position {} and slot {}, its segment says {position} and {slot}",
        found.0, found.1
    )))
}

impl Segment {
    fn private(&self) -> Option<&std::ops::Range<u32>> {
        match &self.kind {
            SegmentKind::Causal => None,
            SegmentKind::Beam { private, .. } => Some(private),
        }
    }
}
