//! Matrix products: every variant against float64, over odd shapes, with everything around the operands poisoned.

pub mod case;

use case::{Case, Placed, Values, rounded, run, unit};
use sidereal::device::cuda::args::RowGroup;
use sidereal::device::cuda::driver::Driver;
use sidereal::device::cuda::products::{Epilogue, Product, Products, Variant};
use sidereal::device::ops::DType;

use super::{for_each_driver, one_driver};

const ROWS: [usize; 12] = [1, 2, 7, 8, 9, 16, 17, 31, 33, 64, 65, 130];
const NS: [usize; 11] = [8, 16, 24, 40, 64, 72, 127, 136, 160, 264, 300];
const KS: [usize; 10] = [8, 40, 48, 64, 72, 80, 192, 200, 512, 1000];
const EPILOGUES: [Epilogue; 4] = [Epilogue::Store, Epilogue::Float, Epilogue::Residual, Epilogue::Gated];
const DTYPES: [DType; 2] = [DType::Bf16, DType::F16];
const MAX_ROWS: usize = 160;
const WIDEST: usize = 1000;

fn products(driver: &mut dyn Driver, dtype: DType, reproducible: bool) -> Products {
    Products::new(driver, dtype, WIDEST, MAX_ROWS, reproducible).unwrap()
}

/// The shapes of the grid: every row count with every epilogue, and n and k walked through with strides that meet all of them.
fn grid(dtype: DType) -> Vec<Case> {
    let mut cases = Vec::new();
    for (i, rows) in ROWS.into_iter().enumerate() {
        for (j, epilogue) in EPILOGUES.into_iter().enumerate() {
            let at = cases.len();
            let n = NS[at * 7 % NS.len()].next_multiple_of(if epilogue == Epilogue::Gated { 2 } else { 1 });
            cases.push(Case {
                bias: (i + j) % 2 == 0 && epilogue != Epilogue::Gated,
                first: at % 4 * 3,
                offset: at % 3 * 5,
                gap: at % 5 * 3,
                slack: [0, 1, 40][at % 3],
                ..Case::new(dtype, rows, n, KS[at * 3 % KS.len()], epilogue)
            });
        }
    }
    cases
}

/// Sums of products of small integers are exact, so every variant, in whatever order it adds, owes the rounded sum.
#[test]
fn integers_are_exact() {
    for_each_driver(|driver| {
        for dtype in DTYPES {
            let mut products = products(driver, dtype, false);
            for variant in products.variants() {
                for (seed, case) in grid(dtype).into_iter().enumerate() {
                    let case = Case { integers: true, ..case };
                    if case.epilogue == Epilogue::Gated {
                        continue;
                    }
                    let inputs = case.inputs(seed as u64);
                    let results = run(driver, &mut products, &case, &inputs, Some(variant));
                    let expected = case.expected(&inputs).0;
                    for (at, (got, want)) in results.iter().zip(&expected).enumerate() {
                        let want = rounded(case.out_type(), *want as f32);
                        assert_eq!(
                            *got,
                            want,
                            "{variant:?} {case:?}: row {}, column {}",
                            at / case.width(),
                            at % case.width()
                        );
                    }
                }
            }
        }
    });
}

/// What decides whether a value is right: one rounding, the products' own sums, and a norm's elements that lie at the edge of
/// two roundings.
fn tolerance(case: &Case, want: f64, size: f64) -> f64 {
    let normed = if case.norm { unit(case.dtype) * size * 0.05 } else { 0.0 };
    unit(case.out_type()) * want.abs() * 1.01 + 1e-6 * size + normed + 1e-7
}

fn check(case: &Case, expected: &(Vec<f64>, Vec<f64>), results: &[f32], what: Variant) {
    assert_eq!(results.len(), expected.0.len());
    for (at, (got, (want, size))) in results.iter().zip(expected.0.iter().zip(&expected.1)).enumerate() {
        let error = (f64::from(*got) - want).abs();
        let (row, column) = (at / case.width(), at % case.width());
        let allowed = tolerance(case, *want, *size);
        assert!(
            error <= allowed,
            "{what:?} {case:?}: row {row}, column {column}: {got}, expected {want} within {allowed}"
        );
    }
}

#[test]
fn results_match_float64() {
    one_driver(|driver| {
        for dtype in DTYPES {
            let mut products = products(driver, dtype, false);
            let variants = products.variants();
            for (seed, case) in grid(dtype).into_iter().enumerate() {
                let case = Case { norm: seed % 3 == 1, ..case };
                let inputs = case.inputs(seed as u64 + 100);
                let expected = case.expected(&inputs);
                for variant in &variants {
                    let results = run(driver, &mut products, &case, &inputs, Some(*variant));
                    check(&case, &expected, &results, *variant);
                }
            }
        }
    });
}

/// A row's bits in reproducible mode: alone, or first or last of any number of rows, with and without a norm before.
#[test]
fn a_row_alone_is_the_row_in_a_batch() {
    for_each_driver(|driver| {
        for (dtype, norm, epilogue) in [
            (DType::Bf16, true, Epilogue::Gated),
            (DType::F16, false, Epilogue::Residual),
            (DType::F16, true, Epilogue::Float),
        ] {
            let mut products = products(driver, dtype, true);
            let batch = Case { norm, ..Case::new(dtype, 70, 40, 1000, epilogue) };
            let inputs = batch.inputs(5);
            let together = run(driver, &mut products, &batch, &inputs, None);
            for (from, rows) in [(0, 1), (69, 1), (3, 2), (60, 8), (31, 9), (50, 16), (5, 17), (7, 33)] {
                let case = Case { rows, ..batch.clone() };
                let mut some = inputs.clone();
                let width = batch.width();
                some.x = inputs.x[from * batch.k..(from + rows) * batch.k].to_vec();
                some.before = inputs.before[from * width..(from + rows) * width].to_vec();
                let alone = run(driver, &mut products, &case, &some, None);
                assert!(
                    alone == together[from * width..(from + rows) * width],
                    "{dtype}: {rows} rows from {from}"
                );
            }
        }
    });
}

/// Twice the same bits, by every variant.
#[test]
fn a_product_repeats() {
    one_driver(|driver| {
        let mut products = products(driver, DType::Bf16, false);
        for variant in products.variants() {
            let case =
                Case { norm: true, bias: true, ..Case::new(DType::Bf16, 65, 136, 520, Epilogue::Float) };
            let inputs = case.inputs(9);
            let first = run(driver, &mut products, &case, &inputs, Some(variant));
            assert!(first == run(driver, &mut products, &case, &inputs, Some(variant)), "{variant:?}");
        }
    });
}

/// Groups of any content: nothing faults, and nothing is written outside of `out`, nor more than the group has a right to.
#[test]
fn hostile_groups_do_no_harm() {
    one_driver(|driver| {
        let mut values = Values(77);
        let mut products = products(driver, DType::Bf16, false);
        for variant in products.variants() {
            for (epilogue, rows, norm) in
                EPILOGUES.into_iter().flat_map(|e| [(e, 20, false), (e, 20, true), (e, 6, true)])
            {
                let case = Case { norm, gap: 1, ..Case::new(DType::Bf16, rows, 40, 72, epilogue) };
                let inputs = case.inputs(3);
                let placed = Placed::new(driver, &products, &case, &inputs);
                for round in 0..12 {
                    let small = |bits: u64| if bits.is_multiple_of(2) { bits >> 59 } else { bits >> 32 };
                    let out = values.bits() >> [0, 32, 54, 58][round % 4];
                    let group = RowGroup {
                        first: small(values.bits()) as u32,
                        rows: small(values.bits()) as u32,
                        out,
                    };
                    driver.upload(placed.group, bytemuck::bytes_of(&group)).unwrap();
                    products.enqueue_as(driver, &placed.product(), variant).unwrap();
                    driver
                        .synchronize()
                        .unwrap_or_else(|e| panic!("{variant:?} {epilogue:?} {group:?}: {e}"));
                }
                placed.free(driver);
            }
        }
    });
}

/// An empty group, and no room for the last row: nothing but the rows that fit is written.
#[test]
fn rows_without_room_are_left_out() {
    one_driver(|driver| {
        let mut products = products(driver, DType::F16, false);
        for variant in products.variants() {
            let case = Case { integers: true, ..Case::new(DType::F16, 9, 24, 64, Epilogue::Store) };
            let placed = Placed::new(driver, &products, &case, &case.inputs(1));
            let empty = RowGroup { first: 0, rows: 0, out: 0 };
            let whole = RowGroup { rows: 9, ..empty };
            for group in [empty, RowGroup { out: u64::MAX - 30, ..whole }] {
                driver.upload(placed.group, bytemuck::bytes_of(&group)).unwrap();
                products.enqueue_as(driver, &placed.product(), variant).unwrap();
                assert!(
                    placed.read(driver).iter().all(|&b| b == 0xff),
                    "{variant:?} wrote rows of {group:?}"
                );
            }
            driver.upload(placed.group, bytemuck::bytes_of(&whole)).unwrap();
            products.enqueue_as(driver, &Product { bucket: 5, ..placed.product() }, variant).unwrap();
            let bytes = placed.read(driver);
            assert!(
                bytes[5 * 24 * 2..].iter().all(|&b| b == 0xff),
                "{variant:?} wrote rows beyond the bucket"
            );
            products.enqueue_as(driver, &Product { max_out: 7, ..placed.product() }, variant).unwrap();
            let bytes = placed.read(driver);
            assert!(bytes[7 * 24 * 2..].iter().all(|&b| b == 0xff), "{variant:?} wrote beyond its room");
            assert!(
                bytes[..7 * 24 * 2].chunks(2).all(|b| b != [0xff, 0xff]),
                "{variant:?} left out rows that fit"
            );
            placed.free(driver);
        }
    });
}

#[test]
fn rows_of_a_matrix_are_a_matrix() {
    one_driver(|driver| {
        let mut products = products(driver, DType::Bf16, false);
        let whole = Case { integers: true, ..Case::new(DType::Bf16, 33, 90, 72, Epilogue::Float) };
        let part = Case { n: 37, ..whole.clone() };
        let inputs = whole.inputs(2);
        let mut some = inputs.clone();
        some.w = inputs.w[29 * 72..66 * 72].to_vec();
        let expected = part.expected(&some).0;
        for variant in products.variants() {
            let placed = Placed::new(driver, &products, &whole, &inputs);
            let w = products.rows_of(driver, &placed.w, 29, 37).unwrap();
            let product = Product { w: &w, ..placed.product() };
            products.enqueue_as(driver, &product, variant).unwrap();
            let out: Vec<f32> = case::decode(DType::F32, &placed.read(driver));
            for (r, want) in expected.chunks(37).enumerate() {
                let got: Vec<f64> = out[r * 90..r * 90 + 37].iter().map(|&v| f64::from(v)).collect();
                assert_eq!(got, want, "{variant:?}: row {r}");
                assert!(
                    out[r * 90 + 37..(r + 1) * 90].iter().all(|v| v.to_bits() == u32::MAX),
                    "{variant:?}: row {r}"
                );
            }
            placed.free(driver);
        }
        let placed = Placed::new(driver, &products, &whole, &inputs);
        let error = products.rows_of(driver, &placed.w, 80, 11).unwrap_err().to_string();
        assert!(error.contains("80..91") && error.contains("90 rows"), "{error}");
    });
}

#[test]
fn sizes_that_do_not_fit_are_errors() {
    one_driver(|driver| {
        let mut products = products(driver, DType::Bf16, false);
        let case = Case::new(DType::Bf16, 4, 16, 64, Epilogue::Gated);
        let placed = Placed::new(driver, &products, &case, &case.inputs(1));
        let at = placed.w.ptr();
        let error = products.matrix(driver, at, 16, 12).unwrap_err().to_string();
        assert!(error.contains("[16, 12]") && error.contains("multiple of 8"), "{error}");
        assert!(products.matrix(driver, at.add(8), 16, 16).is_err());
        let other = products.matrix(driver, at, 8, 72).unwrap();
        let mut refused = |product: Product| products.enqueue(driver, &product).unwrap_err().to_string();
        let error = refused(Product { w: &other, ..placed.product() });
        assert!(error.contains("64") && error.contains("72"), "{error}");
        let error = refused(Product { bias: Some(placed.out), ..placed.product() });
        assert!(error.contains("gated") && error.contains("bias"), "{error}");
        let error = refused(Product { ld_out: 7, ..placed.product() });
        assert!(error.contains('8') && error.contains('7'), "{error}");
        let error = Products::new(driver, DType::F32, 64, 1, false).err().unwrap().to_string();
        assert!(error.contains("f32"), "{error}");
    });
}

/// The tiles that fill 132 multiprocessors with the fewest bytes, on either path.
#[cfg(feature = "emulated")]
#[test]
fn tiles_follow_from_the_shape() {
    use sidereal::device::cuda::emulated::{EmulatedDriver, EmulatedOptions};
    let options = EmulatedOptions { multiprocessors: 132, ..EmulatedOptions::default() };
    let driver: &mut dyn Driver = &mut EmulatedDriver::new(options).unwrap();
    let buffers = driver.allocate("test", &[1024 * 16, 24576 * 16]).unwrap();
    for (reproducible, bucket, n, epilogue, variant) in [
        (false, 1, 4096, Epilogue::Store, Variant::Skinny),
        (false, 32, 4096, Epilogue::Store, Variant::Skinny),
        (false, 33, 4096, Epilogue::Store, Variant::Bulk64x128),
        (false, 256, 2048, Epilogue::Residual, Variant::Bulk64x128),
        (false, 256, 4096, Epilogue::Residual, Variant::Bulk64x128),
        (false, 256, 24576, Epilogue::Gated, Variant::Bulk128x256),
        (false, 1000, 2048, Epilogue::Residual, Variant::Bulk128x128),
        (false, 1000, 4096, Epilogue::Float, Variant::Bulk128x256),
        (false, 1000, 24576, Epilogue::Gated, Variant::Bulk128x256),
        (true, 1000, 4096, Epilogue::Float, Variant::Skinny),
    ] {
        let products = products(driver, DType::Bf16, reproducible);
        let w = products.matrix(driver, buffers[1], n, 8).unwrap();
        let x = products.activations(driver, buffers[0], 1024, 8).unwrap();
        let (out, group, ld_out, max_out) = (buffers[0], buffers[0], n, 1024);
        let product =
            Product { x: &x, norm: None, w: &w, bias: None, epilogue, out, ld_out, group, bucket, max_out };
        assert_eq!(products.choose(&product), variant, "{bucket} rows, n {n}, {epilogue:?}");
    }
}

/// A slice of a head: many columns, an odd number of them, float32 results one after the other.
#[test]
fn logits_of_a_slice() {
    one_driver(|driver| {
        for n in [4400, 4399] {
            let mut products = products(driver, DType::Bf16, false);
            let case =
                Case { integers: true, offset: 3, ..Case::new(DType::Bf16, 3, n, 48, Epilogue::Float) };
            let inputs = case.inputs(4);
            let expected: Vec<f32> = case.expected(&inputs).0.iter().map(|&v| v as f32).collect();
            for variant in products.variants() {
                assert!(
                    run(driver, &mut products, &case, &inputs, Some(variant)) == expected,
                    "{variant:?}, n {n}"
                );
            }
        }
    });
}
