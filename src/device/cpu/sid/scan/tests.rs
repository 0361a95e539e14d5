//! Every way to scan keeps the children that its definition keeps.

use super::*;
use crate::catalog::{Bitmap, Mask};
use crate::device::cpu::sid::bound::{Bound, Row};
use crate::ids::Rank;

fn dice(mut state: u32) -> impl FnMut(u32) -> u32 {
    move |bound: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % bound
    }
}

#[test]
fn changes_and_runs_equal_their_definitions() {
    let mut random = dice(7);
    for case in 0..2000u32 {
        let codes: Vec<u16> = (0..BLOCK + 1)
            .scan(0u16, |code, _| {
                *code += u16::from(random(1 + case % 9) == 0) * 300;
                Some(*code)
            })
            .collect();
        let expected = (0..BLOCK).fold(0, |bits, i| bits | u32::from(codes[i] != codes[i + 1]) << i);
        assert_eq!(changes(&codes), expected, "{codes:?}");
        let expected = codes.iter().take_while(|&&c| c == codes[0]).count();
        assert_eq!(run_end(&codes, 1, codes[0]), expected, "{codes:?}");
    }
}

/// Two or three levels; of three the second is explicit or a column with runs, by how often its codes repeat.
fn index(random: &mut impl FnMut(u32) -> u32, codes: u32) -> TypeIndex {
    let skewed = random(2) == 0;
    let code = |random: &mut dyn FnMut(u32) -> u32| {
        let code = random(codes);
        if skewed { random(code + 1) } else { code }
    };
    let levels = 2 + random(2) as usize;
    let mut tuples: Vec<u16> = Vec::new();
    for _ in 0..3000 {
        tuples.extend(&[random(3), code(random), random(60)].map(|code| code as u16)[..levels]);
    }
    TypeIndex::from_tuples(&[3, codes as usize, 60][..levels], &tuples).unwrap()
}

/// Everything, a share as a bitmap or as a list, everything but a few, and a share but a few.
fn masks(random: &mut impl FnMut(u32) -> u32, index: &TypeIndex) -> Vec<Mask> {
    let ranks = |random: &mut dyn FnMut(u32) -> u32, one_in: u32| -> Vec<Rank> {
        (0..index.items() as u32).filter(|_| random(one_in) == 0).map(Rank).collect()
    };
    let all = Mask::all(index);
    let bitmap = |ranks: &[Rank]| {
        Mask::from_bitmap(index, Bitmap::from_fn(index.items(), |at| ranks.contains(&Rank(at as u32))))
    };
    let share = [1, 2, 5, 20, 100][random(5) as usize];
    let some = bitmap(&ranks(random, share));
    vec![
        all.clone(),
        some.clone(),
        some.excluding(index, &ranks(random, 10)),
        Mask::allow(index, &ranks(random, share)),
        all.excluding(index, &ranks(random, 3)),
        all.excluding(index, &ranks(random, 300)),
    ]
}

/// The children that a list of `width` keeps: best first, equal ones in the order of codes.
fn kept(parent: &Parent<'_>, mask: &Mask, width: usize) -> Vec<u16> {
    let alive = parent.index.children(parent.level, parent.node).filter(|c| mask.alive(c.sids.clone()));
    let taken = |sid: u32| parent.rules.taken.contains(&sid);
    let mut kept: Vec<(u16, f32)> = alive
        .filter(|child| !taken(child.sids.start))
        .map(|child| (child.code, parent.score + (parent.logits[child.code as usize] - parent.norm)))
        .collect();
    kept.sort_by(|a, b| b.1.total_cmp(&a.1));
    kept.iter().take(width).map(|c| c.0).collect()
}

fn scanned(width: usize, threshold: f32, scan: impl Fn(&mut Pool)) -> Vec<u16> {
    let mut pool = Pool::new(80);
    pool.begin(width);
    pool.threshold = threshold;
    scan(&mut pool);
    pool.finish().iter().map(|c| c.code).collect()
}

/// What this machine's vectors offer, what one by one offers, and what is alive: ties and all.
#[test]
fn every_way_to_scan_keeps_the_same_children() {
    let mut random = dice(11);
    let mut forms = [0; 3];
    for case in 0..250 {
        let codes = 1 + random([9, 900, 9000][case % 3]);
        let index = index(&mut random, codes);
        let logits: Vec<f32> = (0..codes.max(60)).map(|_| -(random(40) as f32)).collect();
        let masks = masks(&mut random, &index);
        let last = index.levels() - 1;
        let mut nodes: Vec<_> = index.children(0, index.root()).map(|child| (1, child.node)).collect();
        if last == 2 {
            nodes.extend(index.children(1, nodes[0].1).take(3).map(|child| (2, child.node)));
        }
        nodes.push((0, index.root()));
        for (level, node) in nodes {
            let taken: Vec<u32> = if level == last {
                (0..index.sids() as u32).filter(|_| random(9) == 0).collect()
            } else {
                Vec::new()
            };
            let mut rules = Rules { mask: None, taken: &taken, uses: None };
            for mask in &masks {
                rules.mask = Some(mask);
                let parent = Parent {
                    index: &index,
                    level,
                    node,
                    beside: None,
                    logits: &logits,
                    score: -1.5,
                    norm: 0.25,
                    place: 0,
                    class: Class::Parent(0),
                    rules,
                };
                let width = 1 + random(80) as usize;
                let expected = kept(&parent, mask, width);
                let none = f32::NAN;
                let fast = scanned(width, none, |pool| scan(&parent, pool).unwrap());
                assert_eq!(fast, expected, "case {case}, level {level}, {mask:?}");
                let (first, end) = (node.first as usize, node.end as usize);
                let part = mask.part(index.sids_below(level, node));
                let walked =
                    scanned(width, none, |pool| few::segment(&parent, &part, first..end, pool).unwrap());
                assert_eq!(walked, expected, "case {case}, level {level}, {mask:?}");
                let (codes, form) = codes_of(&index, level);
                let one_by_one = |code: u16, at: usize, pool: &mut Pool| {
                    if mask.alive(sids(&parent, at as u32)) { offer(&parent, code, at, pool) } else { Ok(()) }
                };
                let slow = scanned(width, none, |pool| match form {
                    Form::Runs => {
                        runs(&parent, &codes[..end], first, |_, begins, _| begins, pool, one_by_one).unwrap()
                    }
                    _ => dense(&parent, &codes[..end], first, pool, one_by_one).unwrap(),
                });
                assert_eq!(slow, expected, "case {case}, level {level}, {mask:?}");
                forms[form as usize] += 1;
                if taken.is_empty() {
                    bound_keeps_the_list(&parent, mask, width, &expected);
                }
            }
        }
    }
    assert!(forms.iter().all(|&count| count > 400), "{forms:?}");
}

/// A threshold found beforehand changes nothing, and leaves little to offer where there is much.
fn bound_keeps_the_list(parent: &Parent<'_>, mask: &Mask, width: usize, expected: &[u16]) {
    let mut bound = Bound::new(80);
    if !bound.begin(width, parent.node.end as usize - parent.node.first as usize) {
        return;
    }
    bound.look(&Row::of(parent));
    let threshold = bound.threshold(|entry| mask.alive(sids(parent, entry)));
    let list = scanned(width, threshold, |pool| scan(parent, pool).unwrap());
    assert_eq!(list, expected, "width {width}, threshold {threshold}, {mask:?}");
    let scores = parent
        .index
        .children(parent.level, parent.node)
        .map(|c| parent.score + (parent.logits[c.code as usize] - parent.norm));
    let distinct: std::collections::BTreeSet<u32> = scores.clone().map(|s| (s * -4.0) as u32).collect();
    if mask.is_all() && scores.clone().count() > 16 * width && distinct.len() > 30 {
        let left = scores.filter(|&score| passes(score, threshold)).count();
        assert!(left < 6 * width + 60, "{left} left for {width}, threshold {threshold}");
    }
}
