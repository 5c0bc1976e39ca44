//! Memory-mapped weights: a tensor's values are the pages of a mapped file. The system reads them at first use, shares them
//! with every other process that has the file open, and may drop them when memory is short.
//!
//! A candle tensor on the CPU owns a `Vec`, and a `Vec` owns its allocation. [`FileBacked`] is an allocator that can serve an
//! allocation from a mapped file. If the program's global allocator is another one, values are copied instead.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::{Cell, UnsafeCell};
use std::fs::File;
use std::hint::black_box;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use memmap2::{MmapMut, MmapOptions};

/// Most files that are mapped at a time; the tensors of further files are copied.
const FILES: usize = 64;
/// Logarithm of the size of a page in bytes. A range of addresses is kept in one number: its first page and its number of pages.
const PAGE_BITS: u32 = 12;
/// Bits of that number which hold the number of pages.
const COUNT_BITS: u32 = 28;

static SLOTS: [Slot; FILES] = [const { Slot::new() }; FILES];

thread_local! {
    /// The address that this thread's next allocation of this layout gets.
    static NEXT: Cell<Option<(Layout, *mut u8)>> = const { Cell::new(None) };
}

/// A global allocator that lets [`Weights`](super::Weights) already in the requested type be memory-mapped. Every other allocation
/// is the inner allocator's.
#[derive(Debug)]
pub struct FileBacked<A>(pub A);

// SAFETY: an allocation is the inner allocator's, or a range of a mapping that stays mapped until the allocation is freed.
unsafe impl<A: GlobalAlloc> GlobalAlloc for FileBacked<A> {
    /// # Safety
    /// As [`GlobalAlloc::alloc`].
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match NEXT.try_with(Cell::get) {
            Ok(Some((wanted, at))) if wanted == layout => {
                NEXT.set(None);
                at
            }
            // SAFETY: by the contract of this function.
            _ => unsafe { self.0.alloc(layout) },
        }
    }

    /// # Safety
    /// As [`GlobalAlloc::alloc_zeroed`].
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: by the contract of this function.
        unsafe { self.0.alloc_zeroed(layout) }
    }

    /// # Safety
    /// As [`GlobalAlloc::dealloc`].
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        match Slot::of(at) {
            Some(slot) => slot.leave(),
            // SAFETY: no mapping holds the address, so the inner allocator allocated it.
            None => unsafe { self.0.dealloc(at, layout) },
        }
    }

    /// # Safety
    /// As [`GlobalAlloc::realloc`].
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if Slot::of(at).is_none() {
            // SAFETY: no mapping holds the address, so the inner allocator allocated it.
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

/// A place for a mapping, and the number of its users: the reader of the file, and each tensor in it.
struct Slot {
    taken: AtomicBool,
    range: AtomicU64,
    users: AtomicUsize,
    map: UnsafeCell<Option<MmapMut>>,
}

// SAFETY: `map` is accessed only by the thread that took the slot before any other user exists, and after the last user left.
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

    /// The slot whose mapping contains an address.
    fn of(at: *const u8) -> Option<&'static Self> {
        let page = at as u64 >> PAGE_BITS;
        SLOTS.iter().find(|slot| {
            let range = slot.range.load(Ordering::Acquire);
            page.wrapping_sub(range >> COUNT_BITS) < range & ((1 << COUNT_BITS) - 1)
        })
    }

    /// Removes a user; the last one unmaps the file.
    fn leave(&self) {
        if self.users.fetch_sub(1, Ordering::AcqRel) == 1 {
            // The range first: once the file is unmapped, its addresses may belong to any allocation.
            self.range.store(0, Ordering::Release);
            // SAFETY: the slot has no user, and no thread can take it before the next line.
            drop(unsafe { (*self.map.get()).take() });
            self.taken.store(false, Ordering::Release);
        }
    }
}

/// Numbers of which every pattern of bits is one.
pub(super) trait Plain: Copy {}
impl Plain for f32 {}
impl Plain for half::bf16 {}
impl Plain for half::f16 {}

/// A mapped file, parts of which can become the values of tensors.
pub(super) struct Mapped(&'static Slot);

impl Mapped {
    /// Maps a file; `None` where the system, the file's length or the number of mapped files does not allow it.
    pub(super) fn open(path: &Path) -> Option<Self> {
        let file = File::open(path).ok()?;
        // SAFETY: the mapping is private, so writes stay in this process; a checkpoint that another program changes meanwhile is
        // broken anyway.
        let map = unsafe { MmapOptions::new().no_reserve_swap().map_copy(&file) }.ok()?;
        let (first, pages) = (map.as_ptr() as u64 >> PAGE_BITS, (map.len() as u64).div_ceil(1 << PAGE_BITS));
        if first >> (u64::BITS - COUNT_BITS) != 0 || pages >> COUNT_BITS != 0 {
            return None;
        }
        let take =
            |slot: &&Slot| slot.taken.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok();
        let slot = SLOTS.iter().find(take)?;
        // SAFETY: this thread has just taken the slot, which has no other user yet.
        unsafe { *slot.map.get() = Some(map) };
        slot.users.store(1, Ordering::Relaxed);
        slot.range.store(first << COUNT_BITS | pages, Ordering::Release);
        Some(Self(slot))
    }

    /// The bytes of the whole file.
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is not replaced while `self` holds the slot.
        unsafe { (*self.0.map.get()).as_deref().unwrap_or_default() }
    }

    /// A part of the file as a `Vec` in place, without a copy; `None` where the part is not aligned for `T`, or where the program's
    /// global allocator is not [`FileBacked`].
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
        // Hidden from the optimizer, which would assume that an allocation never has an address known before.
        if black_box(values.as_mut_ptr()).cast() != at {
            self.0.leave();
            return None;
        }
        // SAFETY: the allocation is the part of the file, and any bytes are a valid `T`.
        unsafe { values.set_len(count) };
        Some(values)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        self.0.leave();
    }
}
