//! GPUs of several processes that exchange numbers directly, by NCCL.
//!
//! NCCL's own sums promise no order, so none of them is used: two processes send each other numbers (`ncclSend`, `ncclRecv`),
//! and what is added to what is decided by who calls. Everything is queued in the device's one stream, behind the work that makes
//! the numbers and before the work that reads them (see `gpu.rs`).
//!
//! A communicator is never destroyed: the last step of that waits for all processes, and one that fails must not wait.

use std::ffi::{CStr, c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr::null_mut;
use std::sync::{Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::nccl::{result, sys};
use candle_core::{DType, Device, Tensor};

use crate::ops::gpu::numbers;

/// What fails between GPUs.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// NCCL, or the network below it.
    #[error("NCCL: {what} failed: {why} (NCCL_DEBUG=INFO says more)")]
    Nccl {
        /// The call.
        what: &'static str,
        /// NCCL's code, and its last message.
        why: String,
    },
    /// What the first process said is no name of a communicator.
    #[error("NCCL: the first process sent {0} bytes where {size} were expected; all processes must be of the same build", size = Peers::NAME)]
    Name(usize),
    /// A tensor operation.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

type Result<T> = std::result::Result<T, Error>;

/// A process's GPU among those of the other processes.
#[derive(Debug)]
pub struct Peers {
    communicator: Mutex<Communicator>,
    device: Device,
}

#[derive(Debug)]
struct Communicator(sys::ncclComm_t);

// SAFETY: a communicator may be used from any thread, by one at a time; `Peers` holds it in a mutex.
unsafe impl Send for Communicator {}

fn checked(what: &'static str, returned: std::result::Result<result::NcclStatus, result::NcclError>) -> Result<()> {
    let Err(error) = returned else { return Ok(()) };
    // SAFETY: a null communicator asks for the last message of all; it is a text that NCCL keeps, or null.
    let message = unsafe { sys::ncclGetLastError(null_mut()) };
    // SAFETY: as above.
    let message = if message.is_null() { "".into() } else { unsafe { CStr::from_ptr(message) }.to_string_lossy() };
    Err(Error::Nccl { what, why: format!("{:?} {message}", error.0).trim_end().to_owned() })
}

impl Peers {
    /// Bytes of the name of a communicator.
    pub const NAME: usize = 128;

    /// What tells the GPU of a device from any other, in whatever process; `None` for the CPU.
    pub fn identity(device: &Device) -> Option<[u8; 16]> {
        let uuid = device.as_cuda_device().ok()?.cuda_stream().context().uuid().ok()?;
        Some(uuid.bytes.map(|byte| byte as u8))
    }

    /// A new name: made by one process, and told to all that join under it.
    ///
    /// # Errors
    /// If NCCL finds no network.
    pub fn name() -> Result<Vec<u8>> {
        let mut id = MaybeUninit::uninit();
        // SAFETY: the call writes the id.
        checked("ncclGetUniqueId", unsafe { sys::ncclGetUniqueId(id.as_mut_ptr()) }.result())?;
        // SAFETY: written by the call, which succeeded.
        let id: sys::ncclUniqueId = unsafe { id.assume_init() };
        Ok(id.internal.iter().map(|byte| *byte as u8).collect())
    }

    /// Joins the GPUs of `size` processes, each of which calls this with its own `rank` and the same name; no two may have the
    /// same GPU. Returns when all are there.
    ///
    /// # Errors
    /// If NCCL cannot connect them.
    pub fn join(device: &Device, rank: usize, size: usize, name: &[u8]) -> Result<Self> {
        let name: [u8; Self::NAME] = name.try_into().map_err(|_| Error::Name(name.len()))?;
        let id = sys::ncclUniqueId { internal: name.map(|byte| byte as _) };
        let cuda = device.as_cuda_device()?;
        cuda.cuda_stream().context().bind_to_thread().map_err(candle_core::Error::wrap)?;
        let mut communicator = null_mut();
        // SAFETY: the place for the result is valid; NCCL takes the GPU that is bound to this thread.
        let joined = unsafe { result::comm_init_rank(&raw mut communicator, size as c_int, id, rank as c_int) };
        checked("ncclCommInitRank", joined)?;
        Ok(Self { communicator: Mutex::new(Communicator(communicator)), device: device.clone() })
    }

    /// Sends a vector of f32 to another process and receives one of `received` numbers from it. Where there is nothing to send
    /// the other one expects none, and where none is expected it sends nothing.
    ///
    /// # Errors
    /// If `given` is on another device or not contiguous, or the connection fails.
    pub fn exchange(&self, with: usize, given: Option<&Tensor>, received: usize) -> Result<Option<Tensor>> {
        let with = with as c_int;
        let stream = self.device.as_cuda_device()?.cuda_stream();
        stream.context().bind_to_thread().map_err(candle_core::Error::wrap)?;
        let given = given.map(|given| Ok::<_, Error>((numbers(given, DType::F32)?, given.elem_count()))).transpose()?;
        // SAFETY: the whole vector is received before anything that is queued later reads it.
        let got = (received > 0).then(|| unsafe { Tensor::empty(received, DType::F32, &self.device) }).transpose()?;
        let place = got.as_ref().map(|got| numbers(got, DType::F32)).transpose()?;
        let communicator = self.communicator.lock().unwrap_or_else(PoisonError::into_inner).0;
        let (kind, in_stream) = (sys::ncclDataType_t::ncclFloat32, stream.cu_stream().cast());
        checked("ncclGroupStart", result::group_start())?;
        let sent = given.map_or(Ok(()), |(from, count)| {
            // SAFETY: so many numbers are there; they are freed in the stream, behind the transfer.
            let sent = unsafe { result::send(from as *const c_void, count, kind, with, communicator, in_stream) };
            checked("ncclSend", sent)
        });
        let expected = place.map_or(Ok(()), |to| {
            // SAFETY: so many numbers have room there, and likewise.
            let queued = unsafe { result::recv(to as *mut c_void, received, kind, with, communicator, in_stream) };
            checked("ncclRecv", queued)
        });
        let queued = checked("ncclGroupEnd", result::group_end());
        sent.and(expected).and(queued)?;
        Ok(got)
    }
}
