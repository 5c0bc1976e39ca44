//! Model cases of Janus-Pro: reading, replying, drawing codes, the image tokenizer, Pair-DPO and its training.

mod generation;
mod pairs;
mod reading;
mod training;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use hermesflow_models::janus::Janus;
use serde::Deserialize;

use crate::case::{Optimizer, ScheduleNumbers};
use crate::check::{Report, largest, values};
use crate::{Error, Result};

/// `case.json`.
#[derive(Debug, Deserialize)]
struct Case {
    policy: String,
    reference: String,
    special_ids: BTreeMap<String, u32>,
    num_image_tokens: usize,
    image_files: Vec<String>,
    tokenizer: Vec<TextCase>,
    system_prompt: String,
    understanding: Vec<Understanding>,
    max_new_tokens: usize,
    generation: Vec<Generation>,
    pairs: Vec<PairCase>,
    beta: f64,
    trained: Vec<String>,
    optimizer: Optimizer,
    schedule: ScheduleNumbers,
    steps: usize,
}

#[derive(Debug, Deserialize)]
struct TextCase {
    text: String,
    ids: Vec<u32>,
    decoded: String,
}

#[derive(Debug, Deserialize)]
struct Understanding {
    image: usize,
    question: String,
    prompt: String,
    replies: Vec<String>,
    greedy_text: String,
}

#[derive(Debug, Deserialize)]
struct Generation {
    prompt: String,
    formatted: String,
    guidance: f64,
    temperature: f64,
    images: usize,
}

#[derive(Debug, Deserialize)]
struct PairCase {
    image: usize,
    question: String,
    caption_win: String,
    caption_lose: String,
    prompt: String,
}

/// A case with its recorded tensors, which stay on the host, and its model.
struct Loaded {
    folder: PathBuf,
    case: Case,
    trace: HashMap<String, Tensor>,
    /// The names of recorded tensors that were asked for.
    asked: RefCell<BTreeSet<String>>,
    model: Janus,
    device: Device,
    /// The features of every recorded picture, `[pictures, patches, width]`.
    features: Tensor,
}

impl Loaded {
    fn new(folder: &Path, device: &Device, dtype: DType) -> Result<Self> {
        let case: Case = crate::others::read(&folder.join("case.json"))?;
        let file = folder.join("trace.safetensors");
        let trace = candle_core::safetensors::load(&file, &Device::Cpu).map_err(|e| Error::file(&file, e))?;
        let model = Janus::load(&folder.join(&case.policy), dtype, device)?;
        let pixels = trace.get("pre.pixels").ok_or_else(|| Error::file(&file, "has no pre.pixels"))?;
        let features = model.tower().forward(&pixels.to_device(device)?)?;
        let pictures = case.understanding.iter().map(|u| u.image).chain(case.pairs.iter().map(|pair| pair.image));
        if let Some(image) = pictures.into_iter().find(|image| *image >= features.dims()[0]) {
            return Err(Error::Case(format!("there is no picture {image}")));
        }
        let (folder, asked, device) = (folder.to_path_buf(), RefCell::default(), device.clone());
        Ok(Self { folder, case, trace, asked, model, device, features })
    }

    fn find(&self, name: &str) -> Option<&Tensor> {
        self.asked.borrow_mut().insert(name.to_string());
        self.trace.get(name)
    }

    fn get(&self, name: &str) -> Result<&Tensor> {
        let missing = || Error::file(&self.folder.join("trace.safetensors"), format!("has no {name}"));
        self.find(name).ok_or_else(missing)
    }

    /// The recorded tensors whose names begin with `prefix`, by the rest of their names.
    fn below<'a>(&'a self, prefix: &'a str) -> BTreeMap<&'a str, &'a Tensor> {
        let below = self.trace.iter().filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?, tensor)));
        let below: BTreeMap<_, _> = below.collect();
        self.asked.borrow_mut().extend(below.keys().map(|name| format!("{prefix}{name}")));
        below
    }

    /// Recorded ids, all in one row.
    fn ids(&self, name: &str) -> Result<Vec<u32>> {
        Ok(crate::check::ids(self.get(name)?, name)?.concat())
    }

    /// Recorded ids in rows.
    fn rows(&self, name: &str) -> Result<Vec<Vec<u32>>> {
        crate::check::ids(self.get(name)?, name)
    }

    /// The largest error that a tensor may have: `tolerance`, or with matrices in 16 bits a share of the largest number.
    fn tolerance(&self, recorded: &Tensor, tolerance: f64) -> Result<f64> {
        if self.model.dtype() == DType::F32 {
            return Ok(tolerance);
        }
        Ok(NARROW * largest(values(recorded)?.into_iter().map(f64::from)))
    }

    /// Whether the model computes in f32.
    fn is_wide(&self) -> bool {
        self.model.dtype() == DType::F32
    }
}

/// The largest error with matrices in 16 bits, as a share of the largest recorded number.
const NARROW: f64 = 6e-2;

/// Replays one model case on a device. With matrices in 16 bits what is continuous is replayed, and what follows from a
/// choice between two nearly equal numbers is left out.
///
/// # Errors
/// When files are missing, broken or contradictory.
pub(crate) fn replay(folder: &Path, device: &Device, dtype: DType, report: &mut Report) -> Result<()> {
    let loaded = Loaded::new(folder, device, dtype)?;
    reading::texts(&loaded, report)?;
    reading::pictures(&loaded, report)?;
    reading::tower(&loaded, report)?;
    reading::replies(&loaded, report)?;
    generation::sequences(&loaded, report)?;
    generation::steps(&loaded, report)?;
    generation::scores(&loaded, report)?;
    if !loaded.is_wide() {
        report.skip("greedy replies, drawn codes, training", "in 16 bits, near ties fall either way");
        return Ok(());
    }
    reading::greedy(&loaded, report)?;
    generation::decoded(&loaded, report)?;
    generation::image_tokenizer(&loaded, report)?;
    pairs::replay(&loaded, report)?;
    training::replay(&loaded, report)?;
    let asked = loaded.asked.borrow();
    let left: Vec<&str> = loaded.trace.keys().filter(|name| !asked.contains(*name)).map(String::as_str).collect();
    if !left.is_empty() {
        report.fail("recorded numbers that are compared with nothing", left.join(", "));
    }
    Ok(())
}
