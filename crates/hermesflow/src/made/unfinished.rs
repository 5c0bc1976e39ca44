//! Rows that are made one after another, in a file that grows until all are there.

use std::path::Path;

use anyhow::Result;
use hermesflow_records::AppendLog;
use serde::de::DeserializeOwned;

/// The file of work that is not done, and the whole blocks of rows that it holds; begun anew where its first line is not
/// `header`, which is that of work made from something else.
///
/// # Errors
/// Names the file that cannot be read or written.
pub fn unfinished<R: DeserializeOwned>(path: &Path, header: &str, block: usize) -> Result<(AppendLog, Vec<R>)> {
    let mut log = AppendLog::of_lines(path)?;
    let (mut of_this, mut readable, mut rows, mut ends) = (false, true, Vec::new(), Vec::new());
    log.each(|offset, line| {
        let end = offset + line.len() as u64 + 1;
        if offset == 0 {
            of_this = line == header.as_bytes();
            ends.push(end);
        } else if of_this && readable {
            match serde_json::from_slice::<R>(line) {
                Ok(row) => {
                    rows.push(row);
                    ends.push(end);
                }
                Err(_) => readable = false, // this line and all behind it are made again
            }
        }
    })?;
    if !of_this {
        log.cut(0)?;
        log.append(format!("{header}\n").as_bytes())?;
        return Ok((log, Vec::new()));
    }
    rows.truncate(rows.len() / block * block);
    log.cut(ends[rows.len()])?;
    Ok((log, rows))
}
