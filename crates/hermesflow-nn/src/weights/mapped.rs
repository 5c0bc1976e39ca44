//! Weights that stay in their file: a tensor's values are the pages of a mapped file, read when they are first used,
//! shared with every other process that has the file open, and given back to the system under pressure.
//!
//! A candle tensor on the CPU owns a `Vec`, and a `Vec` its allocation. [`FileBacked`] is an allocator that can serve an
//! allocation from a mapped file; where it is not the program's global one, values are copied.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::{Cell, UnsafeCell};
use std::fs::File;
use std::hint::black_box;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use memmap2::{MmapMut, MmapOptions};

/// Files that can be mapped at a time; the tensors of further ones are copied.
const FILES: usize = 64;
/// A range is kept in one number: its first page, and how many there are.
const PAGE_BITS: u32 = 12;
const COUNT_BITS: u32 = 28;

static SLOTS: [Slot; FILES] = [const { Slot::new() }; FILES];

thread_local! {
    /// What this thread's next allocation of this layout is to be.
    static NEXT: Cell<Option<(Layout, *mut u8)>> = const { Cell::new(None) };
}

/// A global allocator under which [`Weights`](super::Weights) of the type that their file has stay in it.
#[derive(Debug)]
pub struct FileBacked<A>(pub A);

// SAFETY: an allocation is the inner allocator's, or else a range of a mapping that stays until it is freed.
unsafe impl<A: GlobalAlloc> GlobalAlloc for FileBacked<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match NEXT.try_with(Cell::get) {
            Ok(Some((wanted, at))) if wanted == layout => {
                NEXT.set(None);
                at
            }
            // SAFETY: as the caller promises.
            _ => unsafe { self.0.alloc(layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        unsafe { self.0.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        match Slot::of(at) {
            Some(slot) => slot.leave(),
            // SAFETY: no slot holds it, so the inner allocator gave it.
            None => unsafe { self.0.dealloc(at, layout) },
        }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if Slot::of(at).is_none() {
            // SAFETY: no slot holds it, so the inner allocator gave it.
            return unsafe { self.0.realloc(at, layout, size) };
        }
        // SAFETY: the caller promises a valid size; both allocations hold the smaller of the two.
        unsafe {
            let to = self.0.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !to.is_null() {
                std::ptr::copy_nonoverlapping(at, to, layout.size().min(size));
                self.dealloc(at, layout);
            }
            to
        }
    }
}

/// A mapping and how many hold it: the one who reads the file, and each of its tensors.
struct Slot {
    taken: AtomicBool,
    range: AtomicU64,
    users: AtomicUsize,
    map: UnsafeCell<Option<MmapMut>>,
}

// SAFETY: `map` is touched only by the one who took the slot, before anyone else holds it and after the last one left.
unsafe impl Sync for Slot {}

impl Slot {
    const fn new() -> Self {
        Self {
            taken: AtomicBool::new(false),
            range: AtomicU64::new(0),
            users: AtomicUsize::new(0),
            map: UnsafeCell::new(None),
        }
    }

    /// The slot whose mapping holds an address.
    fn of(at: *const u8) -> Option<&'static Self> {
        let page = at as u64 >> PAGE_BITS;
        SLOTS.iter().find(|slot| {
            let range = slot.range.load(Ordering::Acquire);
            page.wrapping_sub(range >> COUNT_BITS) < range & ((1 << COUNT_BITS) - 1)
        })
    }

    fn leave(&self) {
        if self.users.fetch_sub(1, Ordering::AcqRel) == 1 {
            // First the range: after the mapping is gone, its addresses may be anyone's.
            self.range.store(0, Ordering::Release);
            // SAFETY: nobody holds the slot any more, and nobody takes it before the line after.
            drop(unsafe { (*self.map.get()).take() });
            self.taken.store(false, Ordering::Release);
        }
    }
}

/// Numbers that any bytes are.
pub(super) trait Plain: Copy {}
impl Plain for f32 {}
impl Plain for half::bf16 {}
impl Plain for half::f16 {}

/// A mapped file whose parts can become the values of tensors.
pub(super) struct Mapped(&'static Slot);

impl Mapped {
    /// Maps a file; none where the system, its length or the number of mapped files does not allow it.
    pub(super) fn open(path: &Path) -> Option<Self> {
        let file = File::open(path).ok()?;
        // SAFETY: what is written to the pages stays in this process; a checkpoint that another program changes meanwhile
        // is broken anyway.
        let map = unsafe { MmapOptions::new().no_reserve_swap().map_copy(&file) }.ok()?;
        let (first, pages) = (map.as_ptr() as u64 >> PAGE_BITS, (map.len() as u64).div_ceil(1 << PAGE_BITS));
        if first >> (u64::BITS - COUNT_BITS) != 0 || pages >> COUNT_BITS != 0 {
            return None;
        }
        let take =
            |slot: &&Slot| slot.taken.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok();
        let slot = SLOTS.iter().find(take)?;
        // SAFETY: the slot was free and is now this one's.
        unsafe { *slot.map.get() = Some(map) };
        slot.users.store(1, Ordering::Relaxed);
        slot.range.store(first << COUNT_BITS | pages, Ordering::Release);
        Some(Self(slot))
    }

    /// The whole file.
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is not replaced while `self` holds the slot.
        unsafe { (*self.0.map.get()).as_deref().unwrap_or_default() }
    }

    /// A part of the file as a `Vec` in place; none where it is not aligned, or this program's allocator is another.
    pub(super) fn values<T: Plain>(&self, part: Range<usize>) -> Option<Vec<T>> {
        let part = self.bytes().get(part)?;
        let count = part.len() / size_of::<T>();
        let layout = Layout::array::<T>(count).ok().filter(|layout| layout.size() == part.len() && count > 0)?;
        let at = part.as_ptr().cast_mut();
        if at.align_offset(layout.align()) != 0 {
            return None;
        }
        self.0.users.fetch_add(1, Ordering::Relaxed);
        NEXT.set(Some((layout, at)));
        let mut values: Vec<T> = Vec::with_capacity(count);
        NEXT.set(None);
        // What stands there came from elsewhere than this function.
        if black_box(values.as_mut_ptr()).cast() != at {
            self.0.leave();
            return None;
        }
        // SAFETY: the allocation is the part of the file, which any T may be.
        unsafe { values.set_len(count) };
        Some(values)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        self.0.leave();
    }
}
