//! Who works on a stage together, and on which piece each is: what is left in caches is put in the order of the pieces.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hermesflow_group::Group;

/// Bits of a piece's number within its stage.
const WITHIN: u32 = 40;
/// More than the stages of an iteration that leave something in caches.
const STAGES: u64 = 8;
/// More than the rounds of a stage ([`Sharing::enter_round`]): `pair.retries` is at most 100.
const ROUNDS: u64 = 128;

/// The stages of an iteration that leave something in caches, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Captions of pictures: codes.
    Caption,
    /// Questions: what their writer and their filter said.
    Ask,
    /// Answers: codes, and what the matcher said.
    Answer,
    /// Pairs: similarities.
    Pair,
    /// The pictures of pairs, encoded for training: codes.
    Encode,
}

/// The processes of a run, and the piece of work that this one is at. Clones know of the same piece.
#[derive(Debug, Clone, Default)]
pub struct Sharing {
    /// The processes.
    pub group: Group,
    piece: Arc<AtomicU64>,
}

impl Sharing {
    /// Work shared by a group.
    pub fn of(group: Group) -> Self {
        Self { group, piece: Arc::default() }
    }

    /// The same work, done by one process.
    pub fn alone(&self) -> Self {
        Self { group: Group::alone(), piece: self.piece.clone() }
    }

    /// Begins a stage of an iteration.
    pub fn enter(&self, iteration: usize, turn: Turn) {
        self.enter_round(iteration, turn, 0);
    }

    /// Begins another round of a stage, from 0, which goes over the same pieces once more and finds something new in them.
    /// A round counts as a stage of its own, later than the rounds before it.
    pub fn enter_round(&self, iteration: usize, turn: Turn, round: usize) {
        let stage = (iteration as u64 * STAGES + turn as u64) * ROUNDS + (round as u64).min(ROUNDS - 1);
        self.piece.store(stage << WITHIN, Ordering::Relaxed);
    }

    /// Begins with a piece of the stage's work, by its number.
    pub fn begin(&self, number: usize) {
        let stage = self.piece() >> WITHIN << WITHIN;
        self.piece.store(stage | number as u64, Ordering::Relaxed);
    }

    /// The piece that was begun last: a number that rises from stage to stage and from piece to piece.
    pub fn piece(&self) -> u64 {
        self.piece.load(Ordering::Relaxed)
    }

    /// Whether a piece is of a later stage than this one.
    pub fn is_later(&self, piece: u64) -> bool {
        piece >> WITHIN > self.piece() >> WITHIN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_rounds_and_pieces_rise_in_the_order_of_a_run() {
        let sharing = Sharing::default();
        let mut seen: Vec<u64> = Vec::new();
        for iteration in [1, 2, 5000] {
            for (turn, round) in
                [(Turn::Caption, 0), (Turn::Pair, 0), (Turn::Pair, 1), (Turn::Pair, 100), (Turn::Encode, 0)]
            {
                sharing.enter_round(iteration, turn, round);
                assert!(seen.iter().all(|earlier| !sharing.is_later(*earlier)));
                for piece in [0, 1, 1_000_000] {
                    sharing.begin(piece);
                    seen.push(sharing.piece());
                }
            }
        }
        assert!(seen.is_sorted_by(|one, next| one < next), "{seen:x?}");
        sharing.enter_round(1, Turn::Pair, 0);
        assert_eq!(seen.iter().filter(|piece| sharing.is_later(**piece)).count(), 3 * (3 + 2 * 5));
    }
}
