//! Where further draws of an iteration lie, and what is drawn there: tries of records that gave no pair (`pair.retries`), and
//! images of altered captions (`pair.altered`).

use std::path::Path;

use hermesflow_records::derive_seed;

use super::context::RunContext;
use super::layout::RunLayout;
use super::stage::text_number;

/// Whether an iteration's pairs are chosen from its own draws alone, and not against those of the iteration before.
pub fn is_first_round(run: &RunContext) -> bool {
    run.config.data.fresh || run.layout.previous().is_none()
}

/// A try of an iteration, from 1: the same settings over other draws, in a folder of its own.
pub fn attempt(run: &RunContext, number: usize) -> RunContext {
    below(run, &format!("again-{number}"), &[text_number("again"), number as u64])
}

/// The folder of images of altered captions in the data root.
const ALTERED: &str = "altered";

/// The images of altered captions of an iteration, in a folder of their own.
pub fn altered(run: &RunContext) -> RunContext {
    let mut altered = below(run, ALTERED, &[text_number(ALTERED)]);
    altered.config.imagine.images = run.config.pair.altered;
    altered
}

/// Whether an image, by its path from the data root, is one of an altered caption.
pub fn is_altered(image: &str) -> bool {
    Path::new(image).starts_with(ALTERED)
}

/// Other draws with the same settings, in a folder of the data root and from a seed of their own, by whoever does the run.
fn below(run: &RunContext, folder: &str, seed: &[u64]) -> RunContext {
    let mut config = run.config.clone();
    config.seed = derive_seed(config.seed, seed);
    config.data.root = run.layout.data().join(folder);
    config.data.scenes = None; // the records are some of the iteration's
    config.data.fresh = true; // each iteration has its own
    config.data.allow_outside = true; // their pictures lie where they were
    RunContext { layout: RunLayout::new(&config, run.layout.iteration()), config, ..run.clone() }
}

/// The path of a record's picture as records in a folder of the data root name it.
pub fn from_below(root: &Path, picture: &str) -> String {
    let is_below = !Path::new(picture).is_absolute() && root.join(picture).is_file();
    if is_below { format!("../{picture}") } else { picture.to_owned() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::RunConfig;
    use crate::progress::Progress;

    #[test]
    fn a_try_has_its_own_seed_and_folder_and_the_same_pictures() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = RunConfig::default();
        config.data.root = folder.path().into();
        let run = RunContext::new(config, 2, Progress::stderr());
        let (first, second) = (attempt(&run, 1), attempt(&run, 2));
        assert!(first.config.seed != run.config.seed && first.config.seed != second.config.seed);
        assert_eq!(first.layout.pairs(), folder.path().join("again-1/pair_dpo_data_iter2.json"));
        assert_eq!(second.layout.initial_data(), folder.path().join("again-2/initial_data_iter2.json"));
        std::fs::write(folder.path().join("a.png"), "").unwrap();
        assert_eq!(from_below(folder.path(), "a.png"), "../a.png");
        assert!(first.layout.data().join("../a.png").parent().is_some());
        assert_eq!(
            from_below(folder.path(), "elsewhere/b.png"),
            "elsewhere/b.png",
            "relative to the working directory"
        );
        assert_eq!(from_below(folder.path(), "/a.png"), "/a.png");
        assert!(!is_first_round(&run) && is_first_round(&run.at(1)));
    }
}
