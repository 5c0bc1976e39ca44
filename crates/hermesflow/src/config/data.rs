//! The `data` section of a run's configuration: where the records are.

use std::path::PathBuf;

use hermesflow_scenes::Split;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where the records of a run are, and how many are worked on at a time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DataSettings {
    /// Data root: the folder that holds `initial_data.json` and receives captions, images, answers and pairs.
    ///
    /// Default: datasets/journeydb.
    /// Source: released code's folders.
    pub root: PathBuf,
    /// Draws the records from the scenes world when `initial_data.json` does not exist yet. Absent: the records must exist.
    pub scenes: Option<ScenesSettings>,
    /// Whether every iteration has records of its own (`initial_data_iter{n}.json`, or the next ones of the scenes world).
    /// Otherwise the first iteration's serve all.
    ///
    /// Default: false.
    /// Source: this program.
    pub fresh: bool,
    /// Whether records may name images outside the data root, by an absolute path or by `..`.
    ///
    /// Default: false.
    /// Source: this program.
    pub allow_outside: bool,
    /// Records that are worked on as one batch. Part of the result, because other batches round differently.
    ///
    /// Unit: records.
    /// Default: 8.
    /// Source: this program.
    #[schemars(range(min = 1, max = 10_000))]
    pub chunk: usize,
}

impl Default for DataSettings {
    fn default() -> Self {
        Self { root: "datasets/journeydb".into(), scenes: None, fresh: false, allow_outside: false, chunk: 8 }
    }
}

/// Records drawn from the scenes world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ScenesSettings {
    /// Records that are drawn, for each iteration under `data.fresh: true`.
    ///
    /// Unit: records.
    /// Source: this program.
    #[schemars(range(min = 1, max = 100_000_000))]
    pub records: usize,
    /// Combinations of shapes, colours and places that the scenes are drawn from.
    ///
    /// Default: train.
    /// Source: this program.
    #[serde(default = "train_split")]
    pub split: Split,
}

fn train_split() -> Split {
    Split::Train
}
