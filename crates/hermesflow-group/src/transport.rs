//! Messages between two processes: all that an implementation has to offer.

use std::fmt::Debug;

use crate::Result;

/// Messages of different lanes never meet: work that is dealt out is asked for by other threads than those that sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// What all processes do together, in the same order.
    Together,
    /// Requests for work, to the first process.
    Request,
    /// Its answers.
    Answer,
}

/// One process's connection with the others. All functions may be called from several threads, each in a lane of its own.
pub(crate) trait Transport: Debug + Send + Sync {
    /// The number of this process.
    fn rank(&self) -> usize;

    /// The number of processes, at least 2.
    fn size(&self) -> usize;

    /// The number of this process among those of its host, and how many these are.
    fn on_host(&self) -> (usize, usize);

    /// Sends bytes to another process.
    fn send(&self, to: usize, lane: Lane, bytes: &[u8]) -> Result<()>;

    /// Receives exactly as many bytes from another process.
    fn receive(&self, from: usize, lane: Lane, bytes: &mut [u8]) -> Result<()>;

    /// Sends to another process and receives from it at the same time.
    fn exchange(&self, with: usize, sent: &[u8], received: &mut [u8]) -> Result<()>;

    /// The next request of any process, of 16 bytes, and who sent it; `None` where there is none at the moment.
    fn request(&self) -> Result<Option<(usize, [u8; 16])>>;

    /// Leaves in peace.
    fn finish(&self);

    /// Ends all processes; over MPI this one, too.
    fn abort(&self, code: u8);
}
