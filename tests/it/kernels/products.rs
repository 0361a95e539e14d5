//! Matrix products: every variant against float64, over odd shapes, with everything around the operands poisoned.

mod case;

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
                        assert_eq!(*got, want, "{variant:?} {case:?}: row {}, column {}", at / case.width(), at % case.width());
                    }
                }
            }
        }
    });
}
