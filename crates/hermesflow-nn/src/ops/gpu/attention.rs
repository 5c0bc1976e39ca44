//! Attention by kernels that keep the scores on the chip (FlashAttention-2, arXiv:2307.08691), of operands in bf16.

use std::cell::RefCell;
use std::sync::{Arc, OnceLock};

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DevicePtr};
use candle_core::{DType, DeviceLocation, Result, Tensor, bail};

use super::launch::{Module, address, arguments, gpu, kernel, numbers, numbers_or_null};
use super::work::{Block, Tile, Work};
use crate::ops::attention::segment::Segment;

/// The sizes of heads that there are kernels for.
pub(super) const HEAD_SIZES: [usize; 4] = [16, 32, 64, 128];
/// Keys of a block.
const KEYS: usize = 64;
/// Runs of at most so many queries are worked on by the kernel for few.
const FEW: usize = 16;
const THREADS: usize = 128;
/// The kernel by products of four warps together, for heads of 64, and what it skips at most so that its tiles are aligned.
const TOGETHER: &str = "attention_together_64";
const ALIGNED: usize = 1024;

/// Whether a GPU has products of four warps together, and the kernels were built for them.
fn together(like: &Tensor) -> Result<bool> {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    let device = gpu(like)?;
    let hopper = device.cuda_stream().context().compute_capability().w()? == (9, 0);
    Ok(hopper && *KNOWN.get_or_init(|| kernel(device, Module::Attention, TOGETHER).is_ok()))
}

/// Lists of work on a GPU.
struct Listed {
    tiles: CudaSlice<i32>,
    blocks: CudaSlice<i32>,
    count: usize,
    /// Tiles of more than [`FEW`] rows, which stand first.
    long: usize,
}

impl Listed {
    /// Where the tiles and the blocks stand.
    fn addresses(&self, like: &Tensor) -> Result<(u64, u64)> {
        let stream = gpu(like)?.cuda_stream();
        Ok((self.tiles.device_ptr(&stream).0, self.blocks.device_ptr(&stream).0))
    }
}

/// What the lists of a layer are found by in the next one.
type Known = (Arc<[Segment]>, (usize, Kind), DeviceLocation, Arc<Listed>);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Tiles of at most so many queries.
    Queries(usize),
    /// Tiles of at most so many keys.
    Keys(usize),
}

thread_local! {
    /// The last lists: all layers of a pass have the same segments.
    static LAST: RefCell<Vec<Known>> = const { RefCell::new(Vec::new()) };
}
/// Kinds of lists of one pass.
const KINDS: usize = 3;

fn listed(like: &Tensor, segments: &Arc<[Segment]>, keys: usize, kind: Kind) -> Result<Arc<Listed>> {
    let place = like.device().location();
    let known = LAST.with_borrow(|last| {
        let same = |(of, what, at, _): &&Known| Arc::ptr_eq(of, segments) && *what == (keys, kind) && *at == place;
        last.iter().find(same).map(|(_, _, _, listed)| listed.clone())
    });
    if let Some(known) = known {
        return Ok(known);
    }
    let work = match kind {
        Kind::Queries(rows) => Work::of_queries(segments, rows, KEYS),
        Kind::Keys(rows) => Work::of_keys(segments, keys, rows, KEYS),
    };
    let device = gpu(like)?;
    let (long, short): (Vec<Tile>, Vec<Tile>) = work.tiles.iter().partition(|tile| tile.rows as usize > FEW);
    let tiles: Vec<i32> =
        long.iter().chain(&short).flat_map(|&Tile { row, rows, first, last }| [row, rows, first, last]).collect();
    let blocks = work.blocks.iter().flat_map(|&Block { row, rows, begin, end, limit }| [row, rows, begin, end, limit]);
    // Nothing has no address.
    let blocks: Vec<i32> = blocks.chain([0]).collect();
    let listed = Listed {
        tiles: device.clone_htod(&tiles)?,
        blocks: device.clone_htod(&blocks)?,
        count: work.tiles.len(),
        long: long.len(),
    };
    let listed = Arc::new(listed);
    LAST.with_borrow_mut(|last| {
        last.insert(0, (segments.clone(), (keys, kind), place, listed.clone()));
        last.truncate(KINDS);
    });
    Ok(listed)
}

/// Rows of one token each, whose heads lie side by side: the distance of two rows.
fn stride(x: &Tensor) -> Result<i64> {
    let ((_, heads, d), &[row, head, one]) = (x.dims3()?, x.stride()) else { bail!("expected [tokens, heads, d]") };
    if one != 1 || head != d || row < heads * d || !row.is_multiple_of(8) || x.dtype() != DType::BF16 {
        bail!("expected rows of heads in bf16, not {:?} {:?}", x.dtype(), x.layout());
    }
    Ok(row as i64)
}

/// What each query sees, and the log-sum-exp (base 2) of its scores, if `log_sums`.
///
/// # Shapes
/// `q [tq, heads, d]`, `k` and `v` `[tk, heads, d]` in bf16 -> `[tq, heads · d]` in bf16, `[heads, tq]` in f32
pub(super) fn forward(
    [q, k, v]: [&Tensor; 3],
    segments: &Arc<[Segment]>,
    scale: f32,
    log_sums: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let ((queries, heads, d), keys) = (q.dims3()?, k.dim(0)?);
    // Long runs of queries fill tiles of many rows, but for their ends.
    let longest = segments.iter().map(|segment| segment.queries.len()).max().unwrap_or(0);
    let rows = match longest {
        0..=FEW => FEW,
        _ if d > 64 => 64,
        _ => 128,
    };
    let listed = listed(q, segments, keys, Kind::Queries(rows))?;
    // SAFETY: every query is in a tile, and the kernels write all rows of each.
    let seen = unsafe { Tensor::empty((queries, heads * d), DType::BF16, q.device())? };
    // SAFETY: as above.
    let sums = log_sums.then(|| unsafe { Tensor::empty((heads, queries), DType::F32, q.device()) }).transpose()?;
    let (q_at, k_at, v_at, seen_at) = (address(q)?, address(k)?, address(v)?, address(&seen)?);
    let (of_q, of_k, of_v) = (stride(q)?, stride(k)?, stride(v)?);
    let sums_at = numbers_or_null(sums.as_ref(), DType::F32)?;
    let (tiles, blocks) = listed.addresses(q)?;
    let (count, scale) = (queries as i32, scale * std::f32::consts::LOG2_E);
    let run = |name: String, threads: usize, (first, tile_count): (usize, usize), shared: usize| -> Result<()> {
        if tile_count == 0 {
            return Ok(());
        }
        let tiles = tiles + (first * size_of::<Tile>()) as u64;
        let given = arguments![q_at, k_at, v_at, seen_at, sums_at, tiles, blocks, of_q, of_k, of_v, count, scale];
        let kernel = kernel(gpu(q)?, Module::Attention, &name)?;
        // SAFETY: the arguments are the kernel's, and the lists name rows of the tensors: the segments were checked.
        unsafe { kernel.launch((tile_count, heads), threads, shared, &given) }
    };
    // Queries, and two or three blocks of keys and values for all warps, or two halves of one for each of four.
    if d == 64 && together(q)? {
        run(TOGETHER.into(), 2 * THREADS, (0, listed.long), 2 * d * (rows + 3 * 2 * KEYS) + ALIGNED)?;
    } else {
        run(format!("attention_{d}"), THREADS, (0, listed.long), 2 * d * (rows + 2 * 2 * KEYS))?;
    }
    run(
        format!("attention_few_{d}"),
        THREADS,
        (listed.long, listed.count - listed.long),
        2 * d * (FEW + 4 * 2 * KEYS),
    )?;
    Ok((seen, sums))
}

/// The gradients of queries, keys and values from that of what was seen, which [`forward`] gave with the log-sum-exp.
///
/// # Shapes
/// `q`, `k`, `v` `[t, heads, d]`, `seen` and `grad` `[t, heads · d]`, all in bf16 and contiguous -> as `q`, `k`, `v`
pub(super) fn backward(
    [q, k, v]: [&Tensor; 3],
    (seen, log_sums): (&Tensor, &Tensor),
    grad: &Tensor,
    segments: &Arc<[Segment]>,
    scale: f32,
) -> Result<[Tensor; 3]> {
    const BACK: usize = 64;
    const WARPS: usize = 4;
    let (tokens, heads, d) = q.dims3()?;
    if k.dims() != q.dims() || v.dims() != q.dims() || grad.dims() != [tokens, heads * d] || seen.dims() != grad.dims()
    {
        bail!("attention: gradient {:?} of q {:?}, k {:?}, v {:?}", grad.dims(), q.dims(), k.dims(), v.dims());
    }
    // SAFETY: every token is in a tile of both lists, and the kernels write all rows of each.
    let of = || unsafe { Tensor::empty((tokens, heads, d), DType::BF16, q.device()) };
    let (dq, dk, dv) = (of()?, of()?, of()?);
    // SAFETY: the kernel writes every number.
    let along = unsafe { Tensor::empty((heads, tokens), DType::F32, q.device())? };
    if tokens == 0 {
        return Ok([dq, dk, dv]);
    }
    let device = gpu(q)?;
    let bf16 = |x: &Tensor| numbers(x, DType::BF16);
    let (q_at, k_at, v_at, seen_at, grad_at) = (bf16(q)?, bf16(k)?, bf16(v)?, bf16(seen)?, bf16(grad)?);
    let (sums_at, along_at) = (numbers(log_sums, DType::F32)?, address(&along)?);
    let (count, apart) = (tokens as i32, (heads * d) as i64);
    let kernel_of = |name: &str| kernel(device, Module::Attention, &format!("attention_{name}_{d}"));
    let given = arguments![seen_at, grad_at, along_at, count, heads as i32];
    // SAFETY: the arguments are the kernel's; a warp for each query's head.
    unsafe { kernel_of("along")?.launch(((tokens * heads).div_ceil(WARPS), 1), 32 * WARPS, 0, &given)? };
    let listed_by = |kind| listed(q, segments, tokens, kind);
    let (queries, keys) = (listed_by(Kind::Queries(BACK))?, listed_by(Kind::Keys(BACK))?);
    let (tiles, blocks) = queries.addresses(q)?;
    // One side's two operands, and two blocks of the other's two.
    let shared = 2 * d * (2 * BACK + 2 * 2 * BACK);
    let (dq_at, dk_at, dv_at) = (address(&dq)?, address(&dk)?, address(&dv)?);
    let given = arguments![q_at, k_at, v_at, grad_at, sums_at, along_at, dq_at, tiles, blocks, apart, count, scale];
    // SAFETY: the arguments are the kernel's, and the lists name rows of the tensors: the segments were checked.
    unsafe { kernel_of("back_to_queries")?.launch((queries.count, heads), THREADS, shared, &given)? };
    let (tiles, blocks) = keys.addresses(q)?;
    let given =
        arguments![q_at, k_at, v_at, grad_at, sums_at, along_at, dk_at, dv_at, tiles, blocks, apart, count, scale];
    // And two numbers for each query of two blocks.
    let shared = shared + 2 * 2 * BACK * size_of::<f32>();
    // SAFETY: as above.
    unsafe { kernel_of("back_to_keys")?.launch((keys.count, heads), THREADS, shared, &given)? };
    Ok([dq, dk, dv])
}
