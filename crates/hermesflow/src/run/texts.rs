//! Prompts that are too long for the model: they are cut, as the method has it, and said so.

use anyhow::Result;
use hermesflow_models::UnifiedModel;
use hermesflow_records::RecordId;

use crate::progress::Progress;

/// Records whose captions are cut where images are imagined from them.
#[derive(Debug)]
pub struct Cut<'a> {
    stage: &'static str,
    progress: &'a Progress,
    count: usize,
}

impl<'a> Cut<'a> {
    /// None yet.
    pub fn new(stage: &'static str, progress: &'a Progress) -> Self {
        Self { stage, progress, count: 0 }
    }

    /// Counts a record if its caption is cut; the first ones are named in the log.
    ///
    /// # Errors
    /// When the text cannot be tokenized.
    pub fn look(&mut self, model: &impl UnifiedModel, id: &RecordId, caption: &str) -> Result<()> {
        if model.cuts(caption)? {
            let said =
                format_args!("record {id}: the caption is longer than images are imagined from; its end is left out");
            self.progress.log_few(self.stage, self.count, said);
            self.count += 1;
        }
        Ok(())
    }

    /// Says how many there were.
    pub fn finish(self, of: usize) {
        if self.count > 0 {
            let Self { stage, count, .. } = self;
            self.progress.log(format!(
                "{stage}: the captions of {count} of {of} records are cut: they are too long to imagine from"
            ));
        }
    }
}

/// Says that a prompt is cut, if it is.
///
/// # Errors
/// When the text cannot be tokenized.
pub fn note_cut(model: &impl UnifiedModel, prompt: &str, progress: &Progress) -> Result<()> {
    if model.cuts(prompt)? {
        let beginning: String = prompt.chars().take(40).collect();
        progress.log(format!("the prompt {beginning:?}… is longer than images are imagined from; its end is left out"));
    }
    Ok(())
}
