//! What a benchmark saved.

use std::fs;

use crate::{COMMAND, Result};

pub(crate) const DIRECTORY: &str = "benches/data";

/// The figures of one run: rows, and columns that have names.
#[derive(Debug)]
pub(crate) struct Data {
    name: String,
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Data {
    /// From the file of this name.
    pub(crate) fn read(name: &str) -> Result<Self> {
        let text = fs::read_to_string(path(name)).map_err(|error| wrong(name, &error.to_string()))?;
        Self::parse(name, &text)
    }

    /// From text as `Figures` saves it: no value has a comma, so none has to be quoted.
    pub(crate) fn parse(name: &str, text: &str) -> Result<Self> {
        let mut lines = text.lines().map(|line| line.split(',').map(str::to_owned).collect::<Vec<_>>());
        let columns = lines.next().ok_or_else(|| wrong(name, "it is empty"))?;
        let rows: Vec<_> = lines.collect();
        match rows.iter().find(|row| row.len() != columns.len()) {
            Some(row) => Err(wrong(name, &format!("{row:?} has not a value for each column"))),
            None => Ok(Self { name: name.to_owned(), columns, rows }),
        }
    }

    pub(crate) fn rows(&self) -> impl Iterator<Item = Row<'_>> {
        self.rows.iter().map(|values| Row { data: self, values })
    }

    /// The first row that has these values.
    pub(crate) fn row(&self, wanted: &[(&str, &str)]) -> Result<Row<'_>> {
        self.rows()
            .find(|row| wanted.iter().all(|(column, value)| row.text(column).is_ok_and(|text| text == *value)))
            .ok_or_else(|| wrong(&self.name, &format!("it has no row with {wanted:?}")))
    }

    /// The values of a column, each once, as they come.
    pub(crate) fn distinct(&self, column: &str) -> Result<Vec<&str>> {
        let mut distinct = Vec::new();
        for row in self.rows() {
            let value = row.text(column)?;
            if !distinct.contains(&value) {
                distinct.push(value);
            }
        }
        Ok(distinct)
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Row<'a> {
    data: &'a Data,
    values: &'a [String],
}

impl<'a> Row<'a> {
    pub(crate) fn text(&self, column: &str) -> Result<&'a str> {
        let index = self.data.columns.iter().position(|name| name == column);
        let index = index.ok_or_else(|| wrong(&self.data.name, &format!("it has no column {column}")))?;
        Ok(&self.values[index])
    }

    pub(crate) fn number(&self, column: &str) -> Result<f64> {
        let text = self.text(column)?;
        // Without valgrind there is a dash.
        let says = || {
            format!(
                "{text:?} in the column {column} is not a number (are the instructions counted? That takes valgrind)"
            )
        };
        text.parse().map_err(|_| wrong(&self.data.name, &says()))
    }
}

fn wrong(name: &str, what: &str) -> String {
    format!("{}: {what}; run `{}` to get it anew", path(name), command(name))
}

pub(crate) fn path(name: &str) -> String {
    format!("{DIRECTORY}/{name}.csv")
}

/// What saves the file.
fn command(name: &str) -> String {
    match name {
        "machine" => format!("{COMMAND} -- --machine"),
        "peers" | "versions" => {
            format!("cargo run --release --manifest-path benches/peers/Cargo.toml -- --save {DIRECTORY}")
        }
        _ => format!("cargo bench --bench {name} -- --save {DIRECTORY}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed() -> Data {
        Data::parse("scaling", "variant,ratio\nbare,1.9\nours,-\nbare,1.8\n").expect("it is well-formed")
    }

    #[test]
    fn a_value_is_found_by_its_row_and_column() {
        let data = parsed();
        let bare = data.row(&[("variant", "bare")]).expect("there is one");
        assert_eq!(bare.text("ratio"), Ok("1.9"));
        assert_eq!(bare.number("ratio"), Ok(1.9));
        assert_eq!(data.distinct("variant"), Ok(vec!["bare", "ours"]));
    }

    #[test]
    fn what_is_missing_is_said_with_the_file_and_the_command() {
        let data = parsed();
        let ours = data.row(&[("variant", "ours")]).expect("there is one");
        let not_well_formed = Data::parse("scaling", "variant,ratio\nbare\n").expect_err("a value is missing");
        let not_there = Data::read("no-such-file").expect_err("there is none");
        for (wrong, what) in [
            (ours.number("ratio").expect_err("a dash is no number"), "scaling"),
            (ours.text("spread").expect_err("there is no such column"), "scaling"),
            (data.row(&[("variant", "theirs")]).expect_err("there is no such row"), "scaling"),
            (not_well_formed, "scaling"),
            (not_there, "no-such-file"),
        ] {
            assert!(wrong.starts_with(&format!("benches/data/{what}.csv: ")), "{wrong}");
            assert!(wrong.contains(&format!("run `cargo bench --bench {what} -- --save benches/data`")), "{wrong}");
        }
    }
}
