//! The processes that do one run together: which of them I am, what they sum, what is dealt out to them, who writes.
//!
//! A [`Group`] of one process is empty: every function returns at once. Several processes are started and connected by
//! MPI (feature `mpi`), or are threads of one process ([`Group::of_threads`], for tests).
//!
//! - What every process would do alike and only one may write is done by [`Group::once`] or [`Group::first`].
//! - Pieces of work of unknown length go to whoever is free: [`Group::deal`].
//! - Numbers are summed in an order that does not depend on the number of processes: [`Group::sum_to_shares`].
//!
//! A process that fails returns its error, and the program ends the whole job with [`Group::abort`]; the others, which may
//! be waiting for it, are ended by MPI.

mod deal;
mod launch;
#[cfg(feature = "mpi")]
mod over_mpi;
mod sums;
mod threads;
mod transport;
#[cfg(all(feature = "mpi", target_os = "linux"))]
mod watch;

use std::sync::{Arc, OnceLock};

pub use deal::Deal;
pub use launch::{Launch, launched};
pub use sums::{Exchange, Share, Tree};
use transport::{Lane, Transport};
#[cfg(all(feature = "mpi", target_os = "linux"))]
pub use watch::{Ended, Killed, watch};

/// What goes wrong between processes.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The launcher started several processes of a program that is built for one.
    #[error(
        "{launcher} started {processes} processes, but this program was built without MPI and would do the same work in \
         each; build it with `cargo build --release --features mpi`, or start one process"
    )]
    NotBuilt {
        /// What started them.
        launcher: &'static str,
        /// How many.
        processes: usize,
    },
    /// The MPI library cannot do what is needed.
    #[error("MPI: {0}")]
    Mpi(String),
    /// The launcher and the MPI library do not fit each other.
    #[error(
        "{launcher} started {processes} processes, but the MPI library that this program was built with connects {connected}; \
         use the launcher of the same MPI library (srun: --mpi=pmix or --mpi=pmi2, as `srun --mpi=list` shows)"
    )]
    NotConnected {
        /// What started them.
        launcher: &'static str,
        /// How many it started.
        processes: usize,
        /// How many the library knows of.
        connected: usize,
    },
    /// Another process is gone.
    #[error("another process of this job has ended")]
    Gone,
    /// Processes that should do the same do not.
    #[error(
        "process {rank} sent {found} bytes where {expected} were expected; all processes must be of the same build"
    )]
    Length {
        /// The process that sent them.
        rank: usize,
        /// Bytes that came.
        found: usize,
        /// Bytes that were expected.
        expected: usize,
    },
}

/// The result of something that processes do together.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The processes of one run, as one of them sees them. Clones are of the same process.
#[derive(Debug, Clone, Default)]
pub struct Group(Option<Arc<dyn Transport>>);

static WORLD: OnceLock<Group> = OnceLock::new();

impl Group {
    /// One process on its own.
    pub fn alone() -> Self {
        Self(None)
    }

    /// Joins the processes that a launcher started with this one; alone where there is none. To be called once, before
    /// [`Group::world`], from the thread that will call [`Group::finish`].
    ///
    /// # Errors
    /// When a launcher started several processes and the build has no MPI, or MPI cannot connect them.
    pub fn join() -> Result<Self> {
        let group = match launched() {
            None => Self::alone(),
            Some(launch) => connect(launch)?,
        };
        Ok(WORLD.get_or_init(|| group).clone())
    }

    /// The processes that [`Group::join`] found; this one alone where it was not called.
    pub fn world() -> Self {
        WORLD.get().cloned().unwrap_or_default()
    }

    /// `size` members of a group that lives in the threads of one process: for tests, and for measuring without MPI.
    pub fn of_threads(size: usize) -> Vec<Self> {
        match size {
            0 | 1 => vec![Self::alone()],
            _ => threads::members(size).into_iter().map(|member| Self(Some(Arc::new(member)))).collect(),
        }
    }

    /// The number of this process, from 0.
    pub fn rank(&self) -> usize {
        self.0.as_ref().map_or(0, |link| link.rank())
    }

    /// The number of processes.
    pub fn size(&self) -> usize {
        self.0.as_ref().map_or(1, |link| link.size())
    }

    /// Whether there is no other process.
    pub fn is_alone(&self) -> bool {
        self.0.is_none()
    }

    /// Whether this process writes what is written once, and speaks for all.
    pub fn is_writer(&self) -> bool {
        self.rank() == 0
    }

    /// The number of this process among those of its host, from 0, and how many these are.
    pub fn on_host(&self) -> (usize, usize) {
        self.0.as_ref().map_or((0, 1), |link| link.on_host())
    }

    /// Done by the writer alone, while the others wait; they get `None`.
    ///
    /// # Errors
    /// What `work` says, or that another process is gone.
    pub fn once<T, E: From<Error>>(&self, work: impl FnOnce() -> Result<T, E>) -> Result<Option<T>, E> {
        let done = if self.is_writer() { Some(work()?) } else { None };
        self.meet()?;
        Ok(done)
    }

    /// Done by the writer first and by the others when it is done: for work that writes what is missing and reads it, so
    /// that the others find it there.
    ///
    /// # Errors
    /// As [`Group::once`].
    pub fn first<T, E: From<Error>>(&self, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        if self.is_writer() {
            let done = work()?;
            self.meet()?;
            return Ok(done);
        }
        self.meet()?;
        work()
    }

    /// Waits until all processes are here.
    ///
    /// # Errors
    /// When another process is gone.
    pub fn meet(&self) -> Result<()> {
        self.gather(&[]).map(drop)
    }

    /// What every process gives, by the number of the process; everyone gets all of it.
    ///
    /// # Errors
    /// When another process is gone.
    pub fn gather(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>> {
        let Some(link) = &self.0 else { return Ok(vec![mine.to_vec()]) };
        if link.rank() != 0 {
            send_sized(&**link, 0, mine)?;
            return (0..link.size()).map(|_| receive_sized(&**link, 0)).collect();
        }
        let mut all = vec![mine.to_vec()];
        for from in 1..link.size() {
            all.push(receive_sized(&**link, from)?);
        }
        for to in 1..link.size() {
            all.iter().try_for_each(|part| send_sized(&**link, to, part))?;
        }
        Ok(all)
    }

    /// What the writer says, for everyone; what the others give is not looked at.
    ///
    /// # Errors
    /// When another process is gone.
    pub fn tell(&self, said: Option<Vec<u8>>) -> Result<Vec<u8>> {
        let Some(link) = &self.0 else { return Ok(said.unwrap_or_default()) };
        if link.rank() != 0 {
            return receive_sized(&**link, 0);
        }
        let said = said.unwrap_or_default();
        (1..link.size()).try_for_each(|to| send_sized(&**link, to, &said))?;
        Ok(said)
    }

    /// Numbers that the writer says, for everyone.
    ///
    /// # Errors
    /// When another process is gone.
    pub fn tell_numbers(&self, said: Option<&[usize]>) -> Result<Vec<usize>> {
        let bytes = said.map(|said| said.iter().flat_map(|number| (*number as u64).to_le_bytes()).collect());
        let told = self.tell(bytes)?;
        let numbers = told.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes) as usize).collect();
        Ok(numbers)
    }

    /// The sum of a count over all processes.
    ///
    /// # Errors
    /// When another process is gone.
    pub fn total(&self, count: usize) -> Result<usize> {
        let all = self.gather(&(count as u64).to_le_bytes())?;
        Ok(all.iter().filter_map(|bytes| Some(u64::from_le_bytes(bytes.as_slice().try_into().ok()?))).sum::<u64>()
            as usize)
    }

    /// Leaves the group at the end of the program, when all is done.
    pub fn finish(&self) {
        if let Some(link) = &self.0 {
            link.finish();
        }
    }

    /// Ends all processes of the job with this exit code; returns where this process is alone.
    pub fn abort(&self, code: u8) {
        if let Some(link) = &self.0 {
            link.abort(code);
        }
    }

    fn link(&self) -> Option<&dyn Transport> {
        self.0.as_deref()
    }
}

#[cfg(feature = "mpi")]
fn connect(launch: Launch) -> Result<Group> {
    let link = over_mpi::World::join()?;
    if link.size() != launch.processes {
        link.finish();
        let Launch { launcher, processes, .. } = launch;
        return Err(Error::NotConnected { launcher, processes, connected: link.size() });
    }
    Ok(if link.size() == 1 { Group::alone() } else { Group(Some(Arc::new(link))) })
}

#[cfg(not(feature = "mpi"))]
fn connect(launch: Launch) -> Result<Group> {
    let Launch { launcher, processes, .. } = launch;
    Err(Error::NotBuilt { launcher, processes })
}

fn send_sized(link: &dyn Transport, to: usize, bytes: &[u8]) -> Result<()> {
    link.send(to, Lane::Together, &(bytes.len() as u64).to_le_bytes())?;
    if bytes.is_empty() { Ok(()) } else { link.send(to, Lane::Together, bytes) }
}

fn receive_sized(link: &dyn Transport, from: usize) -> Result<Vec<u8>> {
    let mut length = [0; 8];
    link.receive(from, Lane::Together, &mut length)?;
    let mut bytes = vec![0; u64::from_le_bytes(length) as usize];
    if !bytes.is_empty() {
        link.receive(from, Lane::Together, &mut bytes)?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::Mutex;

    /// What each member of a group of threads returns, by rank.
    pub(crate) fn each<T: Send>(size: usize, work: impl Fn(Group) -> T + Sync) -> Vec<T> {
        let work = &work;
        std::thread::scope(|scope| {
            let started: Vec<_> =
                Group::of_threads(size).into_iter().map(|member| scope.spawn(move || work(member))).collect();
            started.into_iter().map(|one| one.join().unwrap()).collect()
        })
    }

    #[test]
    fn everyone_gets_what_everyone_gave() {
        for size in [1, 2, 3, 8] {
            let expected: Vec<Vec<u8>> = (0..size).map(|rank| vec![7; rank * 100]).collect();
            for (rank, got) in
                each(size, |group| group.gather(&vec![7; group.rank() * 100]).unwrap()).iter().enumerate()
            {
                assert_eq!(got, &expected, "{rank} of {size}");
            }
            assert!(
                each(size, |group| group.total(group.rank() + 1).unwrap())
                    .iter()
                    .all(|sum| *sum == size * (size + 1) / 2)
            );
        }
    }

    #[test]
    fn what_the_writer_says_everyone_knows() {
        for size in [1, 2, 5] {
            let told = each(size, |group| group.tell_numbers(group.is_writer().then_some(&[7, 1 << 40])).unwrap());
            assert_eq!(told, vec![vec![7, 1 << 40]; size]);
        }
    }

    #[test]
    fn the_writer_works_alone_or_first() {
        let seen = Mutex::new(Vec::new());
        let note = |group: &Group| {
            seen.lock().unwrap().push(group.rank());
            Ok::<_, Error>(group.rank())
        };
        let once = each(4, |group| group.once(|| note(&group)).unwrap());
        assert_eq!(once, [Some(0), None, None, None]);
        assert_eq!(*seen.lock().unwrap(), [0]);
        let first = each(4, |group| group.first(|| note(&group)).unwrap());
        assert_eq!(first, [0, 1, 2, 3]);
        assert_eq!(seen.lock().unwrap()[1], 0);
    }

    #[test]
    #[cfg(not(feature = "mpi"))]
    fn a_build_for_one_process_refuses_to_be_one_of_several() {
        for rank in [0, 7] {
            let said = connect(Launch { launcher: "mpirun", processes: 8, rank }).unwrap_err().to_string();
            for part in ["mpirun started 8 processes", "built without MPI", "--features mpi"] {
                assert!(said.contains(part), "{part}: {said}");
            }
        }
    }

    #[test]
    fn who_waits_for_a_process_that_is_gone_is_told() {
        let all = each(3, |group| {
            if group.rank() == 1 {
                group.abort(1);
                return true;
            }
            matches!(group.meet(), Err(Error::Gone))
        });
        assert_eq!(all, [true; 3]);
    }
}
