//! The plan of tiles: everything is covered once, capacities are kept, memory is reused.

use std::collections::HashMap;

use super::case::{Case, MODEL, Model, Part, beams, causal};
use sidereal::device::cuda::attention::{AttentionLimits, AttentionPlan, UNIT, WIDE};
use sidereal::device::cuda::driver::DevicePtr;

fn build(case: &Case, limits: &AttentionLimits) -> AttentionPlan {
    let mut plan = AttentionPlan::default();
    plan.build(&case.plan, limits, |_| DevicePtr(4096)).unwrap();
    plan
}

/// Split, first key and end of an item.
type Piece = (u32, u32, u32);

/// Every key that a packed query sees lies in exactly one item, at the split that the join looks for it in.
fn check(case: &Case, limits: &AttentionLimits) {
    let plan = build(case, limits);
    assert!(
        plan.units <= limits.max_units && plan.narrow.len().max(plan.wide.len()) <= limits.max_items as usize
    );
    let mut ends: HashMap<(u32, u32), Vec<Piece>> = HashMap::new();
    for (tile, items) in [(UNIT, &plan.narrow), (limits.wide, &plan.wide)] {
        for item in items {
            assert_eq!(item.packed % tile, 0);
            for packed in (item.packed..item.packed + tile).step_by(UNIT as usize) {
                ends.entry((item.segment, packed)).or_default().push((
                    item.split,
                    item.key_begin,
                    item.key_end,
                ));
            }
        }
    }
    let mut units = 0;
    for (index, part) in case.parts.iter().enumerate() {
        let info = plan.segments[index];
        let packed = part.rows * limits.group;
        assert_eq!((info.partial, info.split_units), (units, packed.div_ceil(UNIT)));
        assert!(info.splits > 0 || part.beam.is_none());
        assert!(info.split_keys > 0 && info.split_keys.is_multiple_of(256));
        units += info.splits * info.split_units;
        for p in (0..packed).step_by(UNIT as usize) {
            let last = ((p + UNIT).min(packed) - 1) / limits.group;
            let keys = part.context + if part.beam.is_some() { 0 } else { last + 1 };
            let mut items = ends.remove(&(index as u32, p)).unwrap_or_default();
            items.sort_unstable();
            let mut at = 0;
            for (split, begin, end) in items {
                assert_eq!(begin, at, "{part:?}");
                assert_eq!(begin, split * info.split_keys);
                assert!(end <= begin + info.split_keys || split + 1 >= info.splits, "{part:?}");
                at = end;
            }
            assert!(at >= keys, "{part:?}: {at} of {keys} keys");
        }
    }
    assert_eq!(plan.units, units);
}

#[test]
fn plans_cover_every_key_once_and_keep_to_their_room() {
    let parts: Vec<Part> =
        vec![causal(1, 5000), causal(300, 700), beams(30, 2000, 1, 30), causal(5, 0), beams(3, 0, 0, 3)];
    for group in [1, 3, 8] {
        let case = Case::new(Model { group, kv_heads: 1, head_dim: 16, ..MODEL }, &parts);
        for multiprocessors in [1, 8, 132] {
            for (max_units, max_items) in [(4096, 4096), (60, 100), (26, 60)] {
                for (reproducible, wide) in [(false, WIDE[0]), (true, WIDE[0]), (false, WIDE[1])] {
                    let limits = AttentionLimits {
                        multiprocessors,
                        wide,
                        max_units,
                        max_items,
                        reproducible,
                        ..case.limits()
                    };
                    check(&case, &limits);
                }
            }
        }
    }
}

#[test]
fn a_lone_long_row_is_cut_for_the_machine() {
    let case = Case::new(Model { group: 4, kv_heads: 8, head_dim: 16, ..MODEL }, &[causal(1, 4095)]);
    let limits = AttentionLimits { multiprocessors: 132, ..case.limits() };
    assert_eq!(build(&case, &limits).narrow.len(), 16);
    let fixed = build(&case, &AttentionLimits { reproducible: true, ..limits });
    assert_eq!((fixed.narrow.len(), fixed.segments[0].split_keys), (8, 512));
    // One multiprocessor has enough with eight heads.
    assert_eq!(build(&case, &AttentionLimits { multiprocessors: 1, ..limits }).segments[0].splits, 0);
}

/// Partial results of many queries cost more than an idle multiprocessor.
#[test]
fn wide_tiles_are_cut_until_each_multiprocessor_has_one() {
    let splits = |rows: Part, batch: usize, group: usize| {
        let case = Case::new(Model { group, kv_heads: 8, head_dim: 16, ..MODEL }, &vec![rows; batch]);
        let limits =
            AttentionLimits { multiprocessors: 132, wide: WIDE[1], max_units: 65_536, ..case.limits() };
        check(&case, &limits);
        let plan = build(&case, &limits);
        (plan.segments[0].splits, plan.wide.len() * 8)
    };
    assert_eq!(splits(causal(1024, 0), 1, 4), (0, 256));
    assert_eq!(splits(causal(20, 4000), 1, 2), (16, 128));
    // Four tiles of 128 beams and query heads each.
    assert_eq!(splits(beams(256, 1000, 1, 256), 1, 2), (4, 128));
    assert_eq!(splits(beams(256, 1000, 1, 256), 4, 2), (1, 128));
}

#[test]
fn what_does_not_fit_is_refused_with_both_numbers() {
    let case = Case::new(Model { group: 2, ..MODEL }, &[beams(30, 40, 1, 30), causal(100, 3)]);
    let refused = |limits: AttentionLimits| {
        let mut plan = AttentionPlan::default();
        plan.build(&case.plan, &limits, |_| DevicePtr(4096)).unwrap_err().to_string()
    };
    let error = refused(AttentionLimits { max_units: 3, ..case.limits() });
    assert!(error.contains("4 units") && error.contains("room for 3"), "{error}");
    let error = refused(AttentionLimits { max_items: 4, ..case.limits() });
    assert!(error.contains("5 wide tiles") && error.contains("room for 4"), "{error}");
}

#[test]
fn memory_is_reused() {
    let case = Case::new(MODEL, &[causal(1, 900), causal(100, 3), beams(3, 40, 1, 3)]);
    let limits = AttentionLimits { multiprocessors: 132, ..case.limits() };
    let mut plan = build(&case, &limits);
    let places = |plan: &AttentionPlan| {
        (plan.segments.as_ptr(), plan.narrow.as_ptr(), plan.wide.as_ptr(), plan.row_segment.as_ptr())
    };
    let before = (places(&plan), plan.clone());
    plan.build(&case.plan, &limits, |_| DevicePtr(4096)).unwrap();
    assert_eq!(places(&plan), before.0);
    assert_eq!((plan.segments, plan.narrow, plan.wide), (before.1.segments, before.1.narrow, before.1.wide));
}
