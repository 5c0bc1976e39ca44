//! `hermesflow verify`: recorded numbers of the original models against this build.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use hermesflow_models::DType;
use hermesflow_models::device::{DeviceName, describe};
use hermesflow_verify::{Check, Verdict, verify};

use crate::progress::Progress;
use crate::report;

/// Replay recorded numbers of the original PyTorch models
///
/// Takes case folders, or folders of them: model cases (image tokenizer, both sequence forms, decoding with recorded
/// draws, Pair-DPO with every gradient, a training trace), rules/, image/, tokenizer/ and scorers/ (judges of text).
/// Everything is read from the folder. Prints what was compared, the largest error, its tolerance and the verdict;
/// exits with 1 if anything is outside. The tolerances are the same on any device: everything is in f32 (--dtype bf16: with
/// tolerances of its own). What this build
/// cannot replay is listed as skipped and never counts as passed.
///
/// Example: hermesflow verify golden --json
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Case folders, or folders of them
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,

    /// Where the models and judges run: auto, cpu or cuda:N
    #[arg(long, default_value = "cpu", value_name = "NAME")]
    device: DeviceName,

    /// The type of the models' matrices: f32, or bf16 for what model cases say of it, within tolerances of its own
    #[arg(long, default_value = "f32", value_parser = ["f32", "bf16"], value_name = "TYPE")]
    dtype: String,

    /// Print JSON, one object per comparison
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let progress = Progress::stderr();
    let device = args.device.open().context("--device")?;
    progress.log(format!("verify: on {}", describe(&device)));
    let dtype = if args.dtype == "bf16" { DType::BF16 } else { DType::F32 };
    let mut checks: Vec<Check> = Vec::new();
    for path in &args.paths {
        ensure!(path.is_dir(), "{}: not a folder; give a folder of recorded cases", path.display());
        let found = verify(path, &device, dtype, |case| progress.log(format!("verify: {}", case.display())));
        checks.extend(found.with_context(|| path.display().to_string())?);
    }
    if args.json {
        say!("{}", serde_json::to_string_pretty(&checks)?)?;
    } else {
        say!("{}", table(&checks))?;
    }
    let count = |verdict| checks.iter().filter(|check| check.verdict == verdict).count();
    let (passed, failed, skipped) = (count(Verdict::Passed), count(Verdict::Failed), count(Verdict::Skipped));
    progress.log(format!("{passed} passed, {failed} failed, {skipped} skipped"));
    if failed > 0 {
        bail!("{failed} of {} comparisons are outside their tolerance", checks.len());
    }
    ensure!(passed > 0, "no case was replayed; give a folder of recorded cases");
    Ok(())
}

fn table(checks: &[Check]) -> comfy_table::Table {
    let mut table = report::table(&["case", "what", "largest error", "tolerance", "verdict"]);
    if let Some(column) = table.column_mut(1) {
        column.set_cell_alignment(comfy_table::CellAlignment::Left);
    }
    for check in checks {
        let number = |value: f64| if value == 0.0 { "0".to_owned() } else { format!("{value:.1e}") };
        let verdict = match (check.verdict, check.note.is_empty()) {
            (Verdict::Passed, _) => "passed".to_owned(),
            (Verdict::Failed, true) => "FAILED".to_owned(),
            (Verdict::Failed, false) => format!("FAILED: {}", check.note),
            (Verdict::Skipped, _) => format!("skipped: {}", check.note),
        };
        let (error, tolerance) = match check.verdict {
            Verdict::Skipped => (String::new(), String::new()),
            _ => (number(check.largest_error), number(check.tolerance)),
        };
        table.add_row([check.case.clone(), check.what.clone(), error, tolerance, verdict]);
    }
    table
}
