//! Cases of any size: logits and images that PyTorch computed from the same weights (`benches/full_size.py` records
//! them), beside `showo/` and `vq/` in the published layout. The two models are loaded one after the other.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use hermesflow_models::showo::sequence::Packed;
use hermesflow_models::showo::{Phi, load_magvit, read_configs};
use hermesflow_nn::weights::Weights;

use crate::check::{Report, ids};
use crate::{Error, Result};

/// The file of the recorded numbers.
pub(crate) const FILE: &str = "logits.safetensors";
/// The largest difference between two f32 implementations of a billion parameters: of logits, and of pixels.
const LOGITS: f64 = 2e-3;
const PICTURES: f64 = 1e-3;

/// Replays one folder.
///
/// # Errors
/// If a file is missing, broken or contradicts another.
pub fn replay(folder: &Path, device: &Device, report: &mut Report) -> Result<()> {
    let file = folder.join(FILE);
    let recorded = candle_core::safetensors::load(&file, &Device::Cpu).map_err(|e| Error::file(&file, e))?;
    let get = |name: &str| recorded.get(name).ok_or_else(|| Error::file(&file, format!("has no {name}")));

    let mut sizes: Vec<&str> =
        recorded.keys().filter_map(|name| name.strip_prefix("vq.")?.strip_suffix(".image")).collect();
    sizes.sort_unstable();
    if !sizes.is_empty() {
        let vq = load_magvit(&folder.join("vq"), device)?;
        for size in sizes {
            let encoded = vq.encode(&get(&format!("vq.{size}.image"))?.to_device(device)?)?;
            let wanted = get(&format!("vq.{size}.encoder_out"))?;
            report.close(format!("vq encoder, {size}²"), &encoded, wanted, PICTURES)?;
            let features = vq.features(&vq.quantize(wanted)?)?;
            report.close(
                format!("vq decoder, {size}²"),
                &vq.decode(&features)?,
                get(&format!("vq.{size}.decoded"))?,
                PICTURES,
            )?;
        }
    }

    let (config, phi_config) = read_configs(&folder.join("showo"))?;
    let weights = Weights::load(&folder.join("showo"), DType::F32, device)?;
    let phi = Phi::new(&weights, &config, &phi_config)?;
    let (pad, segment) = (config.llm_vocab_size as u32, config.num_vq_tokens + 2);
    for kind in ["t2i", "mmu"] {
        let row = ids(get(&format!("{kind}.ids"))?, kind)?.concat();
        let mut packed = Packed::default();
        let row = match kind {
            // The original pads texts on the left; the image follows.
            "t2i" => &row[row.iter().take_while(|id| **id == pad).count()..],
            _ => &row[..],
        };
        let rest = row.len().checked_sub(segment).ok_or_else(|| Error::Case(format!("{kind}.ids has no image")))?;
        let first = match kind {
            "t2i" => {
                let text = packed.push(&row[..rest], 0, vec![], true);
                packed.push(&row[rest..], rest, vec![text], false).start
            }
            _ => {
                let block = packed.push(&row[..segment + 1], 0, vec![], false);
                packed.push(&row[segment + 1..], segment + 1, vec![block], true);
                0
            }
        };
        let chosen = ids(get(&format!("{kind}.rows"))?, kind)?.concat();
        let chosen: Vec<u32> = chosen.into_iter().map(|at| at + first as u32).collect();
        let hidden = phi.forward(phi.embed(&packed.ids)?, &packed.positions, &packed.segments(), None)?;
        let hidden = hidden.index_select(&Tensor::new(chosen, device)?, 0)?;
        report.close(format!("{kind} logits"), &phi.logits(&hidden, None)?, get(&format!("{kind}.logits"))?, LOGITS)?;
    }
    Ok(())
}
