//! A group in the threads of one process: letter boxes in memory.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::transport::{Lane, Transport};
use crate::{Error, Result};

/// The letter boxes of all members.
#[derive(Debug)]
struct Post {
    boxes: Vec<(Mutex<Letters>, Condvar)>,
}

#[derive(Debug, Default)]
struct Letters {
    letters: VecDeque<(usize, Lane, Vec<u8>)>,
    /// A member has given up.
    broken: bool,
}

/// One member.
#[derive(Debug)]
pub(crate) struct Member {
    rank: usize,
    post: Arc<Post>,
}

/// The members of a new group.
pub(crate) fn members(size: usize) -> Vec<Member> {
    let post = Arc::new(Post { boxes: (0..size).map(|_| Default::default()).collect() });
    (0..size).map(|rank| Member { rank, post: post.clone() }).collect()
}

impl Member {
    fn put(&self, to: usize, lane: Lane, bytes: &[u8]) {
        let (letters, came) = &self.post.boxes[to];
        letters.lock().unwrap_or_else(PoisonError::into_inner).letters.push_back((self.rank, lane, bytes.to_vec()));
        came.notify_all();
    }

    /// The first letter in a lane, of this sender or of any; `None` where it does not come in time.
    fn take(&self, from: Option<usize>, lane: Lane, patience: Option<Duration>) -> Result<Option<(usize, Vec<u8>)>> {
        let (letters, came) = &self.post.boxes[self.rank];
        let mut inside = letters.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if inside.broken {
                return Err(Error::Gone);
            }
            let wanted =
                |(sender, of, _): &(usize, Lane, Vec<u8>)| *of == lane && from.is_none_or(|from| from == *sender);
            if let Some((sender, _, bytes)) =
                inside.letters.iter().position(wanted).and_then(|at| inside.letters.remove(at))
            {
                return Ok(Some((sender, bytes)));
            }
            inside = match patience {
                None => came.wait(inside).unwrap_or_else(PoisonError::into_inner),
                Some(patience) => {
                    let (inside, waited) = came.wait_timeout(inside, patience).unwrap_or_else(PoisonError::into_inner);
                    if waited.timed_out() {
                        return Ok(None);
                    }
                    inside
                }
            };
        }
    }
}

impl Transport for Member {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.post.boxes.len()
    }

    fn on_host(&self) -> (usize, usize) {
        (self.rank, self.size())
    }

    fn send(&self, to: usize, lane: Lane, bytes: &[u8]) -> Result<()> {
        self.put(to, lane, bytes);
        Ok(())
    }

    fn receive(&self, from: usize, lane: Lane, bytes: &mut [u8]) -> Result<()> {
        let Some((_, came)) = self.take(Some(from), lane, None)? else { return Err(Error::Gone) };
        if came.len() != bytes.len() {
            return Err(Error::Length { rank: from, found: came.len(), expected: bytes.len() });
        }
        bytes.copy_from_slice(&came);
        Ok(())
    }

    fn exchange(&self, with: usize, sent: &[u8], received: &mut [u8]) -> Result<()> {
        self.send(with, Lane::Together, sent)?;
        self.receive(with, Lane::Together, received)
    }

    fn request(&self) -> Result<Option<(usize, [u8; 16])>> {
        let Some((from, came)) = self.take(None, Lane::Request, Some(Duration::from_millis(1)))? else {
            return Ok(None);
        };
        let found = came.len();
        let bytes = came.try_into().map_err(|_| Error::Length { rank: from, found, expected: 16 })?;
        Ok(Some((from, bytes)))
    }

    fn finish(&self) {}

    fn abort(&self, _: u8) {
        for (letters, came) in &self.post.boxes {
            letters.lock().unwrap_or_else(PoisonError::into_inner).broken = true;
            came.notify_all();
        }
    }
}
