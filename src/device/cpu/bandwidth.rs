//! How fast this machine reads memory: the limit of decoding.

use super::buffers::Aligned;
use super::pool::Pool;
use super::simd::{Job, LANES, Lanes, Simd, SimdLevel};
use crate::error::Result;

/// Floats read per round: far more than caches hold.
const FLOATS: usize = 1 << 28;
/// Floats per task.
const TASK: usize = 1 << 18;
const ROUNDS: usize = 4;

/// Measures bytes per second of a plain parallel sum over one gibibyte, the best of four rounds; `threads` 0 takes all cores.
///
/// Takes about a second.
///
/// # Errors
/// [`crate::Error::Device`] if threads cannot be started.
pub fn read_bandwidth(threads: usize) -> Result<f64> {
    let mut reader = Reader::new(threads)?;
    let best = (0..ROUNDS)
        .map(|_| {
            let start = std::time::Instant::now();
            reader.read();
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min);
    Ok(Reader::BYTES as f64 / best)
}

/// One gibibyte and the threads to read it.
pub struct Reader {
    pool: Pool,
    simd: Simd,
    data: Aligned<f32>,
}

impl Reader {
    /// Bytes of a round.
    pub const BYTES: usize = FLOATS * size_of::<f32>();

    /// Touches the memory, so that rounds only read; `threads` 0 takes all cores.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if threads cannot be started.
    pub fn new(threads: usize) -> Result<Reader> {
        Reader::of(if threads == 0 { super::cores() } else { threads }, FLOATS)
    }

    fn of(threads: usize, floats: usize) -> Result<Reader> {
        let mut data = Aligned::zeroed(floats);
        data.fill(1.0);
        Ok(Reader { pool: Pool::new(threads)?, simd: Simd::new(SimdLevel::detect())?, data })
    }

    /// Reads everything once and returns the sum.
    pub fn read(&mut self) -> f32 {
        let (simd, data) = (self.simd, &self.data);
        let total = std::sync::atomic::AtomicU64::new(0);
        self.pool.run(data.len() / TASK, &|_, i| {
            let sum = simd.run(Sum(&data[i * TASK..(i + 1) * TASK]));
            total.fetch_add(sum as u64, std::sync::atomic::Ordering::Relaxed);
        });
        total.into_inner() as f32
    }
}

struct Sum<'a>(&'a [f32]);

impl Job for Sum<'_> {
    type Out = f32;

    #[inline(always)]
    unsafe fn run<S: Lanes>(self) -> f32 {
        // SAFETY: the caller's promise for the instructions; chunks hold eight times sixteen floats.
        unsafe {
            let mut sums = [S::splat(0.0); 8];
            for chunk in self.0.chunks_exact(8 * LANES) {
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum = sum.add(S::load(chunk.as_ptr().add(i * LANES)));
                }
            }
            sums.iter().fold(S::splat(0.0), |a, b| a.add(*b)).sum()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_float_is_read() {
        assert_eq!(Reader::of(2, 5 * TASK).unwrap().read(), (5 * TASK) as f32);
    }
}
