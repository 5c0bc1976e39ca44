//! The recorded models that the tests of judges share.

use std::fs;
use std::path::{Path, PathBuf};

/// The folder of a recorded model.
pub fn golden(judge: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../hermesflow-verify/tests/golden/scorers").join(judge)
}

/// A copy of a recorded model that a test may change.
pub fn copied(judge: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(golden(judge)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}
