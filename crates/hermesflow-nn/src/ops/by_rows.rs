//! Softmax and LayerNorm of rows without a graph. On a GPU each is one of candle's own kernels, where a composition would read and
//! write everything about six times.
//!
//! candle's LayerNorm computes the variance as `mean(x²) - mean(x)²`, which is less exact than the other forms in this crate
//! where a row's mean is many times its deviation.

use candle_core::{D, Result, Tensor};

/// Softmax over the last dimension.
///
/// # Shapes
/// `x [.., w]` in f32 -> `[.., w]`
pub(crate) fn softmax(x: &Tensor) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if gpu::takes(&[x]) {
        return x.contiguous()?.apply_op1_no_bwd(&gpu::Softmax);
    }
    let weights = x.broadcast_sub(&x.max_keepdim(D::Minus1)?)?.exp()?;
    weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)
}

/// LayerNorm over the last dimension by one kernel; `None` where there is none: on the CPU, for types other than f32, and for
/// tensors in a graph.
///
/// # Shapes
/// `x [.., d]`, `weight [d]`, `bias [d]` -> `[.., d]`
#[cfg(feature = "cuda")]
pub(crate) fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Option<Result<Tensor>> {
    let run = || {
        let (weight, bias) = (weight.contiguous()?, bias.contiguous()?);
        x.contiguous()?.apply_op3_no_bwd(&weight, &bias, &gpu::LayerNorm { eps: eps as f32 })
    };
    gpu::takes(&[x, weight, bias]).then(run)
}

/// A build without CUDA has no kernel for it.
#[cfg(not(feature = "cuda"))]
pub(crate) fn layer_norm(_: &Tensor, _: &Tensor, _: &Tensor, _: f64) -> Option<Result<Tensor>> {
    None
}

#[cfg(feature = "cuda")]
mod gpu {
    use candle_core::cuda_backend::WrapErr;
    use candle_core::cuda_backend::cudarc::driver::{LaunchConfig, PushKernelArg};
    use candle_core::cuda_backend::kernels;
    use candle_core::{CpuStorage, CudaStorage, CustomOp1, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};

    const WARP: usize = 32;

    /// Whether the kernels take these tensors; they count elements in 32 bits.
    pub(crate) fn takes(tensors: &[&Tensor]) -> bool {
        tensors.iter().all(|tensor| {
            let count = tensor.elem_count();
            let fits = count > 0 && count < i32::MAX as usize && tensor.rank() > 0;
            tensor.device().is_cuda() && tensor.dtype() == DType::F32 && !tensor.track_op() && fits
        })
    }

    /// The number of rows, and their width.
    fn rows(shape: &Shape) -> (usize, usize) {
        let width = shape.dims().last().copied().unwrap_or(1);
        (shape.elem_count() / width, width)
    }

    fn launch(rows: usize, block: (u32, u32, u32)) -> LaunchConfig {
        LaunchConfig { grid_dim: (rows as u32, 1, 1), block_dim: block, shared_mem_bytes: 0 }
    }

    pub(crate) struct Softmax;

    impl CustomOp1 for Softmax {
        fn name(&self) -> &'static str {
            "softmax of rows"
        }

        fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
            bail!("softmax of rows: on a GPU only")
        }

        fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
            let (device, (rows, width)) = (&x.device, rows(layout.shape()));
            let from = x.as_cuda_slice::<f32>()?.slice(layout.start_offset()..);
            // SAFETY: the kernel writes every element before it reads it.
            let to = unsafe { device.alloc::<f32>(rows * width)? };
            let kernel = device.get_or_load_func("softmax_f32", &kernels::REDUCE)?;
            let width = width as i32;
            let mut call = kernel.builder();
            call.arg(&from).arg(&to).arg(&width);
            // SAFETY: the arguments are those of the kernel; each block has one warp, which reads and writes one row.
            unsafe { call.launch(launch(rows, (1, WARP as u32, 1))) }.w()?;
            Ok((CudaStorage::wrap_cuda_slice(to, device.clone()), layout.shape().clone()))
        }
    }

    pub(crate) struct LayerNorm {
        pub(crate) eps: f32,
    }

    impl CustomOp3 for LayerNorm {
        fn name(&self) -> &'static str {
            "LayerNorm of rows"
        }

        fn cpu_fwd(
            &self,
            _: &CpuStorage,
            _: &Layout,
            _: &CpuStorage,
            _: &Layout,
            _: &CpuStorage,
            _: &Layout,
        ) -> Result<(CpuStorage, Shape)> {
            bail!("LayerNorm of rows: on a GPU only")
        }

        fn cuda_fwd(
            &self,
            x: &CudaStorage,
            layout: &Layout,
            weight: &CudaStorage,
            weight_layout: &Layout,
            bias: &CudaStorage,
            bias_layout: &Layout,
        ) -> Result<(CudaStorage, Shape)> {
            let (device, (rows, width)) = (&x.device, rows(layout.shape()));
            let from = x.as_cuda_slice::<f32>()?.slice(layout.start_offset()..);
            let weight = weight.as_cuda_slice::<f32>()?.slice(weight_layout.start_offset()..);
            let bias = bias.as_cuda_slice::<f32>()?.slice(bias_layout.start_offset()..);
            // SAFETY: the kernel writes every element and reads none.
            let to = unsafe { device.alloc::<f32>(rows * width)? };
            let kernel = device.get_or_load_func("layernorm_f32", &kernels::REDUCE)?;
            // Either one warp or all 32 of a block: for any number between the kernel adds up memory that no warp has written.
            let threads = if width < 1024 { WARP } else { 1024 };
            let (columns, block) = (width as i32, threads as i32);
            let mut call = kernel.builder();
            call.arg(&from).arg(&to).arg(&weight).arg(&bias).arg(&columns).arg(&block).arg(&self.eps);
            // SAFETY: the arguments are those of the kernel; each block reads and writes one row.
            unsafe { call.launch(launch(rows, (threads as u32, 1, 1))) }.w()?;
            Ok((CudaStorage::wrap_cuda_slice(to, device.clone()), layout.shape().clone()))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::{close, normal};

    #[test]
    fn softmax_sums_to_one_and_stands_what_is_hidden() {
        let x = normal(&[3, 5, 7]);
        let weights = softmax(&x).unwrap();
        close(&weights.sum(D::Minus1).unwrap(), &x.ones_like().unwrap().mean(D::Minus1).unwrap(), 1e-6, "sums");
        let hidden = Tensor::new(&[[0.0, f32::NEG_INFINITY, 0.0]], x.device()).unwrap();
        assert_eq!(softmax(&hidden).unwrap().to_vec2::<f32>().unwrap(), [[0.5, 0.0, 0.5]]);
    }
}
