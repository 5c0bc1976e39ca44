//! Attention with kernels that keep the scores on the chip, for operands in bf16: Dao, "FlashAttention-2" (arXiv:2307.08691).

use std::cell::RefCell;
use std::sync::{Arc, OnceLock};

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DevicePtr};
use candle_core::{DType, DeviceLocation, Result, Tensor, bail};

use super::launch::{Module, address, arguments, gpu, kernel, numbers, numbers_or_null};
use super::work::{Block, Tile, Work};
use crate::ops::attention::segment::Segment;

/// The sizes of a head for which there are kernels.
pub(super) const HEAD_SIZES: [usize; 4] = [16, 32, 64, 128];
/// Keys per block.
const KEYS: usize = 64;
/// Most queries of a tile that the kernel for few queries takes.
const FEW: usize = 16;
/// Threads per block.
const THREADS: usize = 128;
/// The kernel that multiplies with four warps together (Hopper), for heads of 64.
const TOGETHER: &str = "attention_together_64";
/// Most bytes of shared memory that it skips to align its tiles.
const ALIGNED: usize = 1024;

/// Whether a GPU multiplies with four warps together (compute capability 9.0), and the kernels were built for it.
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
    /// The number of tiles.
    count: usize,
    /// The number of tiles of more than [`FEW`] rows, which come first.
    long: usize,
}

impl Listed {
    /// The addresses of the tiles and of the blocks.
    fn addresses(&self, like: &Tensor) -> Result<(u64, u64)> {
        let stream = gpu(like)?.cuda_stream();
        Ok((self.tiles.device_ptr(&stream).0, self.blocks.device_ptr(&stream).0))
    }
}

/// Lists with everything that decided them.
type Known = (Arc<[Segment]>, (usize, Kind), DeviceLocation, Arc<Listed>);

/// What the tiles of a list hold.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// At most so many queries.
    Queries(usize),
    /// At most so many keys.
    Keys(usize),
}

thread_local! {
    /// The last lists, because all layers of a pass have the same segments.
    static LAST: RefCell<Vec<Known>> = const { RefCell::new(Vec::new()) };
}
/// Most kinds of lists in one pass.
const KINDS: usize = 3;

/// The lists of work for these segments on the GPU of `like`.
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
    // An empty list has no address.
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

/// The distance in elements of two tokens' rows, in which heads lie side by side.
///
/// # Errors
/// When the tensor is not in bf16 or has another layout.
fn stride(x: &Tensor) -> Result<i64> {
    let ((_, heads, d), &[row, head, one]) = (x.dims3()?, x.stride()) else { bail!("expected [tokens, heads, d]") };
    if one != 1 || head != d || row < heads * d || !row.is_multiple_of(8) || x.dtype() != DType::BF16 {
        bail!("expected rows of heads in bf16, not {:?} {:?}", x.dtype(), x.layout());
    }
    Ok(row as i64)
}

/// What attention gives, and, if `log_sums`, the log-sum-exp (base 2) of each query's scores.
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
    // Long runs of queries fill tiles of many rows, except at their ends.
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
    // Shared memory: the queries, and two or three blocks of keys and values for all warps, or for few queries two halves of a block
    // for each of four warps.
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

/// The gradients of queries, keys and values, from what [`forward`] gave (`seen` with its log-sum-exps) and its gradient.
///
/// # Shapes
/// `q`, `k`, `v` `[t, heads, d]`, `seen` and `grad` `[t, heads · d]`, all in bf16 and contiguous -> three times `[t, heads, d]`
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
    // Shared memory: the two operands of a tile, and two blocks of the other side's two.
    let shared = 2 * d * (2 * BACK + 2 * 2 * BACK);
    let (dq_at, dk_at, dv_at) = (address(&dq)?, address(&dk)?, address(&dv)?);
    let given = arguments![q_at, k_at, v_at, grad_at, sums_at, along_at, dq_at, tiles, blocks, apart, count, scale];
    // SAFETY: the arguments are the kernel's, and the lists name rows of the tensors: the segments were checked.
    unsafe { kernel_of("back_to_queries")?.launch((queries.count, heads), THREADS, shared, &given)? };
    let (tiles, blocks) = keys.addresses(q)?;
    let given =
        arguments![q_at, k_at, v_at, grad_at, sums_at, along_at, dk_at, dv_at, tiles, blocks, apart, count, scale];
    // And two numbers per query of two blocks.
    let shared = shared + 2 * 2 * BACK * size_of::<f32>();
    // SAFETY: as above.
    unsafe { kernel_of("back_to_keys")?.launch((keys.count, heads), THREADS, shared, &given)? };
    Ok([dq, dk, dv])
}
