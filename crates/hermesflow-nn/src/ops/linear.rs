//! The affine map `y = x Wᵀ + b`. Which kernel computes it is decided in [`crate::matmul`].

use candle_core::{CpuStorage, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Tensor, bail};

use super::gelu::{gelu_tanh, tanh_kernel};
use crate::device::uses_kernels;
use crate::matmul::packed::After;
use crate::matmul::{Kernel, f32_results, f32_weight, half_weight, kernel};
use crate::measure::count;
use crate::measure::profile::{Part, part};
use crate::storage::{elements, host, kernels_take};

/// `x Wᵀ + b`. A frozen weight may be in 16 bits under an `x` in f32; the result then is in f32.
///
/// # Shapes
/// `x [.., in]`, `weight [out, in]`, `bias [out]` -> `[.., out]`
///
/// # Errors
/// When shapes do not fit. The backward pass fails for a weight in 16 bits on the CPU.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (out, input) = weight.dims2()?;
    let mut dims = x.dims().to_vec();
    match dims.last_mut() {
        Some(last) if *last == input => *last = out,
        _ => bail!("linear: x {:?} does not end in the {input} of weight {:?}", x.dims(), weight.dims()),
    }
    if let Some(bias) = bias
        && bias.dims() != [out]
    {
        bail!("linear: bias {:?} does not fit weight {:?}", bias.dims(), weight.dims());
    }
    part(Part::Products, x.device(), || affine(&x.reshape(((), input))?, weight, bias)?.reshape(dims))
}

/// What follows an affine map.
#[derive(Debug, Clone, Copy)]
pub enum Then<'a> {
    /// Nothing.
    Nothing,
    /// [`crate::ops::gelu_tanh`] of every result.
    GeluTanh,
    /// The result is added to a tensor of its shape.
    AddTo(&'a Tensor),
}

impl Then<'_> {
    /// What follows, as an operator of its own.
    fn apply(self, y: Tensor) -> Result<Tensor> {
        match self {
            Self::Nothing => Ok(y),
            Self::GeluTanh => gelu_tanh(&y),
            Self::AddTo(sum) => sum + y,
        }
    }
}

/// [`linear`] with a bias, and what follows it: in the same pass over the results where a kernel has one, with the same numbers.
///
/// # Shapes
/// `x [n, in]`, `weight [out, in]`, `bias [out]` -> `[n, out]`
///
/// # Errors
/// As [`linear`]'s.
fn linear_then(x: &Tensor, weight: &Tensor, bias: &Tensor, then: Then<'_>) -> Result<Tensor> {
    let fits = matches!((x.dims(), weight.dims(), bias.dims()),
        (&[_, input], &[out, depth], &[bias]) if input == depth && out == bias);
    let whole = x.is_contiguous() && weight.is_contiguous() && bias.is_contiguous() && kernels_take(&[x, bias]);
    if fits && whole && !x.track_op() && weight.dtype() == DType::BF16 {
        let by_rows = (x.dim(0)?, weight.dim(0)?);
        match (kernel(by_rows.0, weight), then) {
            (Kernel::Packed { engine }, Then::GeluTanh) => {
                return half_weight::packed_linear(engine, x, weight, bias, After::Map(tanh_kernel()));
            }
            (Kernel::Packed { engine }, Then::AddTo(sum))
                if sum.dims() == [by_rows.0, by_rows.1]
                    && sum.is_contiguous()
                    && !sum.track_op()
                    && kernels_take(&[sum]) =>
            {
                let (store, layout) = sum.storage_and_layout();
                return half_weight::packed_linear(engine, x, weight, bias, After::Add(host(&store, layout)?));
            }
            _ => {}
        }
    }
    then.apply(linear(x, weight, Some(bias))?)
}

/// [`linear`] of `x [n, in]`.
fn affine(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    if half_weight::is_half(weight) && x.dtype() == DType::F32 {
        let bias = bias.map(Tensor::contiguous).transpose()?;
        return half_weight::linear(&x.contiguous()?, &weight.contiguous()?, bias.as_ref());
    }
    match bias {
        Some(bias) if kernels_take(&[x, weight, bias]) => {
            x.contiguous()?.apply_op3(&weight.contiguous()?, &bias.contiguous()?, Linear)
        }
        None if kernels_take(&[x, weight]) => x.contiguous()?.apply_op2(&weight.contiguous()?, Linear),
        _ => any_device(x, weight, bias),
    }
}

/// Several [`linear`]s `(x, weight, bias)`, each with what follows it. Where none is part of a graph they are computed together if
/// that is faster: products of few rows are so short that waking the threads for each would take as long.
///
/// # Shapes
/// Each as [`linear`]'s
///
/// # Errors
/// When shapes do not fit.
pub fn linear_all(products: &[((&Tensor, &Tensor, &Tensor), Then<'_>)]) -> Result<Vec<Tensor>> {
    let Some(((first, _, _), _)) = products.first() else { return Ok(Vec::new()) };
    part(Part::Products, first.device(), || all(products))
}

fn all(all: &[((&Tensor, &Tensor, &Tensor), Then<'_>)]) -> Result<Vec<Tensor>> {
    let products: Vec<(&Tensor, &Tensor, &Tensor)> = all.iter().map(|(product, _)| *product).collect();
    let products = products.as_slice();
    let follow = |results: Vec<Tensor>| results.into_iter().zip(all).map(|(y, (_, then))| then.apply(y)).collect();
    if products.iter().all(is_mixed) {
        return follow(any_device_all(products)?);
    }
    let together = |(x, weight, bias): &(&Tensor, &Tensor, &Tensor)| {
        let in_graph = x.track_op() || weight.track_op() || bias.track_op();
        let whole = x.is_contiguous() && weight.is_contiguous() && bias.is_contiguous();
        let shapes = matches!((x.dims(), weight.dims(), bias.dims()),
            (&[_, input], &[out, depth], &[bias]) if input == depth && out == bias);
        !in_graph && whole && shapes && kernels_take(&[x, bias]) && kernel(x.dims()[0], weight) == Kernel::Unpacked
    };
    let in_type = |dtype| products.iter().all(|(_, weight, _)| weight.dtype() == dtype);
    match products.iter().all(together) {
        true if in_type(DType::BF16) => follow(half_weight::linear_all(products)?),
        true if in_type(DType::F32) => follow(f32_weight::linear_all(products)?),
        _ => all.iter().map(|((x, weight, bias), then)| linear_then(x, weight, bias, *then)).collect(),
    }
}

/// Whether a frozen weight in 16 bits is under an input in f32, on a device that does not use the CPU's kernels.
fn is_mixed((x, weight, _): &(&Tensor, &Tensor, &Tensor)) -> bool {
    let half = matches!(weight.dtype(), DType::BF16 | DType::F16) && x.dtype() == DType::F32;
    half && x.rank() == 2 && !uses_kernels(x.device()) && !x.track_op() && !weight.track_op()
}

/// Several products that are each [`is_mixed`]. An `x` that is in several of them is rounded once.
fn any_device_all(products: &[(&Tensor, &Tensor, &Tensor)]) -> Result<Vec<Tensor>> {
    let mut rounded: Vec<(&Tensor, Tensor)> = Vec::new();
    let mut results = Vec::with_capacity(products.len());
    for &(x, weight, bias) in products {
        let known = rounded.iter().find(|(known, y)| known.id() == x.id() && y.dtype() == weight.dtype());
        let narrow = match known {
            Some((_, narrow)) => narrow.clone(),
            None => {
                rounded.push((x, x.to_dtype(weight.dtype())?));
                rounded[rounded.len() - 1].1.clone()
            }
        };
        results.push(f32_results::multiply(&narrow, &weight.t()?)?.broadcast_add(bias)?);
    }
    Ok(results)
}

/// [`affine`] by candle's operators.
fn any_device(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let in_graph = x.track_op() || weight.track_op();
    if !x.device().is_cpu() && (in_graph || weight.dtype() == x.dtype()) {
        count::queued(1, (x.dim(0)?, weight.dim(0)?, weight.dim(1)?));
    }
    let y = if weight.dtype() == x.dtype() {
        x.matmul(&weight.t()?)?
    } else if in_graph {
        x.to_dtype(weight.dtype())?.matmul(&weight.t()?)?.to_dtype(x.dtype())?
    } else {
        // A frozen weight in 16 bits: operands in 16 bits, sums and result in f32.
        f32_results::multiply(&x.to_dtype(weight.dtype())?, &weight.t()?)?.to_dtype(x.dtype())?
    };
    match bias {
        Some(bias) => y.broadcast_add(bias),
        None => Ok(y),
    }
}

/// The affine map of tensors in f32 on the CPU.
struct Linear;

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, w: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        let ((n, input), (out, _)) = (xl.shape().dims2()?, wl.shape().dims2()?);
        let y = f32_weight::forward(elements(x, xl)?, elements(w, wl)?, None, input);
        Ok((CpuStorage::F32(y), (n, out).into()))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        f32_weight::backward(x, w, &grad.contiguous()?)
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let ((n, input), (out, _)) = (xl.shape().dims2()?, wl.shape().dims2()?);
        let y = f32_weight::forward(elements(x, xl)?, elements(w, wl)?, Some(elements(b, bl)?), input);
        Ok((CpuStorage::F32(y), (n, out).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (dx, dw) = f32_weight::backward(x, w, &grad)?;
        let db = if b.track_op() {
            let (store, layout) = grad.storage_and_layout();
            let sums = f32_weight::bias_gradient(host(&store, layout)?, b.elem_count());
            Some(Tensor::from_vec(sums, b.elem_count(), b.device())?)
        } else {
            None
        };
        Ok((dx, dw, db))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::{agree, close, normal};

    #[test]
    fn agrees_with_plain_candle() {
        for (n, input, out) in [(1, 5, 3), (37, 19, 23), (130, 64, 96), (210, 7, 33), (200, 1024, 1024)] {
            let args = [normal(&[n, input]), normal(&[out, input]), normal(&[out])];
            agree(&args, |v| linear(&v[0], &v[1], Some(&v[2])), |v| any_device(&v[0], &v[1], Some(&v[2])));
            agree(&args[..2], |v| linear(&v[0], &v[1], None), |v| any_device(&v[0], &v[1], None));
        }
    }

    #[test]
    fn several_at_once_are_each_alone() {
        let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for dtype in [DType::F32, DType::BF16] {
            for (n, input, out) in [(10, 512, 600), (3, 16, 24), (97, 512, 512), (700, 64, 80)] {
                let (x, other) = (normal(&[n, input]), normal(&[n, out]));
                let (a, b) = (
                    normal(&[out, input]).to_dtype(dtype).unwrap(),
                    normal(&[out + 3, input]).to_dtype(dtype).unwrap(),
                );
                let (c, short, long) = (normal(&[5, out]).to_dtype(dtype).unwrap(), normal(&[out]), normal(&[out + 3]));
                let five = normal(&[5]);
                let products = [(&x, &a, &short), (&x, &b, &long), (&other, &c, &five)];
                let bare = linear_all(&products.map(|product| (product, Then::Nothing))).unwrap();
                for (together, (x, weight, bias)) in bare.iter().zip(products) {
                    close(together, &linear(x, weight, Some(bias)).unwrap(), 1e-5, "together");
                }
                let sum = normal(&[n, out]);
                let then = [Then::AddTo(&sum), Then::GeluTanh, Then::Nothing];
                let followed: Vec<_> = products.into_iter().zip(then).collect();
                let apart = then.into_iter().zip(&bare).map(|(then, y)| then.apply(y.clone()).unwrap());
                for (followed, apart) in linear_all(&followed).unwrap().iter().zip(apart) {
                    assert_eq!(bits(followed), bits(&apart), "{dtype:?} {n}: what follows has the same numbers");
                }
            }
        }
    }

    #[test]
    fn takes_leading_dimensions_and_strides() {
        let args = [normal(&[7, 3, 5]), normal(&[7, 4]), normal(&[4])];
        agree(
            &args,
            |v| linear(&v[0].transpose(0, 2)?, &v[1].t()?, Some(&v[2])),
            |v| {
                let x = v[0].transpose(0, 2)?.reshape((15, 7))?;
                any_device(&x, &v[1].t()?, Some(&v[2]))?.reshape((5, 3, 4))
            },
        );
    }

    #[test]
    fn leaves_frozen_weights_alone() {
        let x = candle_core::Var::from_tensor(&normal(&[4, 6])).unwrap();
        let (w, b) = (normal(&[3, 6]), normal(&[3]));
        let y = linear(&x, &w, Some(&b)).unwrap();
        let grads = y.sum_all().unwrap().backward().unwrap();
        assert!(grads.get(&x).is_some() && grads.get(&w).is_none() && grads.get(&b).is_none());
    }

    #[test]
    fn refuses_shapes_that_do_not_fit() {
        let (x, w) = (normal(&[4, 6]), normal(&[3, 5]));
        assert!(linear(&x, &w, None).is_err());
        assert!(linear(&normal(&[4, 5]), &w, Some(&normal(&[4]))).is_err());
    }
}
