//! Pictures of fixed prompts, drawn while a model is trained (`train.preview`): where they lie in a training folder.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::layout::RunLayout;
use crate::files;

/// What is drawn at every checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PreviewPlan {
    /// The texts.
    pub prompts: Vec<String>,
    /// The scales of classifier-free guidance.
    pub guidances: Vec<f64>,
    /// Denoising steps of a picture.
    pub steps: usize,
    /// Pictures of each prompt under each guidance.
    pub images: usize,
    /// The seed of all draws.
    pub seed: u64,
}

/// The pictures of a training.
#[derive(Debug, Clone)]
pub struct PreviewFolder(PathBuf);

impl PreviewFolder {
    /// The pictures of an iteration's training.
    pub fn of(layout: &RunLayout) -> Self {
        Self(layout.training().join("preview"))
    }

    /// The file of the plan.
    pub fn plan_file(&self) -> PathBuf {
        self.0.join("plan.json")
    }

    /// What the pictures were drawn by; none where there are none.
    ///
    /// # Errors
    /// Names the file that cannot be read.
    pub fn plan(&self) -> Result<Option<PreviewPlan>> {
        let path = self.plan_file();
        let text = files::if_there(&path, |path| std::fs::read(path))?;
        let parse = |text: Vec<u8>| serde_json::from_slice(&text).with_context(|| path.display().to_string());
        text.map(parse).transpose()
    }

    /// The folder of the pictures after a step; 0 is before training.
    pub fn step(&self, step: usize) -> PathBuf {
        self.0.join(format!("step-{step:06}"))
    }

    /// The steps after which all pictures were drawn, in order.
    pub fn steps(&self) -> Vec<usize> {
        let number = |name: &str| name.strip_prefix("step-")?.parse().ok();
        let entries = std::fs::read_dir(&self.0).into_iter().flatten().filter_map(Result::ok);
        let mut steps: Vec<usize> = entries.filter_map(|entry| number(&entry.file_name().to_string_lossy())).collect();
        steps.sort_unstable();
        steps
    }
}

/// A picture in the folder of a step: by the numbers of its prompt, its guidance and of itself.
pub fn picture(folder: &Path, prompt: usize, guidance: usize, number: usize) -> PathBuf {
    folder.join(format!("{prompt:02}-{guidance}-{number}.png"))
}
