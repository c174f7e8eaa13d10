//! What is seen of the fleet: live on a terminal, and in the end everywhere.

use std::{
    fmt::Write,
    sync::{Mutex, PoisonError},
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::worker::Report;

const HEAD: &str = "process  its token           served  failed";

pub(crate) struct Table {
    rows: Mutex<Vec<Report>>,
    /// A line for each row and one beneath; not drawn where there is no terminal.
    lines: Vec<ProgressBar>,
    drawn: MultiProgress,
}

impl Table {
    pub(crate) fn new(processes: u16) -> Self {
        let drawn = MultiProgress::new();
        let style = ProgressStyle::with_template("{msg}").expect("the template is valid");
        let line = |_| drawn.add(ProgressBar::no_length().with_style(style.clone()));
        // A head before them, a summary after.
        let lines: Vec<_> = (0..usize::from(processes) + 2).map(line).collect();
        Self { rows: Mutex::new(vec![Report::default(); processes.into()]), lines, drawn }
    }

    pub(crate) fn enter(&self, number: u16, report: Report) {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)[usize::from(number)] = report;
    }

    /// Draws it anew.
    pub(crate) fn show(&self, summary: &str) {
        for (line, text) in self.lines.iter().zip(self.text(summary)) {
            line.set_message(text);
            line.tick();
        }
    }

    /// Prints it, for good.
    pub(crate) fn print(&self, summary: &str) {
        let _ = self.drawn.clear();
        for line in self.text(summary) {
            println!("{line}");
        }
    }

    fn text(&self, summary: &str) -> Vec<String> {
        let rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        let rows = rows.iter().enumerate().map(|(number, report)| row(number, report));
        [HEAD.to_owned()].into_iter().chain(rows).chain([summary.to_owned()]).collect()
    }
}

fn row(number: usize, report: &Report) -> String {
    let token = match report.adopted {
        None => "none yet".to_owned(),
        Some(true) => format!("adopted, the {}", ordinal(report.generation)),
        Some(false) => format!("asked for, the {}", ordinal(report.generation)),
    };
    let mut row = format!("{number:>7}  {token:<19} {:>6} {:>7}", report.served, report.failed);
    if let Some(error) = &report.last_error {
        let _ = write!(row, "  {error}");
    }
    row
}

fn ordinal(number: u64) -> String {
    match number {
        1 => "1st".to_owned(),
        2 => "2nd".to_owned(),
        3 => "3rd".to_owned(),
        _ => format!("{number}th"),
    }
}
