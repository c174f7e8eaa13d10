//! The file of the records that failed: as they were, each with its line and the reason before it.

use std::{
    fmt,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use csv::{ByteRecord, Writer, WriterBuilder};

use crate::records::{OURS, Row};

pub(crate) struct FailedFile {
    path: PathBuf,
    csv: Writer<File>,
    is_empty: bool,
}

impl FailedFile {
    /// Makes the file at once, so that one that cannot be made is known before anything is sent. Never overwrites one.
    pub(crate) fn create(path: &Path, names: &ByteRecord, delimiter: u8) -> io::Result<Self> {
        let file = File::create_new(path)?;
        // A record with a wrong number of fields goes in as it is. Ours come first, so that the others keep their place.
        let mut csv = WriterBuilder::new().delimiter(delimiter).flexible(true).from_writer(file);
        csv.write_byte_record(&OURS.iter().map(|name| name.as_bytes()).chain(names).collect())?;
        csv.flush()?;
        Ok(Self { path: path.to_owned(), csv, is_empty: true })
    }

    /// Makes it in this folder, named after the input: `customers.failed.csv`, or `customers.failed-2.csv` and so on if
    /// there is one.
    pub(crate) fn create_beside(folder: &Path, input: &Path, names: &ByteRecord, delimiter: u8) -> io::Result<Self> {
        let stem = input.file_stem().unwrap_or_default().to_string_lossy();
        let mut number = 1_u32;
        loop {
            let suffix = if number == 1 { String::new() } else { format!("-{number}") };
            match Self::create(&folder.join(format!("{stem}.failed{suffix}.csv")), names, delimiter) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
                result => return result,
            }
        }
    }

    /// Writes a record. It is in the file when this returns, whatever happens to the process then.
    pub(crate) fn write(&mut self, row: &Row, reason: &str) -> io::Result<()> {
        let line = row.line.to_string();
        let ours = [line.as_bytes(), reason.as_bytes()];
        self.csv.write_byte_record(&ours.into_iter().chain(&row.fields).collect())?;
        self.is_empty = false;
        self.csv.flush()
    }

    /// Where it is; `None` if nothing failed: then it goes.
    pub(crate) fn finish(self) -> Option<PathBuf> {
        (!self.is_empty).then(|| self.path.clone())
    }
}

/// Nothing is left behind for nothing.
impl Drop for FailedFile {
    fn drop(&mut self) {
        if self.is_empty {
            // Only its header is in it. Who cannot remove it has lost nothing.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl fmt::Debug for FailedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FailedFile").field("path", &self.path).finish_non_exhaustive()
    }
}
