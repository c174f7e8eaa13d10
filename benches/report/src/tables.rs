//! The tables of `BENCHMARKS.md`.

use crate::{
    Result,
    data::{Data, Row},
    names::{self, Role},
    numbers::grouped,
};

type Write = fn(&Data) -> Result<String>;

/// The name of each, that of its data, and how it is written.
const TABLES: [(&str, &str, Write); 12] = [
    ("peers", "peers", |data| peers(data, "0")),
    ("peers-1-kib", "peers", |data| peers(data, "1024")),
    ("instructions", "instructions", instructions),
    ("floor", "instructions", floor),
    ("stampede", "stampede", stampede),
    ("scaling", "scaling", scaling),
    ("loopback", "loopback", loopback),
    ("refresh", "refresh", refresh),
    ("refresh-counts", "refresh", refresh_counts),
    ("memory", "memory", memory),
    ("versions", "versions", |data| pairs(data, [("crate", "crate"), ("version", "version")])),
    ("machine", "machine", |data| pairs(data, [("what", ""), ("value", "")])),
];

/// The instructions over a static header that were asked for, without replay.
const WANTED: f64 = 250.0;

/// The name of each, and its text.
pub(crate) fn all() -> Result<Vec<(&'static str, String)>> {
    TABLES.into_iter().map(|(table, name, write)| Ok((table, write(&Data::read(name)?)?))).collect()
}

fn peers(data: &Data, body_bytes: &str) -> Result<String> {
    let mut table = Table::new(&[
        Left("variant"),
        Left("sends again"),
        Right("instructions"),
        Right("time (ns)"),
        Right("p10 to p90 (ns)"),
        Right("× static header"),
        Right("allocations"),
        Right("allocated (bytes)"),
    ]);
    for row in data.rows() {
        if row.text("body_bytes")? == body_bytes {
            let sends_again = if names::of(row.text("variant")?)?.sends_again { "yes" } else { "–" };
            let [instructions, ns, times, allocations, bytes] =
                figures(row, ["instructions", "ns", "times_the_limit", "allocations", "bytes"])?;
            let spread = range(row, ["ns_p10", "ns_p90"])?;
            let name = variant(row)?;
            table.add([name, sends_again.to_owned(), instructions, ns, spread, times, allocations, bytes]);
        }
    }
    Ok(table.text())
}

fn instructions(data: &Data) -> Result<String> {
    let mut table = Table::new(&[
        Left("variant"),
        Right("over bare, empty body"),
        Right("over bare, 1 KiB"),
        Right("over static header, empty body"),
        Right("over static header, 1 KiB"),
    ]);
    for name in data.distinct("variant")? {
        let [empty, full] = bodies(data, name)?;
        let [empty_bare, empty_fixed] = figures(empty, ["over_bare", "over_static_header"])?;
        let [full_bare, full_fixed] = figures(full, ["over_bare", "over_static_header"])?;
        table.add([variant(empty)?, empty_bare, full_bare, empty_fixed, full_fixed]);
    }
    Ok(table.text())
}

/// What each step adds to the one before.
fn floor(data: &Data) -> Result<String> {
    let mut table = Table::new(&[Left("part"), Right("empty body"), Right("body of 1 KiB")]);
    let over = |this, other| -> Result<[f64; 2]> {
        let [this, other] = [bodies(data, this)?, bodies(data, other)?];
        Ok([
            this[0].number("over_bare")? - other[0].number("over_bare")?,
            this[1].number("over_bare")? - other[1].number("over_bare")?,
        ])
    };
    let floor = over("floor", "static header")?;
    for (part, counts) in [
        ("the static header, over the bare service", over("static header", "bare")?),
        ("the floor, over the static header", floor),
        ("of 250 over the static header, left for all else", floor.map(|floor| WANTED - floor)),
        ("**without replay, over the floor**", over("without replay", "floor")?),
        ("**with replay, over without**", over("with replay", "without replay")?),
    ] {
        let [empty, full] = counts.map(|count| grouped(&count.to_string()));
        table.add([part.to_owned(), empty, full]);
    }
    Ok(table.text())
}

fn bodies<'a>(data: &'a Data, variant: &str) -> Result<[Row<'a>; 2]> {
    let of = |length| data.row(&[("variant", variant), ("body_bytes", length)]);
    Ok([of("0")?, of("1024")?])
}

fn stampede(data: &Data) -> Result<String> {
    let mut table = Table::new(&[
        Left("against the tasks alone"),
        Right("callers"),
        Right("token requests"),
        Right("tasks alone (ms)"),
        Right("with the layer (ms)"),
        Right("ratio"),
        Right("p10 to p90"),
    ]);
    for row in data.rows() {
        let [callers, token_requests, alone, with_layer, ratio] =
            figures(row, ["callers", "token_requests", "alone_ms", "with_layer_ms", "ratio"])?;
        let spread = range(row, ["ratio_p10", "ratio_p90"])?;
        table.add([row.text("against")?.to_owned(), callers, token_requests, alone, with_layer, ratio, spread]);
    }
    Ok(table.text())
}

fn scaling(data: &Data) -> Result<String> {
    let mut table = Table::new(&[
        Left("variant"),
        Right("one thread (requests/s)"),
        Right("two threads (requests/s)"),
        Right("two over one"),
        Right("p10 to p90"),
    ]);
    for row in data.rows() {
        let [one, two, ratio] = figures(row, ["one_thread_per_s", "two_threads_per_s", "ratio"])?;
        table.add([variant(row)?, one, two, ratio, range(row, ["ratio_p10", "ratio_p90"])?]);
    }
    Ok(table.text())
}

fn loopback(data: &Data) -> Result<String> {
    let mut table = Table::new(&[
        Left("protocol"),
        Left("body"),
        Left("variant"),
        Right("requests/s"),
        Right("× static header"),
        Right("p10 to p90"),
    ]);
    for row in data.rows() {
        let [per_second, times] = figures(row, ["requests_per_s", "times_static"])?;
        let body = names::body(row.text("body_bytes")?).to_owned();
        table.add([
            row.text("protocol")?.to_owned(),
            body,
            variant(row)?,
            per_second,
            times,
            range(row, ["p10", "p90"])?,
        ]);
    }
    Ok(table.text())
}

fn refresh(data: &Data) -> Result<String> {
    let mut table = Table::new(&[
        Left("quantile"),
        Right("timer alone (ns)"),
        Right("no refresh (ns)"),
        Right("during refreshes (ns)"),
        Right("added (ns)"),
        Right("p10 to p90 (ns)"),
    ]);
    let state = |state| data.row(&[("state", state)]);
    let (timer, quiet, refreshing) = (state("timer")?, state("quiet")?, state("refreshing")?);
    for (column, title) in [("p50", "p50"), ("p99", "p99"), ("p99_9", "p99.9")] {
        let of = |row: Row<'_>| row.text(&format!("{column}_ns")).map(grouped);
        let added = grouped(refreshing.text(&format!("added_{column}_ns"))?);
        let spread = range(refreshing, [&format!("added_{column}_p10"), &format!("added_{column}_p90")])?;
        table.add([title.to_owned(), of(timer)?, of(quiet)?, of(refreshing)?, added, spread]);
    }
    Ok(table.text())
}

fn refresh_counts(data: &Data) -> Result<String> {
    let mut table = Table::new(&[Left("state"), Right("requests"), Right("token requests")]);
    for (state, title) in [("quiet", "no refresh"), ("refreshing", "during refreshes")] {
        let [requests, refreshes] = figures(data.row(&[("state", state)])?, ["requests", "refreshes"])?;
        table.add([title.to_owned(), requests, refreshes]);
    }
    Ok(table.text())
}

fn memory(data: &Data) -> Result<String> {
    let mut table = Table::new(&[Left("what"), Right("blocks"), Right("bytes")]);
    for what in data.distinct("what")? {
        // A size has no blocks.
        let blocks = data.row(&[("what", what), ("unit", "blocks")]).and_then(|row| row.text("figure")).unwrap_or("-");
        let bytes = data.row(&[("what", what), ("unit", "bytes")])?.text("figure")?;
        table.add([what.to_owned(), grouped(blocks), grouped(bytes)]);
    }
    Ok(table.text())
}

/// Text beside text.
fn pairs(data: &Data, [left, right]: [(&str, &'static str); 2]) -> Result<String> {
    let mut table = Table::new(&[Left(left.1), Left(right.1)]);
    for row in data.rows() {
        table.add([row.text(left.0)?.to_owned(), row.text(right.0)?.to_owned()]);
    }
    Ok(table.text())
}

fn variant(row: Row<'_>) -> Result<String> {
    let name = names::of(row.text("variant")?)?;
    Ok(if name.role == Role::Ours { format!("**{}**", name.text) } else { name.text.to_owned() })
}

fn figures<const N: usize>(row: Row<'_>, columns: [&str; N]) -> Result<[String; N]> {
    let mut figures = [const { String::new() }; N];
    for (figure, column) in figures.iter_mut().zip(columns) {
        *figure = grouped(row.text(column)?);
    }
    Ok(figures)
}

fn range(row: Row<'_>, [low, high]: [&str; 2]) -> Result<String> {
    Ok(format!("{} to {}", grouped(row.text(low)?), grouped(row.text(high)?)))
}

/// The title of a column, and where its values stand.
#[derive(Clone, Copy, Debug)]
enum Column {
    Left(&'static str),
    Right(&'static str),
}

use Column::{Left, Right};

struct Table {
    text: String,
}

impl Table {
    fn new(columns: &[Column]) -> Self {
        let mut table = Self { text: String::new() };
        table.add(columns.iter().map(|(Left(title) | Right(title))| (*title).to_owned()));
        table.add(columns.iter().map(|column| if let Left(_) = column { "---" } else { "---:" }.to_owned()));
        table
    }

    fn add(&mut self, row: impl IntoIterator<Item = String>) {
        let cells: Vec<_> = row.into_iter().map(|cell| cell.replace('|', "\\|")).collect();
        self.text += &format!("| {} |\n", cells.join(" | "));
    }

    fn text(self) -> String {
        self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_says_where_its_figures_stand() {
        let data = "variant,one_thread_per_s,two_threads_per_s,ratio,ratio_p10,ratio_p90\nwith replay,12345,23456,1.900,1.800,2.000\n";
        let table = scaling(&Data::parse("scaling", data).expect("it is well-formed")).expect("all columns are there");
        assert_eq!(
            table,
            "| variant | one thread (requests/s) | two threads (requests/s) | two over one | p10 to p90 |\n\
             | --- | ---: | ---: | ---: | ---: |\n\
             | **apsis-auth, with replay** | 12,345 | 23,456 | 1.900 | 1.800 to 2.000 |\n"
        );
    }

    #[test]
    fn what_250_leaves_beside_the_floor_is_computed() {
        let rows = ["bare,0", "static header,354", "floor,592", "without replay,717", "with replay,1711"];
        let of = |length: &str| rows.map(|row| row.replacen(',', &format!(",{length},"), 1) + "\n").concat();
        let data = format!("variant,body_bytes,over_bare\n{}{}", of("0"), of("1024"));
        let table = floor(&Data::parse("instructions", &data).expect("it is well-formed")).expect("all rows are there");
        assert!(table.contains("| of 250 over the static header, left for all else | 12 | 12 |\n"), "{table}");
        assert!(table.contains("| **without replay, over the floor** | 125 | 125 |\n"), "{table}");
    }
}
