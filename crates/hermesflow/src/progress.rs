//! Progress on stderr: bars with an ETA in a terminal, a line every ten seconds elsewhere.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::print;

/// The time between two lines of progress where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// How many lines of a kind are logged.
const FEW: usize = 10;

/// Where progress and log lines go.
#[derive(Debug, Clone)]
pub struct Progress {
    bars: MultiProgress,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bars,
    Lines,
}

impl Progress {
    /// Bars in a terminal, lines elsewhere.
    pub fn stderr() -> Self {
        if std::io::stderr().is_terminal() && !print::is_silent() {
            Self { bars: MultiProgress::new(), kind: Kind::Bars }
        } else {
            Self { bars: hidden(), kind: Kind::Lines }
        }
    }

    /// Logs one line.
    pub fn log(&self, line: impl AsRef<str>) {
        match self.kind {
            Kind::Bars => self.bars.suspend(|| note!("{}", line.as_ref())),
            Kind::Lines => note!("{}", line.as_ref()),
        }
    }

    /// Logs one of many similar lines of a stage, `before` of which came earlier: only the first ten are shown.
    pub fn log_few(&self, stage: &str, before: usize, line: impl std::fmt::Display) {
        match before {
            ..FEW => self.log(format!("{stage}: {line}")),
            FEW => self.log(format!("{stage}: more of these are counted, not listed")),
            _ => {}
        }
    }

    /// A task of `total` parts, `done` of which are there already.
    pub fn task(&self, name: &str, unit: &'static str, total: usize, done: usize) -> Task {
        let bar = ProgressBar::new(total as u64).with_prefix(name.to_owned());
        let bar = if self.kind == Kind::Bars { self.bars.add(bar) } else { bar };
        if self.kind != Kind::Bars {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        let style = format!("{{prefix:>14}} {{bar:28}} {{pos}}/{{len}} {unit}  {{elapsed}} ETA {{eta}}  {{wide_msg}}");
        bar.set_style(ProgressStyle::with_template(&style).expect("the template is a constant of this file"));
        bar.set_position(done as u64);
        bar.reset_eta();
        let started = Instant::now();
        let task =
            Task { bar, progress: self.clone(), unit, name: name.to_owned(), done, started, said: Mutex::new(started) };
        if self.kind == Kind::Bars {
            task.bar.enable_steady_tick(Duration::from_millis(200));
        }
        task
    }
}

fn hidden() -> MultiProgress {
    MultiProgress::with_draw_target(ProgressDrawTarget::hidden())
}

/// One task in progress; finished when dropped.
#[derive(Debug)]
pub struct Task {
    bar: ProgressBar,
    progress: Progress,
    unit: &'static str,
    name: String,
    /// Parts that were done before this process began.
    done: usize,
    started: Instant,
    said: Mutex<Instant>,
}

impl Task {
    /// `count` more parts are done.
    pub fn advance(&self, count: usize) {
        self.bar.inc(count as u64);
        self.say(false);
    }

    /// What is shown behind the bar.
    pub fn message(&self, message: impl Into<String>) {
        self.bar.set_message(message.into());
    }

    fn say(&self, last: bool) {
        let Ok(mut said) = self.said.lock() else { return };
        let fresh = self.bar.position() as usize > self.done;
        if self.progress.kind != Kind::Lines || !(last && fresh || said.elapsed() >= LINE_EVERY) {
            return;
        }
        *said = Instant::now();
        let (now, total) = (self.bar.position(), self.bar.length().unwrap_or_default());
        let elapsed = self.started.elapsed();
        let rate = (now as usize).saturating_sub(self.done) as f64 / elapsed.as_secs_f64().max(1e-9);
        let eta = if rate > 0.0 { total.saturating_sub(now) as f64 / rate } else { 0.0 };
        let end = if last { String::new() } else { format!(", about {} left", brief(Duration::from_secs_f64(eta))) };
        let message = self.bar.message();
        let message = if message.is_empty() { message } else { format!("  {message}") };
        note!("{}: {now}/{total} {} in {}{end}{message}", self.name, self.unit, brief(elapsed));
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.say(true);
        self.bar.finish_and_clear();
    }
}

/// A duration in the two units that matter.
pub fn brief(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{:.1} s", duration.as_secs_f64()),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
    }
}
