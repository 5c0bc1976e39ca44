//! Threads that stay awake while a model writes or draws.
//!
//! A step of decoding is some fifty small pieces of parallel work with little between them. A pool's threads fall asleep in each
//! of these gaps, and waking them takes as long as the work itself, more on a busy machine. During [`awake`] they watch for the
//! next piece instead, and [`each`] hands it to them by one number that they read.

use std::cell::Cell;
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::null;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rayon::Yield;
use rayon::prelude::*;

use crate::storage::SharedPointer;

/// Looks at the next piece between two looks at the pool's other work, and at the clock.
const LOOKS: usize = 64;
/// How long a thread watches before it offers its core to other programs at each look.
const WATCH: Duration = Duration::from_micros(300);
/// How long until it sleeps between looks: what is done meanwhile is no work for several threads.
const PATIENCE: Duration = Duration::from_millis(3);
/// How long it sleeps then.
const NAP: Duration = Duration::from_micros(100);

thread_local! {
    /// The crew that this thread hands work to; null if there is none, and while it does.
    static LED: Cell<*const Crew> = const { Cell::new(null()) };
    /// Whether this thread leads a crew.
    static LEADS: Cell<bool> = const { Cell::new(false) };
}

/// The numbers of tasks that a thread takes one by one, while others take theirs.
struct Tasks<'a> {
    next: &'a AtomicUsize,
    count: usize,
}

impl Iterator for Tasks<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        Some(self.next.fetch_add(1, Ordering::Relaxed)).filter(|at| *at < self.count)
    }
}

/// What a thread does with the tasks that it takes.
type Work<'a> = &'a (dyn Fn(Tasks<'_>) + Sync);

/// Numbered tasks of one piece of work.
struct Piece<'a> {
    work: Work<'a>,
    count: usize,
    next: AtomicUsize,
    failed: AtomicBool,
}

impl Piece<'_> {
    /// Does tasks until none is left.
    fn work(&self) {
        let work = || (self.work)(Tasks { next: &self.next, count: self.count });
        if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
            self.failed.store(true, Ordering::Relaxed);
            resume_unwind(panic);
        }
    }
}

/// The threads that watch, and what they are given.
#[derive(Default)]
struct Crew {
    closed: AtomicBool,
    /// Counts the pieces.
    number: AtomicUsize,
    /// The present piece, of any lifetime: its owner waits until nobody is inside.
    piece: AtomicPtr<Piece<'static>>,
    inside: AtomicUsize,
}

/// Counts a thread that may hold the present piece.
struct Inside<'a>(&'a Crew);

impl<'a> Inside<'a> {
    fn enter(crew: &'a Crew) -> Self {
        crew.inside.fetch_add(1, Ordering::SeqCst);
        Self(crew)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Takes the piece away from the crew and waits until no thread holds it, also when its owner panics.
struct Withdraw<'a>(&'a Crew);

impl Drop for Withdraw<'_> {
    fn drop(&mut self) {
        self.0.piece.store(std::ptr::null_mut(), Ordering::SeqCst);
        let mut looks = 0;
        while self.0.inside.load(Ordering::SeqCst) > 0 {
            spin_loop();
            looks += 1;
            if looks % (64 * LOOKS) == 0 {
                std::thread::yield_now();
            }
        }
    }
}

impl Crew {
    /// Works on what is handed over, and on the pool's other work, until the crew is closed.
    fn watch(&self) {
        let (mut seen, mut looks, mut idle) = (0, 0, None);
        while !self.closed.load(Ordering::Acquire) {
            let number = self.number.load(Ordering::Acquire);
            if number != seen {
                seen = number;
                let _inside = Inside::enter(self);
                let piece = self.piece.load(Ordering::SeqCst);
                // SAFETY: whoever made the piece takes it away and waits until nobody is inside before it ends.
                if let Some(piece) = unsafe { piece.as_ref() } {
                    piece.work();
                }
                idle = None;
                continue;
            }
            spin_loop();
            looks += 1;
            if looks % LOOKS > 0 {
                continue;
            }
            if rayon::yield_now() == Some(Yield::Executed) {
                idle = None;
                continue;
            }
            match idle.get_or_insert_with(Instant::now).elapsed() {
                short if short < WATCH => {}
                long if long < PATIENCE => std::thread::yield_now(),
                _ => std::thread::sleep(NAP),
            }
        }
    }

    /// Does numbered tasks with the threads that watch.
    fn each(&self, count: usize, work: Work<'_>) {
        let piece = Piece { work, count, next: AtomicUsize::new(0), failed: AtomicBool::new(false) };
        {
            let _withdraw = Withdraw(self);
            self.piece.store((&raw const piece).cast_mut().cast(), Ordering::SeqCst);
            self.number.fetch_add(1, Ordering::SeqCst);
            piece.work();
        }
        assert!(!piece.failed.load(Ordering::Relaxed), "a thread panicked");
    }
}

/// Puts a thread-local value back.
struct Restore<T: Copy + 'static>(&'static std::thread::LocalKey<Cell<T>>, T);

impl<T: Copy> Drop for Restore<T> {
    fn drop(&mut self) {
        self.0.set(self.1);
    }
}

/// Runs `work` on a thread of the pool while the pool's other threads stay awake for its [`each`].
///
/// For work of many short parallel pieces. After 3 ms without a piece the others sleep a tenth of a millisecond at a time, so that
/// long stretches of one thread cost the machine little.
pub fn awake<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    let crew = Crew::default();
    let crew = &crew;
    rayon::scope(|scope| {
        if rayon::current_num_threads() < 2 || LEADS.get() {
            return work();
        }
        struct Close<'a>(&'a Crew);
        impl Drop for Close<'_> {
            fn drop(&mut self) {
                self.0.closed.store(true, Ordering::Release);
            }
        }
        let _close = Close(crew);
        let _led = Restore(&LED, LED.replace(crew));
        let _leads = Restore(&LEADS, LEADS.replace(true));
        // A thread that leads would wait for itself; it comes by here while it waits for others.
        scope.spawn_broadcast(|_, _| {
            if !LEADS.get() {
                crew.watch();
            }
        });
        work()
    })
}

/// Does `task(0)`, …, `task(count - 1)` in parallel, in any order: with the threads that are [`awake`] for this one, else with those
/// of its pool.
pub fn each(count: usize, task: impl Fn(usize) + Sync + Send) {
    each_with(count, || (), |(), at| task(at));
}

/// [`each`] with something that a thread makes once for the tasks that it does.
pub fn each_with<T>(count: usize, make: impl Fn() -> T + Sync + Send, task: impl Fn(&mut T, usize) + Sync + Send) {
    let crew = LED.get();
    match count {
        0 => {}
        1 => task(&mut make(), 0),
        _ if crew.is_null() => (0..count).into_par_iter().for_each_init(make, task),
        _ => {
            // Pieces within a task are for the pool: the crew has one at a time.
            let _led = Restore(&LED, LED.replace(null()));
            let work = |tasks: Tasks<'_>| {
                let mut made = make();
                tasks.for_each(|at| task(&mut made, at));
            };
            // SAFETY: the crew lives as long as the `awake` that this thread is in.
            unsafe { &*crew }.each(count, &work);
        }
    }
}

/// [`each`] over runs of `size` elements of a slice, the last of which may be shorter: `task(number, run)`.
pub fn each_run<T: Send>(all: &mut [T], size: usize, task: impl Fn(usize, &mut [T]) + Sync + Send) {
    let (size, length) = (size.max(1), all.len());
    let start = SharedPointer(all.as_mut_ptr());
    each(length.div_ceil(size), |run| {
        let first = run * size;
        // SAFETY: the run lies in the slice, and no other task has it.
        let run_of = unsafe { std::slice::from_raw_parts_mut(start.at(first), size.min(length - first)) };
        task(run, run_of);
    });
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rayon::ThreadPoolBuilder;

    fn sums(pieces: usize, tasks: usize) -> Vec<usize> {
        let totals: Vec<AtomicUsize> = (0..pieces).map(|_| AtomicUsize::new(0)).collect();
        for (piece, total) in totals.iter().enumerate() {
            each(tasks, |task| {
                total.fetch_add(piece * tasks + task, Ordering::Relaxed);
            });
        }
        totals.into_iter().map(AtomicUsize::into_inner).collect()
    }

    #[test]
    fn every_task_of_every_piece_is_done_once() {
        let expected = sums(2000, 7);
        assert_eq!(expected[3], (21..28).sum::<usize>());
        for threads in [1, 2, 5] {
            let pool = ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert_eq!(pool.install(|| awake(|| sums(2000, 7))), expected, "{threads}");
            assert_eq!(pool.install(|| sums(20, 7)), expected[..20], "{threads}");
        }
    }

    #[test]
    fn runs_cover_a_slice() {
        for (length, size) in [(0, 3), (1, 3), (7, 3), (9, 3), (5, 0)] {
            let mut all = vec![0; length];
            each_run(&mut all, size, |number, run| run.iter_mut().for_each(|x| *x += number + 1));
            let expected: Vec<usize> = (0..length).map(|at| at / size.max(1) + 1).collect();
            assert_eq!(all, expected);
        }
    }

    #[test]
    fn the_pools_own_work_is_done_meanwhile() {
        let pool = ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let all = pool.install(|| {
            awake(|| {
                let nested = AtomicUsize::new(0);
                each(5, |task| {
                    each(4, |inner| {
                        nested.fetch_add(task * inner, Ordering::Relaxed);
                    });
                });
                nested.into_inner() + (0..1000usize).into_par_iter().sum::<usize>() + awake(|| sums(3, 5)[2])
            })
        });
        assert_eq!(all, 10 * 6 + 499_500 + (10..15).sum::<usize>());
    }

    #[test]
    fn crews_of_one_pool_do_not_wait_for_each_other() {
        let pool = ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let expected = sums(300, 9);
        pool.install(|| {
            (0..12usize).into_par_iter().for_each(|_| {
                assert_eq!(awake(|| sums(300, 9)), expected);
            });
        });
    }

    #[test]
    fn a_panic_ends_the_work_and_nothing_else() {
        let pool = ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        for at in [0, 63] {
            let work = || pool.install(|| awake(|| each(64, |task| assert!(task != at, "task {task}"))));
            assert!(catch_unwind(AssertUnwindSafe(work)).is_err());
        }
        assert_eq!(pool.install(|| awake(|| sums(5, 3))), sums(5, 3));
    }
}
