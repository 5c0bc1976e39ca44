//! How much of a piece of work is matrix products: their seconds and their operations.
//!
//! While [`products`] runs, every kernel adds to two counters of the process; otherwise a kernel only reads one flag. A GPU
//! runs asynchronously, so for its products only the operations are counted, not the seconds.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

static WATCHED: AtomicBool = AtomicBool::new(false);
static NANOSECONDS: AtomicU64 = AtomicU64::new(0);
static OPERATIONS: AtomicU64 = AtomicU64::new(0);

/// What the matrix products of a piece of work cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProductCount {
    /// Seconds spent in products, summed over the threads that took part; a GPU's products add nothing.
    pub thread_seconds: f64,
    /// Multiplications and additions, each counted as one operation.
    pub operations: f64,
}

/// Runs `work` and counts the matrix products that the whole process computes meanwhile.
pub fn products<R>(work: impl FnOnce() -> R) -> (R, ProductCount) {
    NANOSECONDS.store(0, Ordering::Relaxed);
    OPERATIONS.store(0, Ordering::Relaxed);
    WATCHED.store(true, Ordering::Relaxed);
    let result = work();
    WATCHED.store(false, Ordering::Relaxed);
    let products = ProductCount {
        thread_seconds: NANOSECONDS.load(Ordering::Relaxed) as f64 / 1e9,
        operations: OPERATIONS.load(Ordering::Relaxed) as f64,
    };
    (result, products)
}

/// Runs `work`, a product `[m, k] [k, n]`, and counts it; `together` says whether all threads of this thread's pool share the
/// work or this thread does it alone.
#[inline]
pub(crate) fn product<R>((m, n, k): (usize, usize, usize), together: bool, work: impl FnOnce() -> R) -> R {
    if !WATCHED.load(Ordering::Relaxed) {
        return work();
    }
    let started = Instant::now();
    let result = work();
    let threads = if together { rayon::current_num_threads() as u64 } else { 1 };
    NANOSECONDS.fetch_add(started.elapsed().as_nanos() as u64 * threads, Ordering::Relaxed);
    OPERATIONS.fetch_add(2 * (m * n * k) as u64, Ordering::Relaxed);
    result
}

/// Counts `batch` products `[m, k] [k, n]` that were queued on a GPU. Products on the CPU are counted by [`product`].
#[inline]
pub(crate) fn queued(batch: usize, (m, n, k): (usize, usize, usize)) {
    if WATCHED.load(Ordering::Relaxed) {
        OPERATIONS.fetch_add(2 * (batch * m * n * k) as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use crate::ops;
    use crate::testing::{kernels_run, normal};

    #[test]
    fn counts_the_products_of_an_operator() {
        if !kernels_run("products are counted") {
            return;
        }
        let (x, weight) = (normal(&[30, 40]), normal(&[50, 40]));
        let (y, products) = super::products(|| ops::linear(&x, &weight, None).unwrap());
        assert_eq!(y.dims(), [30, 50]);
        // Tests beside this one may multiply meanwhile.
        assert!(products.operations >= 2.0 * 30.0 * 40.0 * 50.0 && products.thread_seconds > 0.0);
    }
}
