//! What a piece of work spends in matrix products and other parts, and what a device can do, for `hermesflow bench`.
//!
//! The kernels report to two counters of the process while [`products`] runs, and look at one flag otherwise. On a GPU,
//! which works behind the host's back, they count operations only; where its time goes is told by [`profile`], which
//! waits for it at both ends of each part.

mod ceilings;
mod profile;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

pub use ceilings::{copies, large_product};
pub use profile::{Part, Profile, profile};
pub(crate) use profile::{on_host, part};

static WATCHED: AtomicBool = AtomicBool::new(false);
static NANOSECONDS: AtomicU64 = AtomicU64::new(0);
static OPERATIONS: AtomicU64 = AtomicU64::new(0);

/// The matrix products of some work.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Products {
    /// Seconds, summed over the threads that took part.
    pub thread_seconds: f64,
    /// Multiplications and additions.
    pub operations: f64,
}

/// Does `work` and counts its matrix products, and those of whatever else this process does meanwhile.
pub fn products<R>(work: impl FnOnce() -> R) -> (R, Products) {
    NANOSECONDS.store(0, Ordering::Relaxed);
    OPERATIONS.store(0, Ordering::Relaxed);
    WATCHED.store(true, Ordering::Relaxed);
    let result = work();
    WATCHED.store(false, Ordering::Relaxed);
    let products = Products {
        thread_seconds: NANOSECONDS.load(Ordering::Relaxed) as f64 / 1e9,
        operations: OPERATIONS.load(Ordering::Relaxed) as f64,
    };
    (result, products)
}

/// Reports a product `[m, k] [k, n]` that all of this thread's pool work on together, or this thread alone.
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

/// Reports `batch` products `[m, k] [k, n]` that a GPU does when it comes to them; the CPU's report themselves.
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
