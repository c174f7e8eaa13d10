//! The plots, and the tables of `BENCHMARKS.md`, from what the benchmarks saved. From the root of the repository:
//!
//! ```sh
//! cargo run --manifest-path benches/report/Cargo.toml               # writes them
//! cargo run --manifest-path benches/report/Cargo.toml -- --check    # fails if they are not what the data gives
//! cargo run --manifest-path benches/report/Cargo.toml -- --machine  # saves what machine this is
//! ```

#![allow(clippy::print_stderr, reason = "what is wrong is said")]

mod data;
mod machine;
mod markers;
mod names;
mod numbers;
mod plots;
mod svg;
mod tables;

use std::{env, fs, path::Path, process::ExitCode};

const COMMAND: &str = "cargo run --manifest-path benches/report/Cargo.toml";
const TEXT: &str = "BENCHMARKS.md";

/// What is wrong, and what to do about it.
type Result<T> = std::result::Result<T, String>;

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => write(),
        ["--check"] => check(),
        ["--machine"] => machine::save(),
        _ => Err(format!("`{COMMAND}` writes, `… -- --check` compares, `… -- --machine` saves what machine this is")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(wrong) => {
            eprintln!("{wrong}");
            ExitCode::FAILURE
        }
    }
}

fn write() -> Result<()> {
    documents()?.into_iter().try_for_each(|(path, text)| save(&path, &text))
}

fn check() -> Result<()> {
    let is_stale = |(path, text): &(String, String)| fs::read_to_string(path).is_ok_and(|there| there == *text);
    let stale: Vec<_> = documents()?.into_iter().filter(|document| !is_stale(document)).map(|(path, _)| path).collect();
    if stale.is_empty() {
        return Ok(());
    }
    Err(format!("not what {} gives: {}; run `{COMMAND}`", data::DIRECTORY, stale.join(", ")))
}

/// Each file, and what has to be in it.
fn documents() -> Result<Vec<(String, String)>> {
    let text = fs::read_to_string(TEXT)
        .map_err(|error| format!("{TEXT}: {error}; run this from the root of the repository"))?;
    let mut documents = plots::all()?;
    documents
        .push((TEXT.to_owned(), markers::fill(&text, &tables::all()?).map_err(|wrong| format!("{TEXT}: {wrong}"))?));
    Ok(documents)
}

fn save(path: &str, text: &str) -> Result<()> {
    let directory = Path::new(path).parent().unwrap_or(Path::new(""));
    fs::create_dir_all(directory).and_then(|()| fs::write(path, text)).map_err(|error| format!("{path}: {error}"))
}
