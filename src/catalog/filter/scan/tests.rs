//! Every form of every scan against the definition, bit by bit.

use super::*;

/// A stream of numbers without a pattern.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 ^ self.0 >> 29
    }

    fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound
    }
}

const LENGTHS: [usize; 12] = [0, 1, 7, 8, 9, 63, 64, 65, 127, 128, 200, 1000];

fn bits_of(count: usize, set: impl Fn(usize) -> bool) -> Vec<u64> {
    let mut words = vec![0; count.div_ceil(64)];
    (0..count).filter(|&at| set(at)).for_each(|at| words[at / 64] |= 1 << (at % 64));
    words
}

fn expect<T: std::fmt::Debug>(
    values: &[T],
    context: &str,
    holds: impl Fn(&T) -> bool,
    scan: impl Fn(Level, &mut [u64]),
) {
    let expected = bits_of(values.len(), |at| holds(&values[at]));
    for level in Level::supported() {
        let mut out = vec![u64::MAX; values.len().div_ceil(64)];
        scan(level, &mut out);
        assert_eq!(out, expected, "{level:?} on {} values, {context}", values.len());
    }
}

#[test]
fn ranges_of_numbers() {
    let mut dice = Dice(1);
    let ints = [i64::MIN, i64::MIN + 1, -7, -1, 0, 1, 3, 1 << 53, (1 << 53) + 1, i64::MAX - 1, i64::MAX];
    let floats = [
        f64::NEG_INFINITY,
        f64::MIN,
        -1.5,
        -0.0,
        0.0,
        f64::MIN_POSITIVE,
        1.0,
        1e300,
        f64::INFINITY,
        f64::NAN,
    ];
    for len in LENGTHS {
        let values: Vec<i64> = (0..len).map(|_| ints[dice.below(11) as usize]).collect();
        let others: Vec<f64> = (0..len).map(|_| floats[dice.below(10) as usize]).collect();
        for low in ints {
            for high in ints {
                let context = format!("{low}..={high}");
                expect(
                    &values,
                    &context,
                    |v| (low..=high).contains(v),
                    |level, out| {
                        super::ints(level, &values, (low, high), out);
                    },
                );
            }
        }
        for low in floats {
            for high in floats {
                let context = format!("{low}..={high}");
                expect(
                    &others,
                    &context,
                    |&v| v >= low && v <= high,
                    |level, out| {
                        super::floats(level, &others, (low, high), out);
                    },
                );
            }
        }
    }
}

#[test]
fn marked_integers() {
    let mut dice = Dice(6);
    // No mark is beyond the last integer, as no mark of a set is.
    let lows = [i64::MIN, -64, -1, 0, 5, i64::MAX - 127];
    for len in LENGTHS {
        for low in lows {
            let offsets = [0, 1, 5, 31, 63, 64, 65, 127, 128, 1000, -1, -64, i64::MIN, i64::MAX];
            let values: Vec<i64> =
                (0..len).map(|_| low.wrapping_add(offsets[dice.below(14) as usize])).collect();
            for words in [1, 2] {
                let marks: Vec<u64> = (0..words).map(|_| dice.next()).collect();
                let holds = |&value: &i64| {
                    let at = i128::from(value) - i128::from(low);
                    (0..64 * words as i128).contains(&at) && marks[at as usize / 64] >> (at % 64) & 1 == 1
                };
                expect(&values, &format!("from {low}, marks {marks:x?}"), holds, |level, out| {
                    marked_ints(level, &values, low, &marks, out);
                });
            }
        }
    }
}

#[test]
fn codes_and_marks() {
    let mut dice = Dice(2);
    let edges = [0, 1, 31, 32, 33, 63, 64, 65, 127, 128, 1 << 31, u32::MAX];
    for len in LENGTHS {
        let values: Vec<u32> = (0..len).map(|_| edges[dice.below(12) as usize]).collect();
        for low in edges {
            for high in edges {
                let context = format!("{low}..={high}");
                expect(
                    &values,
                    &context,
                    |v| (low..=high).contains(v),
                    |level, out| {
                        codes(level, &values, (low, high), out);
                    },
                );
            }
        }
        for marks in [0, 1, 1 << 31, 1 << 32, 1 << 63, u64::MAX, dice.next()] {
            let context = format!("marks {marks:x}");
            expect(
                &values,
                &context,
                |&v| v < 64 && marks >> v & 1 == 1,
                |level, out| {
                    few_codes(level, &values, marks, out);
                },
            );
            let wide = [marks, dice.next()];
            let marked = |&v: &u32| v < 128 && wide[v as usize / 64] >> (v % 64) & 1 == 1;
            expect(&values, &context, marked, |level, out| many_codes(level, &values, &wide, out));
        }
    }
}

#[test]
fn parts_have_any_length_and_lie_anywhere() {
    let mut dice = Dice(3);
    for round in 0..400 {
        let longest = [1, 2, 5, 58, 64, 65, 130, 400][round % 8];
        let density = [1, 2, 60, 1000][round / 8 % 4];
        let count = LENGTHS[dice.below(12) as usize];
        let origin = if round % 3 == 0 { 0 } else { dice.below(1 << 31) as u32 };
        let mut end = 0;
        let ends: Vec<u32> = (0..count)
            .map(|_| {
                end += dice.below(longest + 1) as u32;
                end
            })
            .collect();
        let bits: Vec<bool> = (0..end).map(|_| dice.below(density) == 0).collect();
        let words = bits_of(bits.len(), |at| bits[at]);
        let shifted: Vec<u32> = ends.iter().map(|end| end + origin).collect();
        let parts_of: Vec<_> = (0..count).map(|i| if i == 0 { 0 } else { ends[i - 1] }..ends[i]).collect();
        let holds = |part: &std::ops::Range<u32>| part.clone().any(|at| bits[at as usize]);
        expect(&parts_of, "parts", holds, |level, out| parts(level, &words, origin, &shifted, out));
        // The same from the middle on.
        let from = count / 3;
        if let Some(first) = parts_of.get(from) {
            expect(&parts_of[from..], "parts from the middle", holds, |level, out| {
                parts_from(level, &words, first.start, &ends[from..], out);
            });
        }
    }
}

#[test]
fn parts_out_of_order_or_out_of_bounds_are_a_panic() {
    let words = [u64::MAX; 4];
    let mut ascending: Vec<u32> = (1..=20).collect();
    for (at, end) in [(3, 2), (3, 0), (17, 3), (3, 300), (19, 300), (7, u32::MAX)] {
        let before = std::mem::replace(&mut ascending[at], end);
        for level in Level::supported() {
            let caught = std::panic::catch_unwind(|| parts(level, &words, 0, &ascending, &mut [0]));
            assert!(caught.is_err(), "{level:?}: end {at} is {end}");
        }
        ascending[at] = before;
    }
}

#[test]
fn deposits_fill_the_set_bits_in_order() {
    let mut dice = Dice(4);
    for round in 0..200 {
        let count = LENGTHS[dice.below(12) as usize];
        let from = dice.below(130) as usize;
        let density = [1, 2, 50, 3][round % 4];
        let present: Vec<bool> = (0..count).map(|_| (dice.below(density) == 0) != (round % 4 == 3)).collect();
        let packed: Vec<bool> = (0..from + count).map(|_| dice.below(2) == 0).collect();
        let expected = bits_of(count, |at| {
            present[at] && packed[from + present[..at].iter().filter(|&&present| present).count()]
        });
        let (present, packed) = (bits_of(count, |at| present[at]), bits_of(packed.len(), |at| packed[at]));
        for level in Level::supported() {
            let mut out = vec![u64::MAX; expected.len()];
            deposit(level, &present, &packed, from, &mut out);
            assert_eq!(out, expected, "{level:?}, {count} bits from {from} on");
        }
    }
}

#[test]
fn appended_bits_follow_each_other() {
    let mut dice = Dice(5);
    for _ in 0..200 {
        let pieces: Vec<Vec<bool>> =
            (0..4).map(|_| (0..dice.below(150)).map(|_| dice.below(2) == 0).collect()).collect();
        let whole = pieces.concat();
        let mut words = vec![0; whole.len().div_ceil(64)];
        let mut at = 0;
        for piece in &pieces {
            append(&mut words, at, &bits_of(piece.len(), |at| piece[at]), piece.len());
            at += piece.len();
        }
        assert_eq!(words, bits_of(whole.len(), |at| whole[at]));
    }
}
