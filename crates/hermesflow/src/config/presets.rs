//! The configurations inside this program: an installed one has no checkout beside it.

use std::path::Path;

use anyhow::{Context, Result};

/// The demo's run.
pub const DEMO: &str = include_str!("../../../../configs/scenes-janus.yaml");
/// Names and texts.
pub const PRESETS: [(&str, &str); 7] = [
    ("scenes", include_str!("../../../../configs/scenes.yaml")),
    ("released", include_str!("../../../../configs/released.yaml")),
    ("paper", include_str!("../../../../configs/paper.yaml")),
    ("janus-pro", include_str!("../../../../configs/janus-pro.yaml")),
    ("scenes-janus", DEMO),
    ("pretrain-scenes", include_str!("../../../../configs/pretrain-scenes.yaml")),
    ("pretrain-scenes-janus", include_str!("../../../../configs/pretrain-scenes-janus.yaml")),
];

/// The configuration of a name.
pub fn preset(name: &str) -> Option<&'static str> {
    PRESETS.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// What a configuration's file says, or the one inside this program of that name.
///
/// # Errors
/// Names the file that cannot be read, and the names that would do.
pub fn read(path: &Path) -> Result<String> {
    if let (false, Some(text)) = (path.exists(), path.to_str().and_then(preset)) {
        return Ok(text.to_owned());
    }
    crate::files::text(path).with_context(|| {
        let names: Vec<&str> = PRESETS.iter().map(|(name, _)| *name).collect();
        format!("cannot read the configuration (inside this program are {})", names.join(", "))
    })
}
