//! A product on a device, with everything around it that must not matter, and its result in float64.

use half::{bf16, f16};
use sidereal::device::cuda::args::RowGroup;
use sidereal::device::cuda::driver::{DevicePtr, Driver};
use sidereal::device::cuda::products::{Activations, Epilogue, Matrix, Norm, Product, Products, Variant};
use sidereal::device::ops::DType;

/// Added to the mean square of every norm here.
pub const EPS: f32 = 1e-5;

/// Rounds to `dtype`.
pub fn rounded(dtype: DType, value: f32) -> f32 {
    match dtype {
        DType::F32 => value,
        DType::Bf16 => bf16::from_f32(value).to_f32(),
        DType::F16 => f16::from_f32(value).to_f32(),
    }
}

/// The largest relative error of rounding to `dtype`.
pub fn unit(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 2f64.powi(-24),
        DType::Bf16 => 2f64.powi(-8),
        DType::F16 => 2f64.powi(-11),
    }
}

/// The bytes of values in `dtype`.
pub fn encode(dtype: DType, values: &[f32]) -> Vec<u8> {
    match dtype {
        DType::F32 => bytemuck::cast_slice(values).to_vec(),
        DType::Bf16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_bits().to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_bits().to_le_bytes()).collect(),
    }
}

/// The values of bytes in `dtype`.
pub fn decode(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    let halves = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    match dtype {
        DType::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        DType::Bf16 => halves().map(|b| bf16::from_bits(b).to_f32()).collect(),
        DType::F16 => halves().map(|b| f16::from_bits(b).to_f32()).collect(),
    }
}

/// A counter-based source of test values.
#[derive(Clone)]
pub struct Values(pub u64);

impl Values {
    /// The next 64 bits (splitmix64).
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Integers from -2 to 2: sums of their products are exact in float32.
    pub fn integers(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| (self.bits() % 5) as f32 - 2.0).collect()
    }

    /// Values from -1 to 1 that `dtype` holds.
    pub fn reals(&mut self, dtype: DType, count: usize) -> Vec<f32> {
        (0..count).map(|_| rounded(dtype, (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0)).collect()
    }
}

/// A product and where it lies.
#[derive(Clone, Debug)]
pub struct Case {
    pub dtype: DType,
    pub rows: usize,
    pub n: usize,
    pub k: usize,
    pub epilogue: Epilogue,
    pub bias: bool,
    pub norm: bool,
    pub integers: bool,
    /// First row of the group.
    pub first: usize,
    /// Elements of `out` before the group's results.
    pub offset: usize,
    /// Elements between the lines of `out`.
    pub gap: usize,
    /// The bucket is this much above the rows.
    pub slack: usize,
}

/// The inputs of a case.
#[derive(Clone)]
pub struct Inputs {
    /// `[rows, k]`.
    pub x: Vec<f32>,
    pub w: Vec<f32>,
    pub bias: Vec<f32>,
    pub norm: Vec<f32>,
    /// `[rows, width]`: what `out` holds before.
    pub before: Vec<f32>,
}

impl Case {
    pub fn new(dtype: DType, rows: usize, n: usize, k: usize, epilogue: Epilogue) -> Case {
        Case {
            dtype,
            rows,
            n,
            k,
            epilogue,
            bias: false,
            norm: false,
            integers: false,
            first: 0,
            offset: 0,
            gap: 0,
            slack: 0,
        }
    }

    /// Columns of the result.
    pub fn width(&self) -> usize {
        if self.epilogue == Epilogue::Gated { self.n / 2 } else { self.n }
    }

    /// Element type of the result.
    pub fn out_type(&self) -> DType {
        if self.epilogue == Epilogue::Float { DType::F32 } else { self.dtype }
    }

    pub fn inputs(&self, seed: u64) -> Inputs {
        let mut values = Values(seed);
        let mut draw = |count| match self.integers {
            true => values.integers(count),
            false => values.reals(self.dtype, count),
        };
        Inputs {
            x: draw(self.rows * self.k),
            w: draw(self.n * self.k),
            bias: draw(self.n),
            norm: draw(self.k),
            before: draw(self.rows * self.width()),
        }
    }

    /// The result in float64, `[rows, width]`, and the sum of the absolute products behind each.
    pub fn expected(&self, inputs: &Inputs) -> (Vec<f64>, Vec<f64>) {
        let (mut results, mut sizes) = (Vec::new(), Vec::new());
        for (r, x) in inputs.x.chunks(self.k).enumerate() {
            let x = if self.norm { self.normed(x, &inputs.norm) } else { x.to_vec() };
            let line: Vec<(f64, f64)> = inputs.w.chunks(self.k).map(|w| dot(w, &x)).collect();
            for j in 0..self.width() {
                let (mut value, mut size) = line[j];
                if self.bias {
                    value += f64::from(inputs.bias[j]);
                }
                match self.epilogue {
                    Epilogue::Residual => value += f64::from(inputs.before[r * self.width() + j]),
                    Epilogue::Gated => {
                        let (up, up_size) = line[self.n / 2 + j];
                        size = size * up.abs().max(1.0) + up_size * value.abs().max(1.0);
                        value = value / (1.0 + (-value).exp()) * up;
                    }
                    _ => (),
                }
                results.push(value);
                sizes.push(size);
            }
        }
        (results, sizes)
    }

    fn normed(&self, x: &[f32], weight: &[f32]) -> Vec<f32> {
        let mean = x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (mean + f64::from(EPS)).sqrt();
        let product =
            |(v, w): (&f32, &f32)| rounded(self.dtype, (f64::from(*v) * scale * f64::from(*w)) as f32);
        x.iter().zip(weight).map(product).collect()
    }
}

fn dot(w: &[f32], x: &[f32]) -> (f64, f64) {
    w.iter().zip(x).fold((0.0, 0.0), |(sum, size), (w, x)| {
        let product = f64::from(*w) * f64::from(*x);
        (sum + product, size + product.abs())
    })
}

/// A case in device memory. Rows of x outside of the group, and `out` outside of its results, are 0xff.
pub struct Placed {
    case: Case,
    arena: DevicePtr,
    pub x: Activations,
    pub w: Matrix,
    bias: DevicePtr,
    norm: DevicePtr,
    pub out: DevicePtr,
    pub group: DevicePtr,
    pub out_bytes: usize,
    pub ld_out: usize,
    pub max_out: usize,
}

/// Rows of x behind the group's last.
const BEHIND: usize = 3;

impl Placed {
    pub fn new(driver: &mut dyn Driver, products: &Products, case: &Case, inputs: &Inputs) -> Placed {
        let (rows, width, k) = (case.rows, case.width(), case.k);
        let (ld_out, max_rows) = (width + case.gap, case.first + rows + BEHIND);
        let max_out = (case.offset + rows * ld_out).div_ceil(ld_out) + 1;
        let out_bytes = max_out * ld_out * case.out_type().size();
        let sizes = [max_rows * k * 2, case.n * k * 2, case.n * 4, k * 4, out_bytes, size_of::<RowGroup>()];
        let at = driver.allocate("test", &sizes).unwrap();
        driver.fill(at[0], 0xff, sizes[0]).unwrap();
        driver.upload(at[0].add(case.first * k * 2), &encode(case.dtype, &inputs.x)).unwrap();
        driver.upload(at[1], &encode(case.dtype, &inputs.w)).unwrap();
        driver.upload(at[2], &encode(DType::F32, &inputs.bias)).unwrap();
        driver.upload(at[3], &encode(DType::F32, &inputs.norm)).unwrap();
        let mut out = vec![0xff; out_bytes];
        if case.epilogue == Epilogue::Residual {
            for (r, line) in inputs.before.chunks(width).enumerate() {
                let from = (case.offset + r * ld_out) * case.out_type().size();
                out[from..][..width * case.out_type().size()].copy_from_slice(&encode(case.out_type(), line));
            }
        }
        driver.upload(at[4], &out).unwrap();
        let group = RowGroup { first: case.first as u32, rows: rows as u32, out: case.offset as u64 };
        driver.upload(at[5], bytemuck::bytes_of(&group)).unwrap();
        let x = products.activations(driver, at[0], max_rows, k).unwrap();
        let w = products.matrix(driver, at[1], case.n, k).unwrap();
        let (bias, norm) = (at[2], at[3]);
        let case = case.clone();
        Placed { case, arena: at[0], x, w, bias, norm, out: at[4], group: at[5], out_bytes, ld_out, max_out }
    }

    pub fn product(&self) -> Product<'_> {
        Product {
            x: &self.x,
            norm: self.case.norm.then_some(Norm { weight: self.norm, eps: EPS }),
            w: &self.w,
            bias: self.case.bias.then_some(self.bias),
            epilogue: self.case.epilogue,
            out: self.out,
            ld_out: self.ld_out,
            group: self.group,
            bucket: self.case.rows + self.case.slack,
            max_out: self.max_out,
        }
    }

    /// The bytes of `out`.
    pub fn read(&self, driver: &mut dyn Driver) -> Vec<u8> {
        driver.download(self.out, self.out_bytes).unwrap()
    }

    /// The results `[rows, width]`; everything around them must be as it was.
    pub fn results(&self, driver: &mut dyn Driver) -> Vec<f32> {
        let mut bytes = self.read(driver);
        let (size, width) = (self.case.out_type().size(), self.case.width());
        let mut results = Vec::new();
        for r in 0..self.case.rows {
            let from = (self.case.offset + r * self.ld_out) * size;
            results.extend(decode(self.case.out_type(), &bytes[from..from + width * size]));
            bytes[from..from + width * size].fill(0xff);
        }
        if let Some(at) = bytes.iter().position(|&b| b != 0xff) {
            panic!("{:?}: element {} is no result and was written", self.case, at / size);
        }
        results
    }

    pub fn free(self, driver: &mut dyn Driver) {
        driver.free(self.arena).unwrap();
    }
}

/// Runs a case; `None`: by the variant that the products choose.
pub fn run(
    driver: &mut dyn Driver,
    products: &mut Products,
    case: &Case,
    inputs: &Inputs,
    variant: Option<Variant>,
) -> Vec<f32> {
    let placed = Placed::new(driver, products, case, inputs);
    let variant = variant.unwrap_or_else(|| products.choose(&placed.product()));
    products.enqueue_as(driver, &placed.product(), variant).unwrap();
    let results = placed.results(driver);
    placed.free(driver);
    results
}
