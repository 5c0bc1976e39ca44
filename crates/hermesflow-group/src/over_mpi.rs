//! A group over MPI: messages between processes, waited for without taking the processor from those who work.

use std::ffi::{c_int, c_void};
use std::mem::{MaybeUninit, forget};
use std::time::{Duration, Instant};

use mpi::Threading;
use mpi::ffi;
use mpi::topology::Communicator;

use crate::transport::{Lane, Transport};
use crate::{Error, Result};

/// The most bytes of one message; MPI counts them in a C int.
const MOST: usize = 1 << 26;
/// How long is waited by asking again and again, before this process lets others work.
const EAGER: Duration = Duration::from_micros(20);
/// Between two looks for requests.
const LOOK_EVERY: Duration = Duration::from_micros(200);

/// All processes that the launcher started.
#[derive(Debug)]
pub(crate) struct World {
    rank: usize,
    size: usize,
    on_host: (usize, usize),
}

impl World {
    /// Joins the others; returns when all are there.
    pub(crate) fn join() -> Result<Self> {
        let Some((universe, threading)) = mpi::initialize_with_threading(Threading::Multiple) else {
            return Err(Error::Mpi("was initialised before".into()));
        };
        if threading != Threading::Multiple {
            return Err(Error::Mpi(format!(
                "this library supports {threading:?} threading, and Multiple is needed: work is dealt out by a thread of its own"
            )));
        }
        let world = universe.world();
        let host = world.split_shared(world.rank());
        let number = |number: i32| number.max(0) as usize;
        let of = Self {
            rank: number(world.rank()),
            size: number(world.size()),
            on_host: (number(host.rank()), number(host.size())),
        };
        drop(host);
        // Left by `finish`: a process that fails must not wait for the others.
        forget(universe);
        Ok(of)
    }
}

fn tag(lane: Lane) -> c_int {
    match lane {
        Lane::Together => 1,
        Lane::Request => 2,
        Lane::Answer => 3,
    }
}

/// The process of a rank, as MPI counts.
fn process(rank: usize) -> c_int {
    rank as c_int
}

fn checked(what: &str, code: c_int) -> Result<()> {
    if code == 0 { Ok(()) } else { Err(Error::Mpi(format!("{what} failed with code {code}"))) }
}

/// A message on its way.
struct Underway(ffi::MPI_Request);

impl Underway {
    fn to(rank: usize, lane: Lane, bytes: &[u8]) -> Result<Self> {
        // SAFETY: `bytes` lives until `wait` returns, which both callers call before they do; a message has at most MOST bytes.
        Self::begun("MPI_Isend", |request| unsafe {
            ffi::MPI_Isend(
                bytes.as_ptr().cast::<c_void>().cast_mut(),
                bytes.len() as c_int,
                ffi::RSMPI_UINT8_T,
                process(rank),
                tag(lane),
                ffi::RSMPI_COMM_WORLD,
                request,
            )
        })
    }

    fn from(rank: usize, lane: Lane, bytes: &mut [u8]) -> Result<Self> {
        // SAFETY: as above.
        Self::begun("MPI_Irecv", |request| unsafe {
            ffi::MPI_Irecv(
                bytes.as_mut_ptr().cast::<c_void>(),
                bytes.len() as c_int,
                ffi::RSMPI_UINT8_T,
                process(rank),
                tag(lane),
                ffi::RSMPI_COMM_WORLD,
                request,
            )
        })
    }

    /// The message that a call named `name` begins, which sets the request.
    fn begun(name: &'static str, call: impl FnOnce(*mut ffi::MPI_Request) -> c_int) -> Result<Self> {
        let mut request = MaybeUninit::uninit();
        checked(name, call(request.as_mut_ptr()))?;
        // SAFETY: set by the call, which succeeded.
        Ok(Self(unsafe { request.assume_init() }))
    }

    fn is_done(&mut self) -> Result<bool> {
        let mut done = 0;
        // SAFETY: a request of this process; one that is done stays so.
        let code = unsafe { ffi::MPI_Test(&mut self.0, &mut done, ffi::RSMPI_STATUS_IGNORE) };
        checked("MPI_Test", code)?;
        Ok(done != 0)
    }
}

/// Waits for messages. Who waits long looks more and more rarely, so that many processes can share few cores.
fn wait(mut underway: Vec<Underway>) -> Result<()> {
    let began = Instant::now();
    loop {
        let mut is_done = true;
        for one in &mut underway {
            is_done &= one.is_done()?;
        }
        if is_done {
            return Ok(());
        }
        let waited = began.elapsed();
        if waited > EAGER {
            std::thread::sleep((waited / 16).clamp(Duration::from_micros(5), Duration::from_millis(1)));
        } else {
            std::hint::spin_loop();
        }
    }
}

impl Transport for World {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn on_host(&self) -> (usize, usize) {
        self.on_host
    }

    fn send(&self, to: usize, lane: Lane, bytes: &[u8]) -> Result<()> {
        bytes.chunks(MOST).try_for_each(|bytes| wait(vec![Underway::to(to, lane, bytes)?]))
    }

    fn receive(&self, from: usize, lane: Lane, bytes: &mut [u8]) -> Result<()> {
        bytes.chunks_mut(MOST).try_for_each(|bytes| wait(vec![Underway::from(from, lane, bytes)?]))
    }

    fn exchange(&self, with: usize, sent: &[u8], received: &mut [u8]) -> Result<()> {
        let mut underway = Vec::new();
        for bytes in received.chunks_mut(MOST) {
            underway.push(Underway::from(with, Lane::Together, bytes)?);
        }
        for bytes in sent.chunks(MOST) {
            underway.push(Underway::to(with, Lane::Together, bytes)?);
        }
        wait(underway)
    }

    fn request(&self) -> Result<Option<(usize, [u8; 16])>> {
        let (mut there, mut status) = (0, MaybeUninit::<ffi::MPI_Status>::zeroed());
        // SAFETY: both are written by the call.
        let code = unsafe {
            ffi::MPI_Iprobe(
                ffi::RSMPI_ANY_SOURCE,
                tag(Lane::Request),
                ffi::RSMPI_COMM_WORLD,
                &mut there,
                status.as_mut_ptr(),
            )
        };
        checked("MPI_Iprobe", code)?;
        if there == 0 {
            std::thread::sleep(LOOK_EVERY);
            return Ok(None);
        }
        // SAFETY: all zeros is a status, and the call has set it.
        let from = unsafe { status.assume_init() }.MPI_SOURCE.max(0) as usize;
        let mut bytes = [0; 16];
        self.receive(from, Lane::Request, &mut bytes)?;
        Ok(Some((from, bytes)))
    }

    fn finish(&self) {
        // SAFETY: initialised by `join`, and nothing is called afterwards.
        unsafe { ffi::MPI_Finalize() };
    }

    fn abort(&self, code: u8) {
        // SAFETY: initialised by `join`; does not return.
        unsafe { ffi::MPI_Abort(ffi::RSMPI_COMM_WORLD, code.into()) };
    }
}
