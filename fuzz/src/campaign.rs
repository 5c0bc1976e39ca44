//! A campaign: workers that are watched, replaced where they end or stand still, and counted.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::targets::{TARGETS, in_repository};
use crate::worker::{Notes, Went, keep};

/// How long a case may take, by the processor's time: on a machine that does much else, the clock's says little.
const LONGEST: Duration = Duration::from_secs(10);
/// How long a case may take by the clock, also if it does nothing.
const STANDS_STILL: Duration = Duration::from_secs(100);
/// How long a worker may take to make its workshop.
const PREPARED: Duration = Duration::from_secs(120);
/// How often workers are looked at.
const LOOK: Duration = Duration::from_millis(100);

/// How long a campaign is, and over what.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// So many seconds
    #[arg(long, default_value_t = 60)]
    seconds: u64,

    /// Or until so many cases have been tried
    #[arg(long)]
    cases: Option<u64>,

    /// Other cases
    #[arg(long, default_value_t = 0)]
    seed: u64,

    /// One target only
    #[arg(long)]
    target: Option<String>,

    /// Processes that try cases side by side; as many as there are cores if not given
    #[arg(long)]
    workers: Option<usize>,
}

/// A worker's process, and since when it has been at its case.
struct Worker {
    child: Child,
    folder: PathBuf,
    notes: Notes,
    case: u64,
    since: Instant,
    /// What its process had computed by then.
    spent: Duration,
    /// Cases of its own by which it is ahead of its first.
    lane: u64,
}

/// Runs a campaign.
///
/// # Errors
/// When workers cannot be started.
pub fn run(args: &Args) -> Result<ExitCode> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let count = args.workers.unwrap_or(cores).max(1) as u64;
    // In memory, where the system has such a place: cases write little files by the thousand.
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { tempfile::tempdir_in(memory)? } else { tempfile::tempdir()? };
    let findings = in_repository("fuzz/findings");
    let started = Instant::now();
    let start = |lane: u64, case: u64| -> Result<Worker> {
        let own = folder.path().join(lane.to_string());
        let notes = folder.path().join(format!("notes-{lane}"));
        let child = Command::new(std::env::current_exe()?)
            .arg("work")
            .args([&own, &notes, &findings])
            .args([case.to_string(), count.to_string(), args.seed.to_string()])
            .args(&args.target)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("a worker cannot be started")?;
        Ok(Worker {
            child,
            folder: own,
            notes: Notes::open(&notes)?,
            case: 0,
            since: Instant::now(),
            spent: Duration::ZERO,
            lane,
        })
    };
    let mut workers = (0..count).map(|lane| start(lane, lane)).collect::<Result<Vec<_>>>()?;
    let mut said = Instant::now();
    loop {
        std::thread::sleep(LOOK);
        for worker in &mut workers {
            let case = worker.notes.case();
            if case != worker.case {
                (worker.case, worker.since, worker.spent) = (case, Instant::now(), spent(worker.child.id()));
            }
            let ended = worker.child.try_wait()?;
            let (clock, spent) = (worker.since.elapsed(), spent(worker.child.id()).saturating_sub(worker.spent));
            let late = if worker.case == 0 { clock > PREPARED } else { spent > LONGEST || clock > STANDS_STILL };
            if ended.is_none() && !late {
                continue;
            }
            let why = format!("more than {:.1} s, {:.1} s of the processor", clock.as_secs_f64(), spent.as_secs_f64());
            let why = ended.map_or(why, |status| status.to_string());
            let _ = worker.child.kill();
            let _ = worker.child.wait();
            anyhow::ensure!(worker.case > 0, "a worker fails before its first case: {why}");
            let case = worker.case - 1;
            let number = TARGETS
                .iter()
                .position(|target| args.target.as_deref() == Some(target.name))
                .unwrap_or(case as usize % TARGETS.len());
            let file = fs::read(worker.folder.join(TARGETS[number].place)).unwrap_or_default();
            keep(&findings, &TARGETS[number], case, &file, &why)?;
            worker.notes.add(number, Went::Wrong)?;
            // Its counts go on; its workshop may be half written.
            let _ = fs::remove_dir_all(&worker.folder);
            worker.notes.begin()?;
            *worker = start(worker.lane, case + count)?;
        }
        let tried: u64 = workers.iter().map(|worker| total(&worker.notes)).sum();
        if said.elapsed() > Duration::from_secs(60) {
            said = Instant::now();
            eprintln!("{tried} cases in {} s", started.elapsed().as_secs());
        }
        if started.elapsed().as_secs() >= args.seconds || args.cases.is_some_and(|cases| tried >= cases) {
            break;
        }
    }
    for worker in &mut workers {
        let _ = worker.child.kill();
        let _ = worker.child.wait();
    }
    let notes: Vec<&Notes> = workers.iter().map(|worker| &worker.notes).collect();
    Ok(summary(&notes, started.elapsed(), &findings))
}

/// What a process has computed so far; nothing where the system does not say.
fn spent(process: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // Behind the name, which may hold anything: the times are the 12th and 13th number, in hundredths of a second.
    let numbers = stat.rsplit_once(')').map_or("", |(_, numbers)| numbers).split_whitespace();
    let ticks: u64 = numbers.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

fn total(notes: &Notes) -> u64 {
    (0..TARGETS.len()).map(|target| all(notes, target).iter().sum::<u64>()).sum()
}

fn all(notes: &Notes, target: usize) -> [u64; 3] {
    [Went::Accepted, Went::Refused, Went::Wrong].map(|went| notes.count(target, went))
}

/// Prints the counts.
fn summary(notes: &[&Notes], elapsed: Duration, findings: &Path) -> ExitCode {
    let mut sums = [0; 3];
    println!("{:<15} {:>9} {:>9} {:>9}", "format", "accepted", "refused", "wrong");
    for (number, target) in TARGETS.iter().enumerate() {
        let counts = notes.iter().fold([0; 3], |sums, notes| add(sums, all(notes, number)));
        sums = add(sums, counts);
        println!("{:<15} {:>9} {:>9} {:>9}", target.name, counts[0], counts[1], counts[2]);
    }
    let tried: u64 = sums.iter().sum();
    println!("{:<15} {:>9} {:>9} {:>9}", "all", sums[0], sums[1], sums[2]);
    println!("{tried} mutated inputs in {} s", elapsed.as_secs());
    if sums[2] > 0 {
        println!("{} went wrong; they are in {}", sums[2], findings.display());
    }
    ExitCode::from(u8::from(sums[2] > 0))
}

fn add(a: [u64; 3], b: [u64; 3]) -> [u64; 3] {
    std::array::from_fn(|at| a[at] + b[at])
}
