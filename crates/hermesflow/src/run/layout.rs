//! Where the files of a run are, iteration by iteration.

use std::path::{Path, PathBuf};

use crate::config::RunConfig;

/// The paths of one iteration of a run.
///
/// From the second iteration on every name carries `_iter{n}` before its extension, or at the end of a
/// folder's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunLayout {
    data: PathBuf,
    output: PathBuf,
    iteration: usize,
    fresh: bool,
    allow_outside: bool,
}

impl RunLayout {
    /// The layout of an iteration, counted from 1.
    pub fn new(config: &RunConfig, iteration: usize) -> Self {
        Self {
            data: config.data.root.clone(),
            output: config.output.clone(),
            iteration: iteration.max(1),
            fresh: config.data.fresh,
            allow_outside: config.data.allow_outside,
        }
    }

    /// The iteration, from 1.
    pub fn iteration(&self) -> usize {
        self.iteration
    }

    /// The layout of the iteration before, if there is one.
    pub fn previous(&self) -> Option<Self> {
        (self.iteration > 1).then(|| Self { iteration: self.iteration - 1, ..self.clone() })
    }

    /// The data root: records, images, and everything that curation makes.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Whether records may name images outside the data root.
    pub fn allows_outside(&self) -> bool {
        self.allow_outside
    }

    /// The resolved configuration of the run.
    pub fn config(&self) -> PathBuf {
        self.output.join("config.yaml")
    }

    /// Images and captions to begin with; without `data.fresh` those of the first iteration.
    pub fn initial_data(&self) -> PathBuf {
        if self.fresh { self.file("initial_data.json") } else { self.data.join("initial_data.json") }
    }

    /// The captions of every record.
    pub fn captions(&self) -> PathBuf {
        self.file("understanding_caption_results.json")
    }

    /// The folder of the imagined images.
    pub fn images(&self) -> PathBuf {
        self.data.join(self.name("generated_images"))
    }

    /// Image `number` of a record.
    pub fn image(&self, id: &str, number: usize) -> PathBuf {
        self.images().join(id).join(format!("{number}.png"))
    }

    /// The questions of every record.
    pub fn questions(&self) -> PathBuf {
        self.file("vqa_data.json")
    }

    /// The accuracy of every image.
    pub fn answers(&self) -> PathBuf {
        self.file("generation_vqa_results.json")
    }

    /// What the model answered about every image, question by question.
    pub fn replies(&self) -> PathBuf {
        self.file("generation_vqa_replies.json")
    }

    /// The scores of everything that competed for the pairs, and what became of each record.
    pub fn pair_scores(&self) -> PathBuf {
        self.file("pair_dpo_scores.json")
    }

    /// The folder of what judges with weights said.
    pub fn scores(&self) -> PathBuf {
        self.data.join(".scores")
    }

    /// The folder of the codes of pictures.
    pub fn codes(&self) -> PathBuf {
        self.data.join(".codes")
    }

    /// The preference pairs.
    pub fn pairs(&self) -> PathBuf {
        self.file("pair_dpo_data.json")
    }

    /// The records as a supervised training reads them, in place of pairs.
    pub fn supervised(&self) -> PathBuf {
        self.file("supervised_data.json")
    }

    /// The training folder.
    pub fn training(&self) -> PathBuf {
        self.output.join(self.name("train"))
    }

    /// What the reference says of the pairs' captions, remembered beside what is trained against it.
    pub fn reference(&self) -> PathBuf {
        self.training().join("reference.jsonl")
    }

    /// The trained model, in the published layout.
    pub fn model(&self) -> PathBuf {
        self.training().join("model")
    }

    /// What decided a stage's results as a whole.
    pub fn stamp(&self, stage: &str) -> PathBuf {
        self.data.join(".settings").join(self.name(stage) + ".json")
    }

    /// What each of a stage's results was made from.
    pub fn ledger(&self, stage: &str) -> PathBuf {
        self.stamp(stage).with_extension("jsonl")
    }

    /// Held by whoever makes a stage's results, of whatever iteration.
    pub fn lock(&self, stage: &str) -> PathBuf {
        self.data.join(".settings").join(format!("{stage}.lock"))
    }

    /// Held by whoever trains, in whatever iteration.
    pub fn training_lock(&self) -> PathBuf {
        self.output.join(".hermesflow-lock")
    }

    /// What was noted of records that were drawn.
    pub fn scenes_note(&self) -> PathBuf {
        let drawn = if self.fresh { self.clone() } else { Self { iteration: 1, ..self.clone() } };
        drawn.stamp("scenes")
    }

    /// What decided the training, in its own folder: several trainings may follow one curation.
    pub fn training_origin(&self) -> PathBuf {
        self.training().join("origin.json")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.data.join(match name.rsplit_once('.') {
            Some((stem, extension)) => format!("{}.{extension}", self.name(stem)),
            None => self.name(name),
        })
    }

    fn name(&self, name: &str) -> String {
        if self.iteration == 1 { name.into() } else { format!("{name}_iter{}", self.iteration) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_iteration() {
        let config = RunConfig::default();
        let first = RunLayout::new(&config, 1);
        assert_eq!(first.pairs(), Path::new("datasets/journeydb/pair_dpo_data.json"));
        assert_eq!(first.image("7", 3), Path::new("datasets/journeydb/generated_images/7/3.png"));
        let third = RunLayout::new(&config, 3);
        assert_eq!(third.pairs(), Path::new("datasets/journeydb/pair_dpo_data_iter3.json"));
        assert_eq!(third.images(), Path::new("datasets/journeydb/generated_images_iter3"));
        assert_eq!(third.training(), Path::new("runs/journeydb/train_iter3"));
        assert_eq!(third.initial_data(), Path::new("datasets/journeydb/initial_data.json"), "the same records");
        assert_eq!(third.previous().map(|layout| layout.iteration()), Some(2));
        assert_eq!(first.previous(), None);
    }
}
