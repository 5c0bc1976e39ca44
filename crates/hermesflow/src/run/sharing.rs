//! Who works on a stage together, and on which piece each is: what is left in caches is put in the order of the pieces.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hermesflow_group::Group;

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

    /// Begins with a piece of a stage's work, by its number.
    pub fn begin(&self, piece: usize) {
        self.piece.store(piece as u64, Ordering::Relaxed);
    }

    /// The piece that was begun last.
    pub fn piece(&self) -> u64 {
        self.piece.load(Ordering::Relaxed)
    }
}
