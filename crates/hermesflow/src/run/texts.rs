//! Prompts that are too long for the model: their ends are left out, as the original does, and the log says so.

use anyhow::Result;
use hermesflow_models::UnifiedModel;
use hermesflow_records::RecordId;

use super::context::RunContext;
use crate::progress::Progress;

/// Counts the records whose captions are too long to make images from as a whole.
#[derive(Debug)]
pub struct Cut<'a> {
    stage: &'static str,
    run: &'a RunContext,
    count: usize,
}

impl<'a> Cut<'a> {
    /// No record counted yet.
    pub fn new(stage: &'static str, run: &'a RunContext) -> Self {
        Self { stage, run, count: 0 }
    }

    /// Counts a record if its caption is cut; the first ones are named in the log.
    ///
    /// # Errors
    /// When the text cannot be tokenized.
    pub fn look(&mut self, model: &impl UnifiedModel, id: &RecordId, caption: &str) -> Result<()> {
        if model.cuts(caption)? {
            let said = format_args!("record {id}: the caption is too long for the model; its end is left out");
            self.run.progress.log_few(self.stage, self.count, said);
            self.count += 1;
        }
        Ok(())
    }

    /// Logs how many captions of `of` records were too long, `counted` of them by this process and others.
    pub fn finish(self, of: usize, counted: impl FnOnce(usize) -> Result<usize>) -> Result<()> {
        let (stage, count) = (self.stage, counted(self.count)?);
        if count > 0 {
            self.run
                .progress
                .log(format!("{stage}: {count} of {of} captions are too long for the model; their ends are left out"));
        }
        Ok(())
    }
}

/// Logs that the end of a prompt is left out, if it is.
///
/// # Errors
/// When the text cannot be tokenized.
pub fn note_cut(model: &impl UnifiedModel, prompt: &str, progress: &Progress) -> Result<()> {
    if model.cuts(prompt)? {
        let beginning: String = prompt.chars().take(40).collect();
        progress.log(format!("the prompt {beginning:?}… is too long for the model; its end is left out"));
    }
    Ok(())
}
