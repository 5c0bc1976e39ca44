//! `hermesflow keys`: every key that a configuration may hold.

use anyhow::{Result, ensure};

use crate::config::keys::{Keys, page};

/// List the settings of configuration files: type, unit, default, meaning
///
/// Without PREFIX, one line for each key. With PREFIX, everything about the keys whose names begin with it: range,
/// allowed values, unit, default, meaning, source, earlier names.
///
/// Example: hermesflow keys train.loss
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Beginning of the names, such as train, imagine.steps or train.schedule
    #[arg(value_name = "PREFIX")]
    prefix: Option<String>,

    /// The keys of pretraining files (hermesflow pretrain) instead of run files
    #[arg(long, conflicts_with_all = ["schema", "markdown"])]
    pretrain: bool,

    /// Print a JSON Schema of run files or of pretraining files, for editors
    ///
    /// An editor with a YAML language server completes and checks a file whose first line is
    /// `# yaml-language-server: $schema=schema.json` with the printed text in schema.json beside it.
    #[arg(long, value_name = "FILES", num_args = 0..=1, default_missing_value = "run", conflicts_with = "prefix")]
    schema: Option<Files>,

    /// Print all keys of both kinds of files as a Markdown page
    #[arg(long, conflicts_with_all = ["prefix", "schema"])]
    markdown: bool,
}

/// A kind of configuration files.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Files {
    /// Files that `hermesflow run` and most commands read
    Run,
    /// Files that `hermesflow pretrain` reads
    Pretrain,
}

/// Runs the command.
pub fn run(args: Args) -> Result<()> {
    let keys = match args.schema {
        Some(Files::Pretrain) => Keys::pretrain(),
        _ if args.pretrain => Keys::pretrain(),
        _ => Keys::run(),
    };
    let text = match &args.prefix {
        _ if args.markdown => page(),
        _ if args.schema.is_some() => keys.schema_file(),
        None => keys.overview(),
        Some(prefix) => {
            let entries = keys.entries(prefix);
            let nearest = keys.nearest(prefix).join(" or ");
            let meant = if nearest.is_empty() { String::new() } else { format!("; did you mean {nearest}?") };
            ensure!(!entries.is_empty(), "{prefix}: no key begins with this{meant} (hermesflow keys lists all)");
            entries
        }
    };
    say!("{}", text.trim_end())
}
