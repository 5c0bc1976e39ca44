//! How much was read of the sources.

use std::cell::Cell;
use std::io::Read;

use crate::progress::Task;

/// Counts what was read of the sources.
#[derive(Debug)]
pub struct Meter<'a> {
    task: &'a Task,
    bytes: Cell<u64>,
}

impl<'a> Meter<'a> {
    /// Nothing yet; the task counts thousands of bytes.
    pub fn new(task: &'a Task) -> Self {
        Self { task, bytes: Cell::new(0) }
    }

    /// So many bytes more.
    pub fn advance(&self, bytes: u64) {
        let before = self.bytes.get();
        self.bytes.set(before + bytes);
        let whole = self.bytes.get() / 1000 - before / 1000;
        if whole > 0 {
            self.task.advance(whole as usize);
        }
    }
}

/// Bytes that are counted as they are read.
pub struct Metered<'a, R> {
    inner: R,
    meter: &'a Meter<'a>,
}

impl<'a, R> Metered<'a, R> {
    /// What `inner` gives, counted by `meter`.
    pub fn new(inner: R, meter: &'a Meter<'a>) -> Self {
        Self { inner, meter }
    }
}

impl<R: Read> Read for Metered<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.meter.advance(read as u64);
        Ok(read)
    }
}
