//! Sums that do not depend on the number of processes.
//!
//! The sum of floating-point numbers depends on its order. Here the leaves, in their order, are summed in pairs, the pairs
//! in pairs, and so on ([`Tree`]). With 2, 4, 8 … processes leaf number `i` is of process `i mod n`: the lowest levels of
//! the tree lie between processes ([`Group::sum_to_shares`]), the others within each, and every addition is of the same two
//! numbers as in one process.
//!
//! Between processes the numbers are halved again and again (recursive halving): two processes exchange halves and each
//! adds up one, until each has the sum of one share. To bring shares together they are doubled again. Messages are
//! exchanged in pieces that fit caches.

use std::ops::Range;

use crate::transport::Transport;
use crate::{Group, Result};

/// Numbers per message: 4 MiB.
const PIECE: usize = 1 << 20;

/// A sum in pairs of whatever is added, leaf by leaf. As many partial sums are held as the number of leaves has ones in
/// binary, at most.
#[derive(Debug, Clone)]
pub struct Tree<T>(Vec<(u32, T)>);

impl<T> Default for Tree<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Tree<T> {
    /// Adds the next leaf, with as many additions of two sums as it completes.
    ///
    /// # Errors
    /// What `add` says.
    pub fn push<E>(&mut self, leaf: T, mut add: impl FnMut(T, T) -> Result<T, E>) -> Result<(), E> {
        let (mut level, mut sum) = (0, leaf);
        while let Some((_, before)) = self.0.pop_if(|(of, _)| *of == level) {
            sum = add(before, sum)?;
            level += 1;
        }
        self.0.push((level, sum));
        Ok(())
    }

    /// The sum of all leaves; `None` if there was none.
    ///
    /// # Errors
    /// What `add` says.
    pub fn sum<E>(self, mut add: impl FnMut(T, T) -> Result<T, E>) -> Result<Option<T>, E> {
        let mut rest = self.0.into_iter().rev().map(|(_, sum)| sum);
        let Some(last) = rest.next() else { return Ok(None) };
        rest.try_fold(last, |sum, before| add(before, sum)).map(Some)
    }
}

/// How a row of numbers is shared out to processes.
///
/// A row is cut only between units of [`Share::UNIT`] numbers; `turn` decides which process has which share, so that rows
/// of few units do not all lie with one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// The length of the whole row.
    pub row: usize,
    /// Number of the row.
    pub turn: usize,
}

impl Share {
    /// The numbers between which no row is cut.
    pub const UNIT: usize = 1 << 14;

    /// Where share number `at` of `shares` begins.
    fn border(self, at: usize, shares: usize) -> usize {
        let units = self.row.div_ceil(Self::UNIT);
        (units * at / shares * Self::UNIT).min(self.row)
    }

    /// The numbers of shares `from..to` of `shares`.
    fn range(self, shares: &Range<usize>, of: usize) -> Range<usize> {
        self.border(shares.start, of)..self.border(shares.end, of)
    }

    /// Which share a process has; halving ends with the bits of its number reversed.
    fn number(self, rank: usize, of: usize) -> usize {
        (0..of.trailing_zeros()).fold(0, |share, bit| share << 1 | (self.place(rank, of) >> bit & 1))
    }

    /// The number of a process when it is this row's turn.
    fn place(self, rank: usize, of: usize) -> usize {
        rank ^ (self.turn % of)
    }

    /// The numbers of the row that a process of a group of `of` (1, 2, 4, 8, …) has.
    pub fn of(self, rank: usize, of: usize) -> Range<usize> {
        let number = self.number(rank, of);
        self.range(&(number..number + 1), of)
    }

    /// The exchanges that add a row up, in order: after each, a process holds the sums of what it received, and at last its share.
    pub fn halvings(self, rank: usize, of: usize) -> Vec<Exchange> {
        let mut mine = 0..of;
        let halved = distances(of).map(|distance| {
            let middle = usize::midpoint(mine.start, mine.end);
            let (low, high) = (mine.start..middle, middle..mine.end);
            let (keep, give) = if self.place(rank, of) & distance == 0 { (low, high) } else { (high, low) };
            let step =
                Exchange { with: rank ^ distance, given: self.range(&give, of), received: self.range(&keep, of) };
            mine = keep;
            step
        });
        halved.collect()
    }

    /// The exchanges that bring shares together, in order: in each a process gives all that it has, which is beside what it
    /// receives.
    pub fn doublings(self, rank: usize, of: usize) -> Vec<Exchange> {
        let number = self.number(rank, of);
        let mut mine = number..number + 1;
        let doubled = distances(of).rev().map(|distance| {
            let is_low = self.place(rank, of) & distance == 0;
            let theirs = if is_low { mine.end..mine.end + mine.len() } else { mine.start - mine.len()..mine.start };
            let step =
                Exchange { with: rank ^ distance, given: self.range(&mine, of), received: self.range(&theirs, of) };
            mine = mine.start.min(theirs.start)..mine.end.max(theirs.end);
            step
        });
        doubled.collect()
    }

    /// The processes in the order of their shares.
    pub fn order(self, of: usize) -> Vec<usize> {
        let mut ranks: Vec<usize> = (0..of).collect();
        ranks.sort_by_key(|rank| self.number(*rank, of));
        ranks
    }
}

/// Numbers of a row that two processes send each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// The other process.
    pub with: usize,
    /// The numbers that it is sent.
    pub given: Range<usize>,
    /// The numbers that it sends; either range may be empty.
    pub received: Range<usize>,
}

/// Whether this number of processes can sum together: 1, 2, 4, 8, …
pub(crate) fn can_sum(processes: usize) -> bool {
    processes.is_power_of_two()
}

impl Group {
    /// Whether `parts` can be summed by this group: by 1, 2, 4, 8 … processes with as many parts each.
    pub fn divides(&self, parts: usize) -> bool {
        can_sum(self.size()) && parts.is_multiple_of(self.size())
    }

    /// The numbers of processes that can sum `parts` together.
    pub fn that_divide(parts: usize) -> Vec<usize> {
        (0..usize::BITS).map(|bit| 1 << bit).take_while(|n| *n <= parts && parts.is_multiple_of(*n)).collect()
    }

    /// Adds up the rows of all processes, whose number is 1, 2, 4, 8, …; afterwards `row` holds the sums in this process's
    /// share, whose range is returned, and nothing of use elsewhere.
    ///
    /// # Errors
    /// When another process is gone.
    pub fn sum_to_shares(&self, row: &mut [f32], turn: usize) -> Result<Range<usize>> {
        let share = Share { row: row.len(), turn };
        let Some(link) = self.link() else { return Ok(0..row.len()) };
        let mut theirs = Vec::new();
        for Exchange { with, given, received } in share.halvings(link.rank(), link.size()) {
            for (kept, given) in pieces(received, given) {
                theirs.resize(kept.len(), 0.0);
                exchange(link, with, &row[given], &mut theirs)?;
                for (mine, theirs) in row[kept].iter_mut().zip(&theirs) {
                    *mine += theirs;
                }
            }
        }
        Ok(share.of(link.rank(), link.size()))
    }

    /// Brings together a row of which every process has its share.
    ///
    /// # Errors
    /// When another process is gone.
    pub fn join_shares(&self, row: &mut [f32], turn: usize) -> Result<()> {
        let share = Share { row: row.len(), turn };
        let Some(link) = self.link() else { return Ok(()) };
        for Exchange { with, given, received } in share.doublings(link.rank(), link.size()) {
            let is_low = given.end <= received.start;
            for (want, have) in pieces(received, given) {
                // Two parts of one row, of which one comes before the other.
                let (given, got) = if is_low {
                    let (before, after) = row.split_at_mut(have.end.max(have.start));
                    let at = before.len();
                    (&before[have], &mut after[want.start - at..want.end - at])
                } else {
                    let (before, after) = row.split_at_mut(want.end.max(want.start));
                    let at = before.len();
                    (&after[have.start - at..have.end - at], &mut before[want])
                };
                exchange(link, with, given, got)?;
            }
        }
        Ok(())
    }
}

/// Between whom numbers are exchanged, in the order of summing: neighbours first.
fn distances(size: usize) -> impl DoubleEndedIterator<Item = usize> {
    (0..size.trailing_zeros()).map(|bit| 1 << bit)
}

/// Two ranges in pieces that are exchanged with one another; where one is shorter, its last pieces are empty.
fn pieces(one: Range<usize>, other: Range<usize>) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    let count = one.len().div_ceil(PIECE).max(other.len().div_ceil(PIECE));
    let piece = |range: &Range<usize>, at: usize| {
        let border = |at: usize| (range.start + at * PIECE).min(range.end);
        border(at)..border(at + 1)
    };
    (0..count).map(move |at| (piece(&one, at), piece(&other, at)))
}

fn exchange(link: &dyn Transport, with: usize, given: &[f32], got: &mut [f32]) -> Result<()> {
    link.exchange(with, bytes(given), bytes_mut(got))
}

/// Numbers as bytes; all processes are of one build.
fn bytes(numbers: &[f32]) -> &[u8] {
    // SAFETY: any byte of an f32 is a byte, and bytes need no alignment.
    unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), size_of_val(numbers)) }
}

fn bytes_mut(numbers: &mut [f32]) -> &mut [u8] {
    // SAFETY: as above, and any four bytes are an f32.
    unsafe { std::slice::from_raw_parts_mut(numbers.as_mut_ptr().cast(), size_of_val(numbers)) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::Error;
    use crate::tests::each;

    fn add(a: f32, b: f32) -> Result<f32> {
        Ok(a + b)
    }

    /// Numbers whose sum depends on its order.
    fn number(leaf: usize, at: usize) -> f32 {
        let mixed = ((leaf as u32).wrapping_mul(0x9e37_79b9) ^ at as u32).wrapping_mul(0x85eb_ca6b);
        (mixed >> 8) as f32 / 1024.0 - 8000.0 * (leaf % 3) as f32
    }

    #[test]
    fn a_tree_adds_pairs() {
        let words = |count: usize| {
            let mut tree = Tree::default();
            let add = |a: String, b: String| Ok::<_, Error>(format!("({a}{b})"));
            (0..count).for_each(|leaf| tree.push(leaf.to_string(), add).unwrap());
            tree.sum(add).unwrap().unwrap_or_default()
        };
        assert_eq!(["", "0", "(01)", "((01)2)", "((01)(23))"], [0, 1, 2, 3, 4].map(words).as_slice());
        assert_eq!(words(7), "(((01)(23))((45)6))");
        assert_eq!(words(12), "((((01)(23))((45)(67)))((89)(1011)))");
    }

    #[test]
    fn one_two_four_and_eight_processes_give_the_same_bits() {
        for (leaves, row) in [(8, 1), (8, 3 * Share::UNIT + 17), (24, Share::UNIT), (16, PIECE + 5), (8, 0)] {
            let sums = |size: usize| {
                let shares = each(size, |group| {
                    let mut trees: Vec<Tree<f32>> = vec![Tree::default(); row];
                    let mut range = 0..0;
                    for leaf in (group.rank()..leaves).step_by(size) {
                        let mut numbers: Vec<f32> = (0..row).map(|at| number(leaf, at)).collect();
                        range = group.sum_to_shares(&mut numbers, 5).unwrap();
                        assert_eq!(range, Share { row, turn: 5 }.of(group.rank(), size));
                        for at in range.clone() {
                            trees[at].push(numbers[at], add).unwrap();
                        }
                    }
                    let mut whole = vec![f32::NAN; row];
                    for at in range {
                        whole[at] = trees[at].clone().sum(add).unwrap().unwrap();
                    }
                    group.join_shares(&mut whole, 5).unwrap();
                    whole.into_iter().map(f32::to_bits).collect::<Vec<_>>()
                });
                assert!(shares.iter().all(|one| *one == shares[0]), "all have the same");
                shares[0].clone()
            };
            let one = sums(1);
            for size in [2, 4, 8] {
                assert!(sums(size) == one, "{size} processes, {leaves} leaves of {row}");
            }
            let in_turn: Vec<u32> = (0..row)
                .map(|at| (1..leaves).fold(number(0, at), |sum, leaf| sum + number(leaf, at)).to_bits())
                .collect();
            assert!(row == 0 || row == 1 || in_turn != one, "the test's numbers tell orders apart");
        }
    }

    #[test]
    fn shares_cover_a_row_once_and_small_rows_go_round() {
        for of in [1, 2, 4, 8] {
            for row in [0, 1, Share::UNIT, 5 * Share::UNIT + 1] {
                let share = Share { row, turn: 3 };
                let ranges: Vec<Range<usize>> = share.order(of).into_iter().map(|rank| share.of(rank, of)).collect();
                assert_eq!((ranges[0].start, ranges[of - 1].end), (0, row));
                assert!(ranges.windows(2).all(|two| two[0].end == two[1].start));
            }
            let holder = |turn| (0..of).find(|rank| !Share { row: 9, turn }.of(*rank, of).is_empty());
            let mut holders: Vec<_> = (0..of).map(holder).collect();
            holders.sort_unstable();
            assert_eq!(holders, (0..of).map(Some).collect::<Vec<_>>());
        }
    }

    #[test]
    fn which_numbers_of_processes_divide() {
        assert_eq!(Group::that_divide(1), [1]);
        assert_eq!(Group::that_divide(6), [1, 2]);
        assert_eq!(Group::that_divide(8), [1, 2, 4, 8]);
        assert_eq!(Group::that_divide(0), [0; 0]);
        assert!(each(2, |group| group.divides(6) && !group.divides(3)).iter().all(|good| *good));
        assert!(each(3, |group| !group.divides(6)).iter().all(|good| *good));
    }
}
