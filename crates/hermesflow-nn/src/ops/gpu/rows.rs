//! What lies between the products of a decoder block, one kernel for each step; also the optimizer's step, and draws from logits.

use candle_core::{DType, Result, Tensor, bail};

use super::launch::{Module, address, arguments, gpu, kernel, numbers};
use crate::ops::affine::Affine;
use crate::ops::decoder::block::DecoderBlock;

/// Threads of a warp.
const WARP: usize = 32;
/// Threads per block, for kernels whose blocks need not hold a whole row.
const THREADS: usize = 256;
/// Blocks that share rows in kernels which sum over all rows: a fixed number, so that the sums have one order.
const SHARES: usize = 528;
/// Numbers of a row per thread.
const EACH: usize = 8;

/// Whether the kernels take rows of this width.
pub(super) fn takes_width(width: usize) -> bool {
    width.is_multiple_of(EACH) && width <= 1024 * EACH
}

/// Whether the kernels rotate heads in which `half` pairs of dimensions are rotated: 4, or 8 times a power of two.
pub(super) fn takes_rotation(half: usize) -> bool {
    half == 4 || half.is_multiple_of(8) && (half / 8).is_power_of_two()
}

/// Threads of a block that holds a whole row.
fn threads(width: usize) -> usize {
    width.div_ceil(EACH).next_multiple_of(WARP)
}

/// LayerNorm of rows, in bf16 or f32.
///
/// # Shapes
/// `x [n, width]` in f32 -> `[n, width]`
pub(super) fn norm(x: &Tensor, map: &Affine, eps: f64, dtype: DType) -> Result<Tensor> {
    let (n, width) = x.dims2()?;
    let name = match dtype {
        DType::BF16 => "norm_bf16",
        DType::F32 => "norm_f32",
        other => bail!("no norm gives {other:?}"),
    };
    // SAFETY: the kernel writes every number.
    let y = unsafe { Tensor::empty((n, width), dtype, x.device())? };
    if n > 0 {
        let (weight, bias) = (numbers(&map.weight, DType::F32)?, numbers(&map.bias, DType::F32)?);
        let given = arguments![numbers(x, DType::F32)?, weight, bias, address(&y)?, width as i32, eps as f32];
        if !takes_width(width) {
            bail!("no norm of rows of {width}");
        }
        // SAFETY: the arguments are the kernel's; each block reads and writes one row, which its threads hold.
        unsafe { kernel(gpu(x)?, Module::Rows, name)?.launch((n, 1), threads(width), 0, &given)? };
    }
    Ok(y)
}

/// The two sums over all rows, from each block's part of them.
///
/// # Shapes
/// `parts [blocks, 2 · width]` -> `[width]` each
fn joined(parts: &Tensor) -> Result<[Tensor; 2]> {
    let sums = parts.sum(0)?;
    let width = sums.dim(0)? / 2;
    Ok([sums.narrow(0, 0, width)?, sums.narrow(0, width, width)?])
}

/// The gradient of `x` through its LayerNorm, added to `base`, and the gradients of the norm's weight and bias.
///
/// # Shapes
/// `x`, `grad` and `base` `[n, width]` in f32 -> `[n, width]`, `[width]`, `[width]`
pub(super) fn norm_back(
    x: &Tensor,
    map: &Affine,
    grad: &Tensor,
    base: &Tensor,
    eps: f64,
) -> Result<(Tensor, [Tensor; 2])> {
    let (n, width) = x.dims2()?;
    if grad.dims() != [n, width] || base.dims() != [n, width] || !takes_width(width) {
        bail!("norm: gradients {:?} and {:?} of {:?}", grad.dims(), base.dims(), x.dims());
    }
    // SAFETY: the kernel writes every number.
    let dx = unsafe { Tensor::empty((n, width), DType::F32, x.device())? };
    // SAFETY: as above.
    let parts = unsafe { Tensor::empty((SHARES, 2 * width), DType::F32, x.device())? };
    let (weight, eps) = (numbers(&map.weight, DType::F32)?, eps as f32);
    let wide = |x: &Tensor| numbers(x, DType::F32);
    let given = arguments![
        wide(x)?,
        weight,
        wide(grad)?,
        wide(base)?,
        address(&dx)?,
        address(&parts)?,
        n as i64,
        width as i32,
        eps
    ];
    // SAFETY: the arguments are the kernel's; a block's threads hold a whole row, and each block has a part of the sums.
    unsafe { kernel(gpu(x)?, Module::Rows, "norm_back")?.launch((SHARES, 1), threads(width), 0, &given)? };
    Ok((dx, joined(&parts)?))
}

/// The rows of a cache to which the keys and values of a pass go.
pub(super) enum Place<'a> {
    /// Consecutive rows from this one on.
    From(usize),
    /// The row of each token, in u32 on the device.
    Rows(&'a Tensor),
}

/// What makes heads of queries, keys and values from the products of a block.
pub(super) struct Heads<'a> {
    /// Biases of queries, keys and values, `[heads · d]` each in f32.
    biases: [&'a Tensor; 3],
    /// LayerNorms of queries and keys, `[d]`.
    norms: [&'a Affine; 2],
    /// Cosine and sine of each token's angles, `[n, rot / 2]` in f32.
    tables: (&'a Tensor, &'a Tensor),
    heads: usize,
    eps: f64,
}

impl<'a> Heads<'a> {
    /// The heads of a block.
    pub(super) fn of(block: &'a DecoderBlock, tables: (&'a Tensor, &'a Tensor)) -> Self {
        Self {
            biases: [&block.query.bias, &block.key.bias, &block.value.bias],
            norms: [&block.query_norm, &block.key_norm],
            tables,
            heads: block.heads,
            eps: block.eps,
        }
    }

    /// The size `d` of a head, and the number of its rotated pairs of dimensions.
    fn sizes(&self, n: usize, width: usize) -> Result<(usize, usize)> {
        let (d, (tokens, half)) = (width / self.heads, self.tables.0.dims2()?);
        if self.tables.1.dims() != [tokens, half] || tokens != n || 2 * half > d || !takes_rotation(half) {
            bail!("heads: {n} tokens of {} heads of {d}, tables {:?}", self.heads, self.tables.0.dims());
        }
        Ok((d, half))
    }

    /// Adds the biases, then normalises and rotates each head of queries and keys. Returns the queries; keys and values are written
    /// to `keys` and `values` at `place`.
    ///
    /// # Shapes
    /// products `[n, heads · d]` each, `keys` and `values` `[rows, heads, d]` -> `[n, heads, d]`, all in bf16
    pub(super) fn rotated(
        &self,
        [q, k, v]: [&Tensor; 3],
        (keys, values): (&Tensor, &Tensor),
        place: &Place,
    ) -> Result<Tensor> {
        let (n, width) = q.dims2()?;
        let (d, half) = self.sizes(n, width)?;
        let (rows, first) = match place {
            Place::From(first) if first + n <= keys.dim(0)? => (0, *first),
            Place::Rows(rows) if rows.dims() == [n] => (numbers(rows, DType::U32)?, 0),
            _ => bail!("heads: no places for {n} tokens among {} rows", keys.dim(0)?),
        };
        if k.dims() != q.dims()
            || v.dims() != q.dims()
            || keys.dims() != values.dims()
            || keys.dims()[1..] != [self.heads, d]
        {
            bail!("heads: products {:?}, keys {:?}, values {:?}", q.dims(), keys.dims(), values.dims());
        }
        // SAFETY: the kernel writes every number.
        let queries = unsafe { Tensor::empty((n, self.heads, d), DType::BF16, q.device())? };
        if n == 0 {
            return Ok(queries);
        }
        let (narrow, wide) = (|x: &Tensor| numbers(x, DType::BF16), |x: &Tensor| numbers(x, DType::F32));
        let [q_bias, k_bias, v_bias] = self.biases;
        let [q_norm, k_norm] = self.norms;
        let given = arguments![
            narrow(q)?,
            narrow(k)?,
            narrow(v)?,
            wide(q_bias)?,
            wide(k_bias)?,
            wide(v_bias)?,
            wide(&q_norm.weight)?,
            wide(&k_norm.weight)?,
            wide(&q_norm.bias)?,
            wide(&k_norm.bias)?,
            wide(self.tables.0)?,
            wide(self.tables.1)?,
            address(&queries)?,
            narrow(keys)?,
            narrow(values)?,
            rows,
            first as i32,
            self.heads as i32,
            d as i32,
            half as i32,
            self.eps as f32,
        ];
        let kernel = kernel(gpu(q)?, Module::Rows, "heads")?;
        // SAFETY: the arguments are the kernel's; each block has one token's row of one side.
        unsafe { kernel.launch((n, 3), threads(width).min(THREADS), 0, &given)? };
        Ok(queries)
    }

    /// The gradient of the product of queries (`side` 0) or keys (`side` 1) through [`Self::rotated`], written over `grad`, and the
    /// gradients of their norm's weight and bias.
    ///
    /// # Shapes
    /// `product [n, heads · d]` and `grad [n, heads, d]` in bf16 -> `[n, heads · d]` in bf16, `[d]` and `[d]` in f32
    pub(super) fn back(&self, side: usize, product: &Tensor, grad: &Tensor) -> Result<(Tensor, [Tensor; 2])> {
        let (n, width) = product.dims2()?;
        let (d, half) = self.sizes(n, width)?;
        if grad.elem_count() != n * width {
            bail!("heads: gradient {:?} of products {:?}", grad.dims(), product.dims());
        }
        let (bias, norm) = (self.biases[side], self.norms[side]);
        // SAFETY: the kernel writes every number.
        let parts = unsafe { Tensor::empty((SHARES, 2 * d), DType::F32, product.device())? };
        let (narrow, wide) = (|x: &Tensor| numbers(x, DType::BF16), |x: &Tensor| numbers(x, DType::F32));
        let given = arguments![
            narrow(product)?,
            wide(bias)?,
            wide(&norm.weight)?,
            wide(self.tables.0)?,
            wide(self.tables.1)?,
            narrow(grad)?,
            address(&parts)?,
            n as i64,
            self.heads as i32,
            d as i32,
            half as i32,
            self.eps as f32,
        ];
        let kernel = kernel(gpu(product)?, Module::Rows, "heads_back")?;
        let threads = threads(width).min(THREADS);
        // Shared memory: two sums for each number of a thread.
        let shared = threads * 2 * EACH * size_of::<f32>();
        // SAFETY: the arguments are the kernel's; each block has a part of the sums.
        unsafe { kernel.launch((SHARES, 1), threads, shared, &given)? };
        Ok((grad.reshape((n, width))?, joined(&parts)?))
    }
}

/// The number of elements and the width of an activation's rows, checked.
fn check_activation(x: &Tensor, bias: &Tensor) -> Result<(i64, i32)> {
    let (n, width) = x.dims2()?;
    if !width.is_multiple_of(EACH) || bias.dims() != [width] {
        bail!("gelu of {:?} with a bias {:?}", x.dims(), bias.dims());
    }
    Ok(((n * width) as i64, width as i32))
}

/// `gelu(x + bias)` in the tanh form, in new memory or in place.
///
/// # Shapes
/// `x [n, width]` in bf16, `bias [width]` in f32 -> as `x`; the width is a multiple of eight
pub(super) fn gelu_with_bias(x: &Tensor, bias: &Tensor, in_place: bool) -> Result<Tensor> {
    let (count, width) = check_activation(x, bias)?;
    // SAFETY: the kernel writes every number.
    let y = if in_place { x.clone() } else { unsafe { Tensor::empty(x.shape(), DType::BF16, x.device())? } };
    if count > 0 {
        let given = arguments![numbers(x, DType::BF16)?, numbers(bias, DType::F32)?, address(&y)?, count, width];
        let blocks = (count as usize).div_ceil(EACH * THREADS);
        // SAFETY: the arguments are the kernel's, which stops after the last number.
        unsafe { kernel(gpu(x)?, Module::Rows, "gelu_with_bias")?.launch((blocks, 1), THREADS, 0, &given)? };
    }
    Ok(y)
}

/// `grad ← grad gelu'(x + bias)` in place.
///
/// # Shapes
/// `x` and `grad` `[n, width]` in bf16, `bias [width]` in f32; the width is a multiple of eight
pub(super) fn gelu_back(x: &Tensor, bias: &Tensor, grad: &Tensor) -> Result<()> {
    let (count, width) = check_activation(x, bias)?;
    if grad.dims() != x.dims() {
        bail!("gelu: gradient {:?} of {:?}", grad.dims(), x.dims());
    }
    if count > 0 {
        let narrow = |x: &Tensor| numbers(x, DType::BF16);
        let given = arguments![narrow(x)?, numbers(bias, DType::F32)?, narrow(grad)?, count, width];
        let blocks = (count as usize).div_ceil(EACH * THREADS);
        // SAFETY: the arguments are the kernel's, which stops after the last number.
        unsafe { kernel(gpu(x)?, Module::Rows, "gelu_back")?.launch((blocks, 1), THREADS, 0, &given)? };
    }
    Ok(())
}

/// A row's likeliest columns with their logits, and the log-sum-exp of the whole row.
pub(crate) type Found = (Vec<(u32, f32)>, f64);

/// The likeliest columns of each row of logits, the largest logit first; of equal logits the lower column first.
///
/// # Shapes
/// `logits [n, columns]` in f32 -> n of each
pub(crate) fn likeliest(logits: &Tensor, few: usize) -> Result<Vec<Found>> {
    let (n, columns) = logits.dims2()?;
    // Column numbers up to 2^24 are exact in f32.
    if few == 0 || few > columns || columns > 1 << 24 {
        bail!("the {few} likeliest of logits {:?}", logits.dims());
    }
    if n == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: the kernel writes every number.
    let found = unsafe { Tensor::empty((n, 2 * few + 1), DType::F32, logits.device())? };
    let given = arguments![numbers(logits, DType::F32)?, address(&found)?, columns as i32, few as i32];
    // SAFETY: the arguments are the kernel's; each block has one row.
    unsafe { kernel(gpu(logits)?, Module::Rows, "likeliest")?.launch((n, 1), 1024, 0, &given)? };
    let of_row = |row: Vec<f32>| {
        let (at, rest) = row.split_at(few);
        // Columns of a row of NaN are out of range: it has no likeliest column.
        let found = at.iter().zip(rest).filter(|(at, _)| (**at as usize) < columns);
        (found.map(|(at, logit)| (*at as u32, *logit)).collect(), rest[few].into())
    };
    Ok(found.to_vec2::<f32>()?.into_iter().map(of_row).collect())
}

/// A step of AdamW in place, with the coefficients `by` in the order of the kernel's parameters (those of `optim::Update`).
pub(crate) fn adamw(param: &Tensor, grad: &Tensor, first: &Tensor, second: &Tensor, by: [f32; 9]) -> Result<()> {
    let wide = |x: &Tensor| numbers(x, DType::F32);
    let [beta1, rest1, beta2, rest2, scale, keep, rate, root, eps] = by;
    let count = param.elem_count();
    let given = arguments![
        wide(param)?,
        wide(grad)?,
        wide(first)?,
        wide(second)?,
        count as i64,
        beta1,
        rest1,
        beta2,
        rest2,
        scale,
        keep,
        rate,
        root,
        eps
    ];
    let blocks = count.div_ceil(4 * THREADS).max(1);
    // SAFETY: the arguments are the kernel's; the caller has checked that all four tensors have one size.
    unsafe { kernel(gpu(param)?, Module::Rows, "adamw")?.launch((blocks, 1), THREADS, 0, &given) }
}

/// Partial sums of the squares of all elements.
///
/// # Shapes
/// `x [..]` in f32 -> `[parts]` in f64
pub(crate) fn squares(x: &Tensor) -> Result<Tensor> {
    // SAFETY: the kernel writes every number.
    let parts = unsafe { Tensor::empty(SHARES, DType::F64, x.device())? };
    let given = arguments![numbers(x, DType::F32)?, address(&parts)?, x.elem_count() as i64];
    // SAFETY: the arguments are the kernel's; each block has one of the parts.
    unsafe { kernel(gpu(x)?, Module::Rows, "squares")?.launch((SHARES, 1), THREADS, 0, &given)? };
    Ok(parts)
}

/// `log softmax(logits)[target]` of each row, and the row's log-sum-exp.
///
/// # Shapes
/// `logits [n, columns]` in f32, `targets [n]` in u32, below `columns` -> `[n]`, `[n]`
pub(super) fn log_prob(logits: &Tensor, targets: &Tensor) -> Result<(Tensor, Tensor)> {
    let (n, columns) = logits.dims2()?;
    // SAFETY: the kernel writes every number.
    let of = || unsafe { Tensor::empty(n, DType::F32, logits.device()) };
    let (found, sums) = (of()?, of()?);
    let (from, at) = (numbers(logits, DType::F32)?, numbers(targets, DType::U32)?);
    let given = arguments![from, at, address(&found)?, address(&sums)?, columns as i32];
    // SAFETY: the arguments are the kernel's; each block has one row.
    unsafe { kernel(gpu(logits)?, Module::Rows, "log_prob")?.launch((n, 1), 1024, 0, &given)? };
    Ok((found, sums))
}

/// The gradient of the logits through [`log_prob`], from its log-sum-exps and its gradient.
///
/// # Shapes
/// `logits [n, columns]`, `log_sums [n]` and `grad [n]` in f32, `targets [n]` in u32 -> `[n, columns]` in bf16
pub(super) fn log_prob_back(logits: &Tensor, targets: &Tensor, log_sums: &Tensor, grad: &Tensor) -> Result<Tensor> {
    let (n, columns) = logits.dims2()?;
    if [targets.dims(), log_sums.dims(), grad.dims()] != [[n]; 3] {
        bail!("log_prob: gradient {:?} of {n} rows", grad.dims());
    }
    // SAFETY: the kernel writes every number.
    let back = unsafe { Tensor::empty((n, columns), DType::BF16, logits.device())? };
    let (from, at) = (numbers(logits, DType::F32)?, numbers(targets, DType::U32)?);
    let (sums, grad) = (numbers(log_sums, DType::F32)?, numbers(grad, DType::F32)?);
    let given = arguments![from, at, sums, grad, address(&back)?, columns as i32];
    let blocks = columns.div_ceil(2 * THREADS);
    // SAFETY: the arguments are the kernel's; each thread has two numbers of a row.
    unsafe { kernel(gpu(logits)?, Module::Rows, "log_prob_back")?.launch((blocks, n), THREADS, 0, &given)? };
    Ok(back)
}

/// The elements in bf16, without a graph.
///
/// # Shapes
/// `x [..]` -> `[..]`
pub(super) fn narrowed(x: &Tensor) -> Result<Tensor> {
    let x = x.detach();
    if x.dtype() != DType::F32 || !x.is_contiguous() || x.elem_count() == 0 {
        return x.to_dtype(DType::BF16);
    }
    // SAFETY: the kernel writes every number.
    let y = unsafe { Tensor::empty(x.shape(), DType::BF16, x.device())? };
    let given = arguments![numbers(&x, DType::F32)?, address(&y)?, x.elem_count() as i64];
    let blocks = x.elem_count().div_ceil(EACH * THREADS);
    // SAFETY: the arguments are the kernel's, which stops after the last number.
    unsafe { kernel(gpu(&x)?, Module::Rows, "narrowed")?.launch((blocks, 1), THREADS, 0, &given)? };
    Ok(y)
}

/// Most columns of a row for [`draw`].
pub(crate) const DRAWN: usize = 40_000;

/// Draws a column from the softmax of each row of logits and gives it with its probability; from the guided logits if there are
/// unconditional ones.
///
/// # Shapes
/// `cond` and `uncond` `[n, columns]` in f32, n marks -> n columns with their probabilities
pub(crate) fn draw(cond: &Tensor, uncond: Option<&Tensor>, guidance: f32, marks: &[f32]) -> Result<Vec<(u32, f32)>> {
    let (n, columns) = cond.dims2()?;
    if uncond.is_some_and(|uncond| uncond.dims() != cond.dims()) || marks.len() != n || columns > DRAWN {
        bail!("draws: {} marks for logits {:?}", marks.len(), cond.dims());
    }
    // SAFETY: the kernel writes every number.
    let found = unsafe { Tensor::empty((n, 2), DType::F32, cond.device())? };
    let marks = Tensor::from_slice(marks, n, cond.device())?;
    let wide = |x: &Tensor| numbers(x, DType::F32);
    let uncond = uncond.map_or(Ok(0), wide)?;
    let given = arguments![wide(cond)?, uncond, wide(&marks)?, address(&found)?, columns as i32, guidance];
    let kernel = kernel(gpu(cond)?, Module::Rows, "draw")?;
    // SAFETY: the arguments are the kernel's; each block has one row, and memory for it.
    unsafe { kernel.launch((n, 1), THREADS, columns * size_of::<f32>(), &given)? };
    Ok(found.to_vec2::<f32>()?.into_iter().map(|row| (row[0] as u32, row[1])).collect())
}
