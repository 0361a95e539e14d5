//! RMS norm against float64.

use sidereal::device::cuda::args::RowGroup;
use sidereal::device::cuda::driver::{DevicePtr, Driver};
use sidereal::device::cuda::norm::{Norm, NormRows, RmsNorm};
use sidereal::device::ops::DType;

use super::products::case::{EPS, Values, decode, encode, rounded, unit};
use super::{for_each_driver, one_driver};

/// `[rows of x, hidden]` in device memory, with room for `max_out` rows of results, which are 0xff.
struct Placed {
    at: Vec<DevicePtr>,
    x: Vec<f32>,
    weight: Vec<f32>,
    hidden: usize,
    max_rows: usize,
    max_out: usize,
}

impl Placed {
    fn new(driver: &mut dyn Driver, dtype: DType, hidden: usize, max_rows: usize, max_out: usize) -> Placed {
        let mut values = Values((hidden * max_rows) as u64);
        let mut x = values.reals(dtype, max_rows * hidden);
        // Rows of very different size: a norm taken of another row would show.
        for (r, x) in x.chunks_mut(hidden).enumerate() {
            x.iter_mut().for_each(|v| *v = rounded(dtype, *v * 2f32.powi(r as i32 % 5 * 2 - 4)));
        }
        let weight = values.reals(DType::F32, hidden);
        let sizes =
            [max_rows * hidden * 2, hidden * 4, max_out * hidden * 2, max_out * 4, size_of::<RowGroup>()];
        let at = driver.allocate("test", &sizes).unwrap();
        driver.upload(at[0], &encode(dtype, &x)).unwrap();
        driver.upload(at[1], &encode(DType::F32, &weight)).unwrap();
        driver.fill(at[2], 0xff, sizes[2]).unwrap();
        Placed { at, x, weight, hidden, max_rows, max_out }
    }

    fn rows(&self, listed: bool, bucket: usize) -> NormRows {
        NormRows {
            norm: Norm { weight: self.at[1], eps: EPS },
            x: self.at[0],
            out: self.at[2],
            list: listed.then_some(self.at[3]),
            group: self.at[4],
            hidden: self.hidden,
            max_rows: self.max_rows,
            max_out: self.max_out,
            bucket,
        }
    }

    fn group(&self, driver: &mut dyn Driver, first: u32, rows: u32) {
        driver.upload(self.at[4], bytemuck::bytes_of(&RowGroup { first, rows, out: 0 })).unwrap();
    }

    fn read(&self, driver: &mut dyn Driver) -> Vec<u8> {
        driver.download(self.at[2], self.max_out * self.hidden * 2).unwrap()
    }

    /// Checks row `row` of the results against row `source` of x.
    fn check(&self, dtype: DType, bytes: &[u8], row: usize, source: usize) {
        let got = decode(dtype, &bytes[row * self.hidden * 2..(row + 1) * self.hidden * 2]);
        let x = &self.x[source * self.hidden..(source + 1) * self.hidden];
        let mean = x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / self.hidden as f64;
        let scale = 1.0 / (mean + f64::from(EPS)).sqrt();
        for (i, ((got, x), w)) in got.iter().zip(x).zip(&self.weight).enumerate() {
            let want = f64::from(*x) * scale * f64::from(*w);
            let allowed = unit(dtype) * want.abs() * 1.01 + 1e-6;
            assert!(
                (f64::from(*got) - want).abs() <= allowed,
                "{dtype} [{}]: row {row}, element {i}: {got}, expected {want}",
                self.hidden
            );
        }
    }
}

#[test]
fn rows_match_float64() {
    for_each_driver(|driver| {
        for dtype in [DType::Bf16, DType::F16] {
            let norm = RmsNorm::new(driver, dtype).unwrap();
            for hidden in [8, 40, 64, 192, 256, 1000, 2048, 2056, 4104] {
                let placed = Placed::new(driver, dtype, hidden, 12, 9);
                for (first, rows) in [(0, 1), (2, 5), (8, 1)] {
                    placed.group(driver, first as u32, rows as u32);
                    driver.fill(placed.at[2], 0xff, 9 * hidden * 2).unwrap();
                    norm.enqueue(driver, &placed.rows(false, rows + 2)).unwrap();
                    let bytes = placed.read(driver);
                    for row in 0..9 {
                        if (first..first + rows).contains(&row) {
                            placed.check(dtype, &bytes, row, row);
                        } else {
                            let untouched = &bytes[row * hidden * 2..(row + 1) * hidden * 2];
                            assert!(untouched.iter().all(|&b| b == 0xff), "row {row} is not of the group");
                        }
                    }
                }
                driver.free(placed.at[0]).unwrap();
            }
        }
    });
}

#[test]
fn a_list_gathers_rows() {
    one_driver(|driver| {
        let (dtype, list) = (DType::Bf16, [7u32, 0, 11, 11, 3]);
        let norm = RmsNorm::new(driver, dtype).unwrap();
        let placed = Placed::new(driver, dtype, 72, 12, 5);
        driver.upload(placed.at[3], bytemuck::cast_slice(&list)).unwrap();
        placed.group(driver, 0, 5);
        norm.enqueue(driver, &placed.rows(true, 8)).unwrap();
        let bytes = placed.read(driver);
        list.iter().enumerate().for_each(|(row, &source)| placed.check(dtype, &bytes, row, source as usize));
    });
}

#[test]
fn hostile_lists_and_groups_do_no_harm() {
    one_driver(|driver| {
        let mut values = Values(3);
        let norm = RmsNorm::new(driver, DType::F16).unwrap();
        let placed = Placed::new(driver, DType::F16, 40, 6, 4);
        placed.group(driver, u32::MAX - 1, 8);
        norm.enqueue(driver, &placed.rows(false, 8)).unwrap();
        assert!(placed.read(driver).iter().all(|&b| b == 0xff), "row numbers wrapped");
        for round in 0..60 {
            let shift = [32, 60][round % 2];
            let list: Vec<u32> = (0..4).map(|_| (values.bits() >> shift) as u32).collect();
            driver.upload(placed.at[3], bytemuck::cast_slice(&list)).unwrap();
            placed.group(driver, (values.bits() >> [32, 62][round / 2 % 2]) as u32, values.bits() as u32);
            norm.enqueue(driver, &placed.rows(true, 8)).unwrap();
            driver.synchronize().unwrap();
        }
    });
}

#[test]
fn a_width_that_is_no_multiple_of_8_is_an_error() {
    one_driver(|driver| {
        let norm = RmsNorm::new(driver, DType::F16).unwrap();
        let rows = NormRows { hidden: 36, ..Placed::new(driver, DType::F16, 40, 6, 4).rows(false, 1) };
        let error = norm.enqueue(driver, &rows).unwrap_err().to_string();
        assert!(error.contains("36") && error.contains('8'), "{error}");
    });
}
