//! Nodes of a graph whose values and gradients are computed without a graph, on any device.
//!
//! candle differentiates operator by operator and keeps every intermediate result. Where the backward pass of a whole is known,
//! the values are computed from tensors without a graph ([`candle_core::Tensor::detach`]) and put into the graph together with
//! that backward pass.

use std::sync::{Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Storage, Tensor, bail};

/// `values`, which were computed from `x`, as a node behind `x`; `backward` gives the gradient of `x` from that of the values. If
/// `x` has no graph the values are returned as they are, and `backward` is dropped.
pub(crate) fn node<F>(name: &'static str, x: &Tensor, values: Tensor, backward: F) -> Result<Tensor>
where
    F: Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
{
    if x.track_op() { x.apply_op1(Node { name, values: Values::new(values)?, backward }) } else { Ok(values) }
}

/// The forward and the backward pass of a part of a model, on tensors without a graph.
pub(crate) trait Passes: Send + Sync + 'static {
    /// What the backward pass needs besides the input.
    type Saved: Send + 'static;

    /// Computes what the backward pass needs, without the values.
    fn inner(&self, x: &Tensor) -> Result<Self::Saved>;

    /// Computes the values, and what the backward pass needs.
    fn forward(&self, x: &Tensor) -> Result<(Tensor, Self::Saved)>;

    /// The gradient of the input from that of the values.
    fn backward(&self, x: &Tensor, saved: Self::Saved, grad: &Tensor) -> Result<Tensor>;
}

/// The values that `passes` compute from `x`, as one node of its graph. With `recompute` only the input is kept for the backward
/// pass, which computes the rest again.
pub(crate) fn node_of<P: Passes>(name: &'static str, x: &Tensor, passes: P, recompute: bool) -> Result<Tensor> {
    let given = x.detach().contiguous()?;
    let (values, saved) = passes.forward(&given)?;
    let saved = Mutex::new((x.track_op() && !recompute).then_some(saved));
    node(name, x, values, move |grad| {
        let kept = saved.lock().unwrap_or_else(PoisonError::into_inner).take();
        let saved = match kept {
            Some(saved) => saved,
            None if recompute => passes.inner(&given)?,
            None => bail!("{name}: the backward pass ran twice"),
        };
        passes.backward(&given, saved, &grad.contiguous()?)
    })
}

/// [`node`] behind three tensors, each of which may be part of the graph.
pub(crate) fn node3<F>(name: &'static str, args: [&Tensor; 3], values: Tensor, backward: F) -> Result<Tensor>
where
    F: Fn(&Tensor) -> Result<[Option<Tensor>; 3]> + Send + Sync + 'static,
{
    let [x, y, z] = args;
    if args.iter().any(|tensor| tensor.track_op()) {
        x.apply_op3(y, z, Node { name, values: Values::new(values)?, backward })
    } else {
        Ok(values)
    }
}

/// The operator that candle puts into the graph.
struct Node<F> {
    name: &'static str,
    values: Values,
    backward: F,
}

/// Values on their way into the graph, which takes a copy of them once.
struct Values(Mutex<Option<Tensor>>);

impl Values {
    fn new(values: Tensor) -> Result<Self> {
        // candle reads the result of an operator from the first element of its storage on.
        let whole = values.is_contiguous() && values.layout().start_offset() == 0;
        Ok(Self(Mutex::new(Some(if whole { values } else { values.force_contiguous()? }))))
    }

    fn take<S>(&self, storage: impl FnOnce(&Storage, &Layout) -> Result<S>) -> Result<(S, Shape)> {
        let Some(values) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            bail!("graph node used twice");
        };
        let (store, layout) = values.storage_and_layout();
        Ok((storage(&store, layout)?, layout.shape().clone()))
    }

    fn cpu(&self) -> Result<(CpuStorage, Shape)> {
        self.take(|storage, layout| crate::storage::cpu(storage)?.try_clone(layout))
    }

    fn cuda(&self) -> Result<(CudaStorage, Shape)> {
        self.take(|storage, layout| match storage {
            Storage::Cuda(storage) => storage.try_clone(layout),
            _ => bail!("expected a tensor on the GPU"),
        })
    }
}

impl<F: Fn(&Tensor) -> Result<Tensor>> CustomOp1 for Node<F> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.values.cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.values.cuda()
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        (self.backward)(grad).map(Some)
    }
}

impl<F: Fn(&Tensor) -> Result<[Option<Tensor>; 3]>> CustomOp3 for Node<F> {
    fn name(&self) -> &'static str {
        self.name
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
        self.values.cpu()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.values.cuda()
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [x, y, z] = (self.backward)(grad)?;
        Ok((x, y, z))
    }
}
