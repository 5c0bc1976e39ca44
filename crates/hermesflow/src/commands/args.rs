//! The arguments that several commands take.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use hermesflow_group::Group;
use image::RgbImage;

use crate::config::RunConfig;
use crate::files::OwnFiles;
use crate::files::lock::Lock;
use crate::made::differences;
use crate::models::{self, Model};
use crate::progress::Progress;
use crate::report::sheet::{Cell, Words, draw};
use crate::run::context::RunContext;
use crate::run::kernels;
use crate::run::pictures::png;

/// What every command that reads a run's configuration takes.
#[derive(Debug, Clone, clap::Args)]
pub struct ConfigArgs {
    /// Run configuration: a YAML file, or one inside this program by its name (`hermesflow config` lists them). The files of
    /// HermesFlow's Python code and of what it is built on, such as hermesflow_pairdpo.yaml, work too
    pub config: PathBuf,

    /// Settings to change, such as train.schedule.steps=100 imagine.images=4; `hermesflow keys` lists all
    ///
    /// With a file of the Python code, the names that its scripts use are accepted too: training.batch_size=4
    /// optimizer.params.learning_rate=1e-5 guidance_scale=5 generation_timesteps=50.
    #[arg(value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,

    /// Seed of every random number; the same as seed=N
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

impl ConfigArgs {
    /// The validated configuration, the same one in all processes.
    ///
    /// # Errors
    /// Names the file, the key and what is expected; or what this process made otherwise of a choice that was left open.
    pub fn load(&self) -> Result<RunConfig> {
        let group = Group::world();
        // The writer first: what it measures for a choice that was left open, the others read.
        let config = group.first(|| RunConfig::load(&self.config, &self.all_overrides(), models::backbone::find))?;
        if !group.is_alone() {
            let own = serde_json::to_value(&config)?;
            let first = serde_json::from_slice(&group.tell(Some(serde_json::to_vec(&own)?))?)?;
            let differing = differences(&first, &own).join("; ");
            ensure!(
                differing.is_empty(),
                "{}: is read otherwise here than by the first process (there): {differing}; set these keys",
                self.config.display()
            );
        }
        Ok(config)
    }

    fn all_overrides(&self) -> Vec<String> {
        let seed = self.seed.map(|seed| format!("seed={seed}"));
        self.overrides.iter().cloned().chain(seed).collect()
    }
}

/// What one stage of one iteration takes.
#[derive(Debug, Clone, clap::Args)]
pub struct StageArgs {
    #[command(flatten)]
    config: ConfigArgs,

    /// The iteration, counted from 1; from the second on, the model is the one that the iteration before trained
    #[arg(long, value_name = "N", default_value_t = 1)]
    iteration: usize,
}

impl StageArgs {
    /// Does the work of a stage, which gives the file or folder of its results, and prints that path. No other program can
    /// do the same stage of the same run meanwhile.
    ///
    /// # Errors
    /// As [`ConfigArgs::load`]; when another program is doing the same stage; or what `work` says.
    pub fn make(&self, stage: &str, work: impl FnOnce(&RunContext) -> Result<PathBuf>) -> Result<()> {
        let config = self.config.load()?;
        ensure!(self.iteration >= 1, "--iteration: 0; iterations count from 1");
        let run = RunContext::new(config, self.iteration, Progress::stderr());
        let layout = &run.layout;
        kernels::settle_together(&run.config, run.group())?;
        let lock = if stage == "train" { layout.training_lock() } else { layout.lock(stage) };
        let _lock = run.group().once(|| Lock::take([lock]))?;
        say!("{}", work(&run)?.display())
    }
}

/// Makes the `Args` and the `run` of a command that does one stage: its help, its name, and its work, which is given the run
/// and gives the file or folder of the results.
macro_rules! stage_command {
    ($(#[$help:meta])* $name:literal, $work:expr) => {
        $(#[$help])*
        #[derive(Debug, clap::Args)]
        pub struct Args {
            #[command(flatten)]
            stage: $crate::commands::args::StageArgs,
        }

        /// Runs the command.
        pub fn run(args: Args) -> anyhow::Result<()> {
            args.stage.make($name, $work)
        }
    };
}

pub(crate) use stage_command;

/// What the commands beside the loop take: one of a run's models, and its settings.
#[derive(Debug, Clone, clap::Args)]
pub struct ModelArgs {
    #[command(flatten)]
    config: ConfigArgs,

    /// Use the model that this iteration of the run trained; 0 is the one that the run begins with
    #[arg(long, value_name = "N", default_value_t = 0)]
    iteration: usize,
}

impl ModelArgs {
    /// The settings and the model, and where progress goes.
    ///
    /// # Errors
    /// As [`ConfigArgs::load`]; names what is missing of the model.
    pub fn open(&self) -> Result<(RunContext, Model)> {
        let run = RunContext::new(self.config.load()?, self.iteration + 1, Progress::stderr());
        kernels::settle(&run.config, false)?;
        let model = models::player(&run)?;
        Ok((run, model))
    }
}

/// How many pictures a command makes, and where they go.
#[derive(Debug, Clone, clap::Args)]
pub struct PictureArgs {
    /// Pictures per prompt, each drawn with a seed of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub images: u64,

    /// Folder of the results [default: the command's name, inside the run's `output`]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

impl PictureArgs {
    /// The folder of a command's results.
    pub fn folder(&self, config: &RunConfig, command: &str) -> PathBuf {
        self.out.clone().unwrap_or_else(|| config.output.join(command))
    }
}

/// A count as an argument: at least 1, and no more than `MOST`, above which only a mistake asks.
///
/// # Errors
/// When it is none.
pub fn count<const MOST: usize>(text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|count| (1..=MOST).contains(count));
    count.ok_or_else(|| format!("not a number from 1 to {MOST}"))
}

/// Saves what was made of one picture as `{name}-{number}.png`, and a sheet of `row` followed by it; prints the files.
///
/// # Errors
/// Names the file that cannot be written.
pub fn save_pictures(
    folder: &Path,
    name: &str,
    (title, subtitle): (&str, &str),
    mut row: Vec<Cell>,
    pictures: Vec<RgbImage>,
) -> Result<()> {
    let mut files = OwnFiles::of(folder)?;
    let mut save = |picture: &RgbImage, end: &str| -> Result<()> {
        say!("{}", files.write(&format!("{name}-{end}.png"), &png(picture)?)?.display())
    };
    for (number, picture) in pictures.into_iter().enumerate() {
        save(&picture, &number.to_string())?;
        row.push(Cell::Picture(picture, Words::plain(format!("after {number}"))));
    }
    save(&draw(title, subtitle, &["prompt"], &[row])?, "sheet")
}
