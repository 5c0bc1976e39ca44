//! Pieces of work that are dealt out as processes become free: a slow piece holds up no one but who has it.
//!
//! The first process keeps the count. While work is dealt out, a thread of it answers the others.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::transport::{Lane, Transport};
use crate::{Error, Group, Result};

/// The answer to a request when nothing is left.
const NOTHING: u64 = u64::MAX;

/// Work that is being dealt out.
pub struct Deal<'a> {
    link: Option<&'a dyn Transport>,
    total: usize,
    /// The next piece; kept by the first process.
    next: &'a AtomicUsize,
    /// Units done here and not reported yet; in the first process they are reported at once.
    done: AtomicUsize,
    report: &'a (dyn Fn(usize) + Sync),
}

impl Group {
    /// Deals out `total` pieces of work, numbered from 0, while `work` takes them by [`Deal::next`] in every process; the
    /// pieces that one process gets are in rising order. What any process says by [`Deal::done`] is reported to `report`
    /// in the first one. All processes have ended their work when this returns.
    ///
    /// # Errors
    /// What `work` says, or that another process is gone.
    pub fn deal<T, E: From<Error>>(
        &self,
        total: usize,
        report: impl Fn(usize) + Sync,
        work: impl FnOnce(&Deal<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let next = AtomicUsize::new(0);
        let deal = Deal { link: self.link(), total, next: &next, done: AtomicUsize::new(0), report: &report };
        let made = match deal.link {
            None => return work(&deal),
            Some(link) if link.rank() == 0 => lead(link, &deal, work)?,
            Some(_) => {
                let made = work(&deal)?;
                deal.say(true)?;
                made
            }
        };
        self.meet()?;
        Ok(made)
    }
}

/// Works in the first process, and answers the others meanwhile and until they are done.
fn lead<T, E: From<Error>>(
    link: &dyn Transport,
    deal: &Deal<'_>,
    work: impl FnOnce(&Deal<'_>) -> Result<T, E>,
) -> Result<T, E> {
    let given_up = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (next, total, report, given_up) = (deal.next, deal.total, deal.report, &given_up);
        let answering = scope.spawn(move || -> Result<()> {
            let mut working = link.size() - 1;
            while working > 0 && !given_up.load(Ordering::Relaxed) {
                let Some((from, request)) = link.request()? else { continue };
                let [done, is_end] = numbers(&request);
                report(done as usize);
                if is_end == 1 {
                    working -= 1;
                    continue;
                }
                let piece = take(next, total).map_or(NOTHING, |piece| piece as u64);
                link.send(from, Lane::Answer, &piece.to_le_bytes())?;
            }
            Ok(())
        });
        let made = work(deal);
        given_up.store(made.is_err(), Ordering::Relaxed);
        match answering.join() {
            Ok(answered) => made.and_then(|made| answered.map(|()| made).map_err(E::from)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn numbers(request: &[u8; 16]) -> [u64; 2] {
    let (numbers, _) = request.as_chunks::<8>();
    [u64::from_le_bytes(numbers[0]), u64::from_le_bytes(numbers[1])]
}

fn take(next: &AtomicUsize, total: usize) -> Option<usize> {
    Some(next.fetch_add(1, Ordering::Relaxed)).filter(|piece| *piece < total)
}

impl Deal<'_> {
    /// The next piece of work; `None` when nothing is left. May be called from any one thread.
    ///
    /// # Errors
    /// When the first process is gone.
    pub fn next(&self) -> Result<Option<usize>> {
        match self.link.filter(|link| link.rank() != 0) {
            None => Ok(take(self.next, self.total)),
            Some(link) => {
                self.say(false)?;
                let mut answer = [0; 8];
                link.receive(0, Lane::Answer, &mut answer)?;
                let piece = u64::from_le_bytes(answer);
                Ok((piece != NOTHING).then_some(piece as usize))
            }
        }
    }

    /// Says that so many units are done here, of whatever the caller counts.
    pub fn done(&self, count: usize) {
        match self.link.filter(|link| link.rank() != 0) {
            None => (self.report)(count),
            Some(_) => {
                self.done.fetch_add(count, Ordering::Relaxed);
            }
        }
    }

    fn say(&self, is_end: bool) -> Result<()> {
        let Some(link) = self.link else { return Ok(()) };
        let done = self.done.swap(0, Ordering::Relaxed) as u64;
        let request = [done.to_le_bytes(), u64::from(is_end).to_le_bytes()].concat();
        link.send(0, Lane::Request, &request)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::tests::each;

    #[test]
    fn every_piece_goes_to_one_process_and_all_that_is_done_is_reported() {
        for size in [1, 2, 3, 8] {
            for total in [0, 1, 5, 40] {
                let pieces = each(size, |group| {
                    let reported = AtomicUsize::new(0);
                    let mut mine = Vec::new();
                    for _ in 0..3 {
                        mine.clear();
                        reported.store(0, Ordering::Relaxed);
                        let report = |count| {
                            reported.fetch_add(count, Ordering::Relaxed);
                        };
                        group
                            .deal(total, report, |deal| {
                                while let Some(piece) = deal.next()? {
                                    mine.push(piece);
                                    deal.done(10);
                                }
                                Ok::<_, Error>(())
                            })
                            .unwrap();
                    }
                    (mine, reported.into_inner())
                });
                assert!(pieces.iter().all(|(mine, _)| mine.is_sorted()));
                assert_eq!(pieces[0].1, total * 10, "{size} processes, {total} pieces");
                let mut all: Vec<usize> = pieces.into_iter().flat_map(|(mine, _)| mine).collect();
                all.sort_unstable();
                assert_eq!(all, (0..total).collect::<Vec<_>>(), "{size} processes");
            }
        }
    }

    #[test]
    fn a_slow_piece_holds_up_no_one_else() {
        let others = AtomicUsize::new(0);
        let pieces = each(3, |group| {
            let (mut mine, began) = (0, std::time::Instant::now());
            group
                .deal(
                    30,
                    |_| (),
                    |deal| {
                        while let Some(piece) = deal.next()? {
                            mine += 1;
                            // The slow piece is done after all others.
                            while piece == 0 && others.load(Ordering::SeqCst) < 29 && began.elapsed().as_secs() < 60 {
                                std::thread::sleep(std::time::Duration::from_millis(1));
                            }
                            others.fetch_add(1, Ordering::SeqCst);
                        }
                        Ok::<_, Error>(())
                    },
                )
                .unwrap();
            mine
        });
        assert_eq!(pieces.iter().sum::<usize>(), 30);
        assert!(pieces.contains(&1), "{pieces:?}");
    }

    #[test]
    fn an_error_of_the_first_process_ends_its_answers() {
        let said = each(2, |group| {
            let made = group.deal(
                5,
                |_| (),
                |deal| {
                    if group.is_writer() {
                        return Err(Error::Mpi("full".into()));
                    }
                    while deal.next()?.is_some() {}
                    Ok(())
                },
            );
            group.abort(1);
            made.unwrap_err().to_string()
        });
        assert!(said[0].contains("full") && said[1].contains("has ended"), "{said:?}");
    }
}
