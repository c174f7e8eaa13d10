//! What the user sees while the import runs, on the standard error: a bar on a terminal, a line now and then elsewhere.

use std::{
    io::{self, IsTerminal},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

/// Between two lines where there is no terminal.
const INTERVAL: Duration = Duration::from_secs(5);
const STYLE: &str = "{wide_bar} {percent:>3} %  {msg}  {elapsed_precise}";
const STYLE_WITHOUT_SIZE: &str = "{spinner} {msg}  {elapsed_precise}";

/// How far the import is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// Records that were read.
    pub(crate) read: u64,
    /// Records that the API took.
    pub(crate) applied: u64,
    /// Records in the file of those that failed.
    pub(crate) failed: u64,
    /// Requests that were sent again.
    pub(crate) resent: u64,
    /// How far into the file, in bytes.
    pub(crate) bytes: u64,
}

/// Is told how the import goes.
pub(crate) trait Watch: Send + Sync {
    /// After each record, and now and then.
    fn progress(&self, counts: Counts);
    /// What the user should know at once.
    fn message(&self, text: &str);
}

pub(crate) enum Display {
    Bar(ProgressBar),
    Lines { size: Option<u64>, last: Mutex<Instant> },
}

impl Display {
    /// Of a file of this size, if it has one.
    pub(crate) fn new(size: Option<u64>) -> Self {
        if !io::stderr().is_terminal() {
            return Self::Lines { size, last: Mutex::new(Instant::now()) };
        }
        let bar = size.map_or_else(ProgressBar::no_length, ProgressBar::new);
        let style = if size.is_some() { STYLE } else { STYLE_WITHOUT_SIZE };
        bar.set_style(ProgressStyle::with_template(style).expect("the template is valid"));
        // While all wait for a token the clock goes on.
        bar.enable_steady_tick(Duration::from_millis(250));
        Self::Bar(bar)
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

impl Watch for Display {
    fn progress(&self, counts: Counts) {
        match self {
            Self::Bar(bar) => {
                bar.set_position(counts.bytes);
                bar.set_message(counts.to_string());
            }
            Self::Lines { size, last } => {
                let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
                if last.elapsed() >= INTERVAL {
                    *last = Instant::now();
                    match size.filter(|size| *size > 0) {
                        Some(size) => eprintln!("{:>3} %  {counts}", counts.bytes.min(size) * 100 / size),
                        None => eprintln!("{counts}"),
                    }
                }
            }
        }
    }

    fn message(&self, text: &str) {
        match self {
            Self::Bar(bar) => bar.println(text),
            Self::Lines { .. } => eprintln!("{text}"),
        }
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} applied, {} failed, {} sent again", self.applied, self.failed, self.resent)
    }
}
