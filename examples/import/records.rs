//! Profiles read from CSV, one at a time: what can be sent, and what is wrong with the rest.
//!
//! The csv crate parses. What it does not tell is added here: the line on which a record begins, that a quote was never
//! closed, and that a record grows without end.

use std::{
    collections::{HashMap, HashSet, hash_map::RandomState},
    fmt,
    hash::BuildHasher,
    io::{self, Read},
    str,
};

use bytes::Bytes;
use csv::{ByteRecord, Reader, ReaderBuilder, Terminator};
use email_address::{EmailAddress, Options};
use serde_json::{Map, Value};

/// The column with the profile keys.
pub(crate) const KEY: &str = "email";
/// The columns of a file of failed records that are not the user's: the line and the reason. They are not imported.
pub(crate) const OURS: [&str; 2] = ["import_line", "import_reason"];

/// APSIS One takes bodies of 100 kB. A longer record than this is a quote without its other half.
const LONGEST_RECORD: usize = 256 * 1024;
/// How much of a value a message shows.
const SHOWN: usize = 60;

/// A record of the file.
#[derive(Debug)]
pub(crate) struct Row {
    /// Where it begins.
    pub(crate) line: u64,
    /// How many bytes of the file end with it.
    pub(crate) end: u64,
    /// Its fields as they are in the file, but for the columns that are [`OURS`].
    pub(crate) fields: ByteRecord,
    /// What is to be sent, or why it cannot be.
    pub(crate) profile: Result<Profile, String>,
}

#[derive(Debug)]
pub(crate) struct Profile {
    pub(crate) key: String,
    /// A JSON object.
    pub(crate) attributes: Bytes,
}

/// Why a whole file is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unusable {
    #[error("the file is empty; its first line has to name the columns, `{KEY}` among them")]
    Empty,
    #[error("line {line}: there is no record after the names of the columns")]
    HeaderOnly { line: u64 },
    #[error("line {line}: the names of the columns are not UTF-8; save the file as UTF-8")]
    NotUtf8 { line: u64 },
    #[error("line {line}: there is no column `{KEY}`; the columns are: {columns}{}", advice(columns))]
    NoKey { line: u64, columns: String },
    #[error("line {line}: there is no column beside `{KEY}`, so there is nothing to import")]
    NoAttribute { line: u64 },
    #[error("line {line}: the column `{column}` is there twice")]
    Twice { line: u64, column: String },
    #[error("line {line}: column {number} has no name")]
    Nameless { line: u64, number: usize },
    #[error(transparent)]
    Broken(#[from] Broken),
}

/// Why a file cannot be read any further.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {why}")]
pub(crate) struct Broken {
    /// Where the record begins that could not be read.
    pub(crate) line: u64,
    why: Why,
}

#[derive(Debug, thiserror::Error)]
enum Why {
    #[error("cannot be read: {0}")]
    Io(io::Error),
    #[error("the record that begins here is longer than {} KiB; is there a quote without its other half?", LONGEST_RECORD / 1024)]
    TooLong,
    #[error("in the record that begins here a quote is never closed")]
    OpenQuote,
}

/// The records of a file. Holds one of them and, to know duplicates, 16 bytes of each that went before.
pub(crate) struct Records<R> {
    csv: Reader<Source<R>>,
    columns: Vec<Column>,
    /// The names of the columns that are not [`OURS`].
    names: ByteRecord,
    seen: Seen,
    /// Read ahead, to know that there is one.
    first: Option<Row>,
}

enum Column {
    Key,
    Attribute(String),
    Ours,
}

impl<R: Read> Records<R> {
    pub(crate) fn open(input: R, delimiter: u8) -> Result<Self, Unusable> {
        let csv = ReaderBuilder::new()
            .delimiter(delimiter)
            // The names of the columns are read as a record, and a wrong number of fields is told record by record.
            .has_headers(false)
            .flexible(true)
            // A `\r` before it is taken off here: the csv crate's own way leaves the `\n` for later, and the line
            // numbers of Windows files would be wrong.
            .terminator(Terminator::Any(b'\n'))
            .from_reader(Source::new(input));
        let (columns, names, first) = (Vec::new(), ByteRecord::new(), None);
        let mut records = Self { csv, columns, names, seen: Seen::default(), first };
        let (line, mut header) = records.read()?.ok_or(Unusable::Empty)?;
        header.trim();
        records.columns = columns_of(line, &header)?;
        records.names = records.without_ours(header);
        records.first = Some(records.parse_next()?.ok_or(Unusable::HeaderOnly { line })?);
        Ok(records)
    }

    pub(crate) fn names(&self) -> &ByteRecord {
        &self.names
    }

    pub(crate) fn next(&mut self) -> Result<Option<Row>, Broken> {
        match self.first.take() {
            Some(row) => Ok(Some(row)),
            None => self.parse_next(),
        }
    }

    fn parse_next(&mut self) -> Result<Option<Row>, Broken> {
        let Some((line, fields)) = self.read()? else {
            return Ok(None);
        };
        let profile = self.parse(line, &fields);
        let end = self.csv.position().byte();
        Ok(Some(Row { line, end, fields: self.without_ours(fields), profile }))
    }

    fn parse(&mut self, line: u64, fields: &ByteRecord) -> Result<Profile, String> {
        let columns = self.columns.len();
        if fields.len() != columns {
            let lines = newlines(fields) + 1;
            let quote =
                if lines > 1 { format!(" and spans {lines} lines; is a quote missing?") } else { String::new() };
            return Err(format!("the first line names {columns} columns, this record has {}{quote}", fields.len()));
        }
        let (mut key, mut attributes) = ("", Map::new());
        for (column, field) in self.columns.iter().zip(fields) {
            match column {
                Column::Key => key = text(KEY, field)?.trim(),
                Column::Attribute(name) if !field.is_empty() => {
                    attributes.insert(name.clone(), Value::from(text(name, field)?));
                }
                Column::Attribute(_) | Column::Ours => {}
            }
        }
        check_address(key)?;
        self.seen.enter(key, line)?;
        Ok(Profile { key: key.to_owned(), attributes: Value::Object(attributes).to_string().into() })
    }

    /// The next record that is no empty line, and the line on which it begins.
    fn read(&mut self) -> Result<Option<(u64, ByteRecord)>, Broken> {
        loop {
            let before = self.csv.position().line();
            self.csv.get_mut().expect_record();
            let mut record = ByteRecord::new();
            let broken = |why| Broken { line: before, why };
            match self.csv.read_byte_record(&mut record) {
                Ok(false) => return Ok(None),
                Ok(true) => {}
                Err(_) if self.csv.get_ref().budget == 0 => return Err(broken(Why::TooLong)),
                Err(error) => return Err(broken(Why::Io(error.into()))),
            }
            // Empty lines before the record are no part of it; its last line break and those in quotes are.
            let is_open = self.csv.get_ref().has_ended;
            let line = self.csv.position().line() - newlines(&record) - u64::from(!is_open);
            if is_open {
                // Every line ends with a line break, the last one too: this one was taken for a part of a field.
                return Err(Broken { line, why: Why::OpenQuote });
            }
            strip_carriage_return(&mut record);
            if record.len() > 1 || record.get(0).is_some_and(|field| !field.is_empty()) {
                return Ok(Some((line, record)));
            }
        }
    }

    fn without_ours(&self, record: ByteRecord) -> ByteRecord {
        if !self.columns.iter().any(|column| matches!(column, Column::Ours)) {
            return record;
        }
        // A record with too many fields keeps them.
        let is_ours = |index: usize| matches!(self.columns.get(index), Some(Column::Ours));
        record.iter().enumerate().filter(|(index, _)| !is_ours(*index)).map(|(_, field)| field).collect()
    }
}

fn columns_of(line: u64, header: &ByteRecord) -> Result<Vec<Column>, Unusable> {
    let names: Result<Vec<&str>, _> = header.iter().map(str::from_utf8).collect();
    let names = names.map_err(|_| Unusable::NotUtf8 { line })?;
    let mut seen = HashSet::new();
    let mut columns = Vec::new();
    for (index, name) in names.iter().copied().enumerate() {
        if name.is_empty() {
            return Err(Unusable::Nameless { line, number: index + 1 });
        }
        let name = if name.trim().eq_ignore_ascii_case(KEY) { KEY } else { name };
        if !seen.insert(name) {
            return Err(Unusable::Twice { line, column: shown(name) });
        }
        columns.push(match name {
            KEY => Column::Key,
            name if OURS.contains(&name) => Column::Ours,
            name => Column::Attribute(name.to_owned()),
        });
    }
    if !seen.contains(KEY) {
        let columns: Vec<_> = names.iter().map(|name| format!("`{}`", shown(name))).collect();
        return Err(Unusable::NoKey { line, columns: columns.join(", ") });
    }
    let has_attributes = columns.iter().any(|column| matches!(column, Column::Attribute(_)));
    if has_attributes { Ok(columns) } else { Err(Unusable::NoAttribute { line }) }
}

/// What spreadsheets do where the comma is the decimal sign.
fn advice(columns: &str) -> &'static str {
    if columns.contains(';') { " (separated by semicolons? use `--delimiter ';'`)" } else { "" }
}

fn check_address(key: &str) -> Result<(), String> {
    if key.is_empty() {
        return Err("there is no e-mail address".to_owned());
    }
    let strict = Options::default().without_display_text().without_domain_literal().with_required_tld();
    match EmailAddress::parse_with_options(key, strict) {
        Ok(_) => Ok(()),
        Err(error) => {
            let error = error.to_string();
            Err(format!("`{}` is no e-mail address: {}", shown(key), error.trim_end_matches('.').to_lowercase()))
        }
    }
}

fn text<'a>(column: &str, field: &'a [u8]) -> Result<&'a str, String> {
    str::from_utf8(field).map_err(|error| {
        format!("`{}` is not UTF-8 from its byte {} on; save the file as UTF-8", shown(column), error.valid_up_to() + 1)
    })
}

/// The beginning of a value, on one line.
fn shown(value: &str) -> String {
    let mut shown: String = value.chars().take(SHOWN).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if value.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

fn newlines(record: &ByteRecord) -> u64 {
    record.as_slice().iter().map(|byte| u64::from(*byte == b'\n')).sum()
}

fn strip_carriage_return(record: &mut ByteRecord) {
    let last = record.len().saturating_sub(1);
    if let Some(stripped) = record.get(last).and_then(|field| field.strip_suffix(b"\r")) {
        let stripped = stripped.to_vec();
        record.truncate(last);
        record.push_field(&stripped);
    }
}

/// Which keys there were, and where, upper and lower case taken as one.
///
/// A hash stands for a key, so that millions of them fit into memory. Two keys that share one, by an accident that a file
/// of ten million keys has with a chance of 1 in 300,000, cost the second a place in the file of failed records. It is
/// imported from there: the next run hashes in another way.
#[derive(Default)]
struct Seen {
    lines: HashMap<u64, u64>,
    hasher: RandomState,
}

impl Seen {
    fn enter(&mut self, key: &str, line: u64) -> Result<(), String> {
        let hash = self.hasher.hash_one(key.to_lowercase());
        let first = *self.lines.entry(hash).or_insert(line);
        if first == line { Ok(()) } else { Err(format!("`{}` was in line {first} already", shown(key))) }
    }
}

/// The file as the csv crate reads it: with a line break at its end, and not without end in one record.
struct Source<R> {
    inner: R,
    /// How much may still be read for the record at hand.
    budget: usize,
    last: u8,
    has_ended: bool,
}

impl<R> Source<R> {
    fn new(inner: R) -> Self {
        Self { inner, budget: 0, last: b'\n', has_ended: false }
    }

    fn expect_record(&mut self) {
        self.budget = LONGEST_RECORD;
    }
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.budget == 0 {
            return Err(io::Error::other("a record without end"));
        }
        let length = loop {
            match self.inner.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        match (length, buffer) {
            (0, [first, ..]) if self.last != b'\n' => {
                *first = b'\n';
                self.last = b'\n';
                Ok(1)
            }
            (0, _) => {
                self.has_ended = true;
                Ok(0)
            }
            (length, buffer) => {
                self.budget = self.budget.saturating_sub(length);
                self.last = buffer[length - 1];
                Ok(length)
            }
        }
    }
}

impl<R> fmt::Debug for Records<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Records").field("names", &self.names).finish_non_exhaustive()
    }
}
