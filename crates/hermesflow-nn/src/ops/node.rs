//! A step of a graph whose values and gradients are computed by tensors without one, on any device.
//!
//! candle differentiates what its own operators did, and keeps all that lies between them. Where the backward pass is
//! known, the values are computed apart ([`candle_core::Tensor::detach`]) and put into the graph with it.

use std::sync::{Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Storage, Tensor, bail};

/// `values`, which follow from `x`; `backward` gives the gradient of `x` from that of the values. Nothing is kept where
/// `x` has no graph.
pub(crate) fn node<F>(name: &'static str, x: &Tensor, values: Tensor, backward: F) -> Result<Tensor>
where
    F: Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
{
    if x.track_op() { x.apply_op1(Node { name, values: Values::new(values)?, backward }) } else { Ok(values) }
}

/// The passes of a part of a model, by tensors without a graph.
pub(crate) trait Passes: Send + Sync + 'static {
    /// What the backward pass needs beside the input.
    type Saved: Send + 'static;

    /// That alone.
    fn inner(&self, x: &Tensor) -> Result<Self::Saved>;

    /// The values, and what the backward pass needs.
    fn forward(&self, x: &Tensor) -> Result<(Tensor, Self::Saved)>;

    /// The gradient of the input from that of the values.
    fn backward(&self, x: &Tensor, saved: Self::Saved, grad: &Tensor) -> Result<Tensor>;
}

/// What `passes` make of `x`, as one step of its graph. With `checkpoint` only the input is kept for the backward pass, which
/// computes the rest again.
pub(crate) fn node_of<P: Passes>(name: &'static str, x: &Tensor, passes: P, checkpoint: bool) -> Result<Tensor> {
    let given = x.detach().contiguous()?;
    let (values, saved) = passes.forward(&given)?;
    let saved = Mutex::new((x.track_op() && !checkpoint).then_some(saved));
    node(name, x, values, move |grad| {
        let kept = saved.lock().unwrap_or_else(PoisonError::into_inner).take();
        let saved = match kept {
            Some(saved) => saved,
            None if checkpoint => passes.inner(&given)?,
            None => bail!("{name}: backward twice"),
        };
        passes.backward(&given, saved, &grad.contiguous()?)
    })
}

/// As [`node`], of three tensors, each of which may be part of the graph.
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

struct Node<F> {
    name: &'static str,
    values: Values,
    backward: F,
}

/// Values on their way into the graph, which keeps a copy of its own.
struct Values(Mutex<Option<Tensor>>);

impl Values {
    fn new(values: Tensor) -> Result<Self> {
        // From the first element of their storage on, as candle reads what an operator returns.
        let whole = values.is_contiguous() && values.layout().start_offset() == 0;
        Ok(Self(Mutex::new(Some(if whole { values } else { values.force_contiguous()? }))))
    }

    fn take<S>(&self, storage: impl FnOnce(&Storage, &Layout) -> Result<S>) -> Result<(S, Shape)> {
        let Some(values) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            bail!("a node stands in a graph once");
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
