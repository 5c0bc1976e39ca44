//! Checks before a model is loaded whether it fits into memory.

use std::path::Path;

use crate::{Error, Result};

/// Bytes of memory that stay free for everything else.
const RESERVE: u64 = 512 << 20;

/// Refuses a model that does not fit into the available memory; if the system does not tell how much that is, nothing
/// is refused.
pub(super) fn require(path: &Path, needed: u64) -> Result<()> {
    let available = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| available(&text));
    check(path, needed, available)
}

fn check(path: &Path, needed: u64, available: Option<u64>) -> Result<()> {
    let gib = |bytes: u64| bytes as f64 / f64::from(1u32 << 30);
    match available {
        Some(available) if needed.saturating_add(RESERVE) > available => {
            let message = format!(
                "needs {:.1} GiB of memory, {:.1} GiB are available; use a quantised GGUF file of this model (4 bits: \
                 an eighth of f32), or the question writer `template`, which needs no weights",
                gib(needed),
                gib(available)
            );
            Err(Error::file(path, message))
        }
        _ => Ok(()),
    }
}

/// `MemAvailable` of `/proc/meminfo`, in bytes.
fn available(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_with_a_way_out() {
        let meminfo = "MemTotal:       16000000 kB\nMemFree: 1 kB\nMemAvailable:    8388608 kB\n";
        assert_eq!(available(meminfo), Some(8 << 30));
        assert_eq!(available("nothing"), None);
        let path = Path::new("llama");
        assert!(check(path, 7 << 30, Some(8 << 30)).is_ok());
        assert!(check(path, 7 << 60, None).is_ok());
        let refusal = check(path, 27 << 30, Some(8 << 30)).unwrap_err().to_string();
        for part in ["llama", "27.0 GiB", "8.0 GiB", "GGUF", "`template`"] {
            assert!(refusal.contains(part), "{refusal}");
        }
    }
}
