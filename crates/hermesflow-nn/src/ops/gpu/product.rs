//! Products of bf16 matrices with cuBLASLt, together with what follows them: a bias, an addition, or GELU.
//!
//! cuBLASLt is column-major, so `y [n, out] = x [n, in] Wᵀ` is `yᵀ = W xᵀ` there, with the operands as they are in memory.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::cublas::sys::cublasOperation_t;
use candle_core::cuda_backend::cudarc::cublaslt::{result, sys};
use candle_core::{DType, Device, DeviceLocation, Error, Result, Tensor, bail};

use super::launch::{address, gpu, numbers, numbers_or_null};

/// Bytes of work memory that a product may use: the size that cuBLAS recommends on large GPUs.
const WORKSPACE: usize = 32 << 20;

/// cuBLASLt's errors as candle's.
trait Told<T> {
    /// The result, or the error as one of candle's.
    fn told(self) -> Result<T>;
}

impl<T> Told<T> for std::result::Result<T, result::CublasError> {
    fn told(self) -> Result<T> {
        self.map_err(|error| Error::Msg(format!("cuBLASLt: {error}")).bt())
    }
}

/// Everything that decides which algorithm computes a product.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    rows: usize,
    out: usize,
    depth: usize,
    /// The distance of two rows of `x`.
    stride: usize,
    /// Whether the weight is multiplied as it is, not transposed.
    as_it_lies: bool,
    /// Whether results are in f32, not in bf16.
    wide: bool,
    /// Whether the product is added to the present values of the result.
    added: bool,
    biased: bool,
    /// Whether the tanh form of GELU follows, after the bias.
    activated: bool,
}

/// How products of one shape are computed: cuBLASLt's descriptors and its choice of an algorithm.
struct Way {
    operation: sys::cublasLtMatmulDesc_t,
    weight: sys::cublasLtMatrixLayout_t,
    x: sys::cublasLtMatrixLayout_t,
    y: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

/// cuBLASLt on one GPU.
struct Handle {
    handle: sys::cublasLtHandle_t,
    workspace: Tensor,
    ways: HashMap<Shape, Way>,
}

// SAFETY: any thread may use cuBLASLt's handles, and what the pointers point to is accessed only under the lock.
unsafe impl Send for Handle {}

static HANDLES: Mutex<Vec<(DeviceLocation, Handle)>> = Mutex::new(Vec::new());

impl Handle {
    fn new(device: &Device) -> Result<Self> {
        let handle = result::create_handle().told()?;
        // SAFETY: a product reads from its work memory only what it has written there.
        let workspace = unsafe { Tensor::empty(WORKSPACE / 4, DType::F32, device)? };
        Ok(Self { handle, workspace, ways: HashMap::new() })
    }

    fn way(&mut self, shape: Shape) -> Result<&Way> {
        if !self.ways.contains_key(&shape) {
            let way = self.find(shape)?;
            self.ways.insert(shape, way);
        }
        self.ways.get(&shape).map_or_else(|| bail!("a product that was just prepared is gone"), Ok)
    }

    /// Asks cuBLASLt for an algorithm for products of this shape.
    fn find(&self, shape: Shape) -> Result<Way> {
        use sys::cublasLtEpilogue_t::{CUBLASLT_EPILOGUE_BIAS as BIAS, CUBLASLT_EPILOGUE_GELU_BIAS as GELU_BIAS};
        use sys::cublasLtMatmulDescAttributes_t as Of;
        use sys::cudaDataType_t::{CUDA_R_16BF, CUDA_R_32F};
        let Shape { rows, out, depth, stride, as_it_lies, wide, biased, activated, .. } = shape;
        let operation = result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, CUDA_R_32F).told()?;
        let transposed = cublasOperation_t::CUBLAS_OP_T as i32;
        let kind = if wide { CUDA_R_32F } else { CUDA_R_16BF };
        // SAFETY: the attributes have the types that cuBLASLt names, and live until they are copied.
        unsafe {
            if !as_it_lies {
                set(operation, Of::CUBLASLT_MATMUL_DESC_TRANSA, &transposed)?;
            }
            if biased {
                let epilogue = if activated { GELU_BIAS } else { BIAS };
                set(operation, Of::CUBLASLT_MATMUL_DESC_EPILOGUE, &(epilogue as i32))?;
                // Any aligned address: the bias itself is set at each product, but an address must be there for the choice.
                set(operation, Of::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &address(&self.workspace)?)?;
            }
        }
        let layout = |kind, rows: usize, columns: usize, apart: usize| {
            result::create_matrix_layout(kind, rows as u64, columns as u64, apart as i64).told()
        };
        let weight = match as_it_lies {
            true => layout(CUDA_R_16BF, out, depth, out)?,
            false => layout(CUDA_R_16BF, depth, out, depth)?,
        };
        let x = layout(CUDA_R_16BF, depth, rows, stride)?;
        let y = layout(kind, out, rows, out)?;
        let preference = result::create_matmul_pref().told()?;
        let most = WORKSPACE;
        // SAFETY: the attribute is a size; the descriptors were just made.
        let algorithm = unsafe {
            let which = sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            let size = (&raw const most).cast::<c_void>();
            result::set_matmul_pref_attribute(preference, which, size, size_of::<usize>()).told()?;
            let found = result::get_matmul_algo_heuristic(self.handle, operation, weight, x, y, y, preference).told();
            result::destroy_matmul_pref(preference).told()?;
            found?.algo
        };
        Ok(Way { operation, weight, x, y, algorithm })
    }
}

/// Sets an attribute of a product.
///
/// # Safety
/// The attribute has the type of the value.
unsafe fn set<T>(
    operation: sys::cublasLtMatmulDesc_t,
    which: sys::cublasLtMatmulDescAttributes_t,
    value: &T,
) -> Result<()> {
    let at = std::ptr::from_ref(value).cast::<c_void>();
    // SAFETY: by the contract of this function.
    unsafe { result::set_matmul_desc_attribute(operation, which, at, size_of::<T>()).told() }
}

/// The right factor of a product.
#[derive(Clone, Copy)]
pub(super) enum By<'a> {
    /// The transpose of `W [out, in]`.
    Transposed(&'a Tensor),
    /// `W [in, out]` as it is.
    AsItLies(&'a Tensor),
}

impl By<'_> {
    /// The matrix `W`, and the sizes `in` and `out`.
    fn sizes(&self) -> Result<(&Tensor, usize, usize)> {
        Ok(match self {
            Self::Transposed(weight) => (weight, weight.dim(1)?, weight.dim(0)?),
            Self::AsItLies(weight) => (weight, weight.dim(0)?, weight.dim(1)?),
        })
    }
}

/// What follows a product.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Behind {
    Nothing,
    /// It is added to the present values of the result.
    Added,
    /// The tanh form of GELU.
    Activated,
}

/// `y = x by + bias`, with what follows.
fn run(x: &Tensor, by: By, bias: Option<&Tensor>, y: &Tensor, behind: Behind) -> Result<()> {
    let ((rows, depth), (weight, input, out)) = (x.dims2()?, by.sizes()?);
    let [apart, one] = x.stride() else { bail!("a product of {:?}", x.dims()) };
    let fits = input == depth && y.dims() == [rows, out] && bias.is_none_or(|bias| bias.dims() == [out]);
    if !fits || *one != 1 || x.dtype() != DType::BF16 {
        bail!("no product of {:?} {:?} and {:?} to {:?}", x.layout(), x.dtype(), weight.dims(), y.dims());
    }
    let as_it_lies = matches!(by, By::AsItLies(_));
    let wide = y.dtype() == DType::F32;
    let (added, activated) = (behind == Behind::Added, behind == Behind::Activated);
    let biased = bias.is_some();
    let shape = Shape { rows, out, depth, stride: *apart, as_it_lies, wide, added, biased, activated };
    let (x_at, weight_at, y_at) = (address(x)?, numbers(weight, DType::BF16)?, numbers(y, y.dtype())?);
    let bias_at = numbers_or_null(bias, y.dtype())?;
    let stream = gpu(x)?.cuda_stream();
    crate::measure::count::queued(1, (rows, out, depth));
    let mut handles = HANDLES.lock().unwrap_or_else(PoisonError::into_inner);
    let place = x.device().location();
    let at = match handles.iter().position(|(of, _)| *of == place) {
        Some(at) => at,
        None => {
            handles.push((place, Handle::new(x.device())?));
            handles.len() - 1
        }
    };
    let known = &mut handles[at].1;
    let (handle, workspace) = (known.handle, address(&known.workspace)?);
    let way = known.way(shape)?;
    let (alpha, beta) = (1f32, if added { 1f32 } else { 0f32 });
    // SAFETY: the operands lie as the layouts say, which was checked above, and live until they were read: memory that is freed
    // after this call is freed after it in the stream. One stream uses the work memory.
    unsafe {
        if bias.is_some() {
            set(way.operation, sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias_at)?;
        }
        result::matmul(
            handle,
            way.operation,
            (&raw const alpha).cast(),
            (&raw const beta).cast(),
            weight_at as *const c_void,
            way.weight,
            x_at as *const c_void,
            way.x,
            y_at as *const c_void,
            way.y,
            y_at as *mut c_void,
            way.y,
            &raw const way.algorithm,
            workspace as *mut c_void,
            WORKSPACE,
            stream.cu_stream().cast(),
        )
        .told()
    }
}

/// `x by + bias` in bf16 or f32; the bias is of the result's type.
///
/// # Shapes
/// `x [n, in]` in bf16 -> `[n, out]`
pub(super) fn multiply(x: &Tensor, by: By, bias: Option<&Tensor>, dtype: DType) -> Result<Tensor> {
    let (_, _, out) = by.sizes()?;
    // SAFETY: the product writes every number, or there is none.
    let y = unsafe { Tensor::empty((x.dim(0)?, out), dtype, x.device())? };
    if y.elem_count() > 0 {
        run(x, by, bias, &y, Behind::Nothing)?;
    }
    Ok(y)
}

/// `sum ← sum + x by + bias`, in place.
///
/// # Shapes
/// `sum [n, out]` and `bias [out]` in f32, `x [n, in]` in bf16
pub(super) fn add(sum: &Tensor, x: &Tensor, by: By, bias: Option<&Tensor>) -> Result<()> {
    if sum.elem_count() == 0 { Ok(()) } else { run(x, by, bias, sum, Behind::Added) }
}

/// `gelu(x by + bias)` in the tanh form, in bf16.
///
/// # Shapes
/// `x [n, in]` and `bias [out]` in bf16 -> `[n, out]`
pub(super) fn activated(x: &Tensor, by: By, bias: &Tensor) -> Result<Tensor> {
    let (_, _, out) = by.sizes()?;
    // SAFETY: the product writes every number.
    let y = unsafe { Tensor::empty((x.dim(0)?, out), DType::BF16, x.device())? };
    run(x, by, Some(bias), &y, Behind::Activated)?;
    Ok(y)
}
