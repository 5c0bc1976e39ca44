//! Independent pieces of work in parallel.
//!
//! Operators share their own work between threads, which is worthwhile only where they are large. In a small model the threads
//! would wait for each other more than they compute. There, pieces that do not depend on each other (batches of images, parts of a
//! training batch) run on one thread each instead.

mod awake;

pub use self::awake::{awake, each, each_run, each_with};

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

/// The number of a model's parameters below which its operators are too small to be shared between threads.
pub const SMALL: usize = 50_000_000;

/// The results of `work` on every item, in the order of the items; in parallel if `apart`, else one after another.
///
/// There are as many workers as threads or items, whichever is less, and the operators that a worker runs have that worker's share
/// of the threads. If the operators' results do not depend on the number of threads, these do not either.
pub fn map<T: Sync, R: Send>(apart: bool, items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let threads = rayon::current_num_threads();
    let workers = if apart { threads.min(items.len()) } else { 1 };
    let pools = match workers {
        0 | 1 => Vec::new(),
        _ => (0..workers).map(|_| pool(threads / workers)).collect::<Result<_, _>>().unwrap_or_default(),
    };
    if pools.is_empty() {
        // One thread, one item, or a system that refuses more threads.
        return items.iter().map(work).collect();
    }
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(items.len()));
    let (next, done_in, work) = (&next, &done, &work);
    let take = move || {
        while let Some((at, item)) =
            Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| Some((at, items.get(at)?)))
        {
            let result = work(item);
            done_in.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((at, result));
        }
    };
    std::thread::scope(|scope| {
        for pool in &pools {
            scope.spawn(move || pool.install(take));
        }
    });
    let mut done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    done.sort_unstable_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

fn pool(threads: usize) -> Result<ThreadPool, ThreadPoolBuildError> {
    ThreadPoolBuilder::new().num_threads(threads).build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_keep_the_order_of_the_items() {
        let items: Vec<usize> = (0..50).collect();
        let squares = |threads: usize| -> Vec<usize> {
            let pool = ThreadPoolBuilder::new().num_threads(threads).build();
            pool.map(|pool| pool.install(|| map(true, &items, |item| item * item))).unwrap_or_default()
        };
        let expected: Vec<usize> = items.iter().map(|item| item * item).collect();
        for threads in [1, 2, 3, 8] {
            assert_eq!(squares(threads), expected);
        }
        assert!(map(true, &[] as &[usize], |item| *item).is_empty());
    }

    #[test]
    fn workers_share_the_threads() {
        let Ok(pool) = ThreadPoolBuilder::new().num_threads(4).build() else { return };
        let seen = pool.install(|| map(true, &[(), ()], |()| rayon::current_num_threads()));
        assert_eq!(seen, [2, 2]);
    }
}
