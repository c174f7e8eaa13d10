//! What a benchmark saw: a table on the terminal and, with `-- --save benches/data`, a file for the plots.

#![allow(clippy::print_stdout, reason = "a benchmark prints what it saw")]

use std::{env, fs, io, path::Path};

/// A row for each variant, a column for each figure; the first column names the variant.
pub(crate) struct Figures {
    name: &'static str,
    columns: &'static [&'static str],
    rows: Vec<Vec<String>>,
}

impl Figures {
    /// No figures yet. `name` is that of the file.
    pub(crate) fn new(name: &'static str, columns: &'static [&'static str]) -> Self {
        Self { name, columns, rows: Vec::new() }
    }

    /// One more row, with a value for each column.
    pub(crate) fn add(&mut self, row: impl IntoIterator<Item = String>) {
        let row: Vec<_> = row.into_iter().collect();
        assert_eq!(row.len(), self.columns.len(), "a value for each column");
        assert!(!row.iter().any(|value| value.contains([',', '"', '\n'])), "a comma parts the values of {row:?}");
        self.rows.push(row);
    }

    /// Prints the table, and saves it where the command line says.
    pub(crate) fn report(self) -> io::Result<()> {
        let titles = self.columns.iter().map(ToString::to_string).collect();
        let lines: Vec<Vec<String>> = [titles].into_iter().chain(self.rows).collect();
        let widths: Vec<_> =
            (0..self.columns.len()).map(|column| lines.iter().map(|line| line[column].chars().count()).max()).collect();
        for line in &lines {
            for (value, width) in line.iter().zip(&widths) {
                print!("{value:<width$}  ", width = width.unwrap_or_default());
            }
            println!();
        }
        if let Some(directory) = env::args().skip_while(|argument| argument != "--save").nth(1) {
            let text: String = lines.iter().map(|line| line.join(",") + "\n").collect();
            fs::create_dir_all(&directory)?;
            fs::write(Path::new(&directory).join(self.name).with_extension("csv"), text)?;
        }
        Ok(())
    }
}
