//! The plots.

use crate::{
    Result,
    data::{Data, Row},
    names::{self, Role},
    numbers::grouped,
    svg::{Bar, Chart, Group},
};

type Draw = fn(&Data) -> Result<Chart>;

/// The name of each, that of its data, and how it is drawn.
const PLOTS: [(&str, &str, Draw); 5] = [
    ("price", "peers", price),
    ("time", "peers", time),
    ("loopback", "loopback", loopback),
    ("refresh", "refresh", refresh),
    ("scaling", "scaling", scaling),
];

/// The file of each, and what has to be in it.
pub(crate) fn all() -> Result<Vec<(String, String)>> {
    let of = |(plot, name, draw): (&str, &str, Draw)| {
        Ok((format!("benches/plots/{plot}.svg"), draw(&Data::read(name)?)?.svg()?))
    };
    PLOTS.into_iter().map(of).collect()
}

fn price(peers: &Data) -> Result<Chart> {
    let bars = of_empty_bodies(peers, |row, name| {
        let allocations = match row.text("allocations")? {
            "0" => "no allocation".to_owned(),
            "1" => "1 allocation".to_owned(),
            number => format!("{} allocations", grouped(number)),
        };
        let sends_again = if name.sends_again { ", sends again" } else { "" };
        let text = format!("{}, {allocations}{sends_again}", grouped(row.text("instructions")?));
        Ok(Bar { text, ..bar(row, row.number("instructions")?)? })
    })?;
    Ok(Chart {
        title: "What one request costs, with a token at hand",
        note: "Instructions over the bare service, and the blocks it asks of the allocator; an empty body.",
        reference: None,
        has_legend: true,
        groups: vec![sorted(bars)],
    })
}

fn time(peers: &Data) -> Result<Chart> {
    let limit = peers.row(&[("variant", "static-header"), ("body_bytes", "0")])?.number("ns")?;
    let bars = of_empty_bodies(peers, |row, _| {
        let spread = Some([row.number("ns_p10")? / limit, row.number("ns_p90")? / limit]);
        let text = format!("{} ×", row.text("times_the_limit")?);
        Ok(Bar { spread, text, ..bar(row, row.number("ns")? / limit)? })
    })?;
    Ok(Chart {
        title: "What one request takes, with a token at hand",
        note: "Nanoseconds over the bare service, as a multiple of the static header’s; whiskers from p10 to p90.",
        reference: Some(1.0),
        has_legend: true,
        groups: vec![sorted(bars)],
    })
}

fn of_empty_bodies(peers: &Data, draw: impl Fn(Row<'_>, &names::Name) -> Result<Bar>) -> Result<Vec<Bar>> {
    let mut bars = Vec::new();
    for row in peers.rows() {
        if row.text("body_bytes")? == "0" {
            bars.push(draw(row, &names::of(row.text("variant")?)?)?);
        }
    }
    Ok(bars)
}

fn sorted(mut bars: Vec<Bar>) -> Group {
    bars.sort_by(|one, other| one.length.total_cmp(&other.length));
    Group { title: String::new(), bars }
}

fn loopback(data: &Data) -> Result<Chart> {
    let mut groups: Vec<Group> = Vec::new();
    for row in data.rows() {
        // Against itself it is always the same.
        if row.text("variant")? == "static header" {
            let title = format!("{}, {}", row.text("protocol")?, names::body(row.text("body_bytes")?));
            groups.push(Group { title, bars: Vec::new() });
        } else if let Some(group) = groups.last_mut() {
            group.bars.push(with_spread(row, "times_static", ["p10", "p90"])?);
        }
    }
    Ok(Chart {
        title: "Over a network, however short",
        note: "Requests a second over loopback, as a multiple of the static header’s; whiskers from p10 to p90.",
        reference: Some(1.0),
        has_legend: false,
        groups,
    })
}

fn scaling(data: &Data) -> Result<Chart> {
    let bars = data.rows().map(|row| with_spread(row, "ratio", ["ratio_p10", "ratio_p90"])).collect::<Result<_>>()?;
    Ok(Chart {
        title: "What a second thread adds",
        note: "Requests a second of two threads, as a multiple of those of one; whiskers from p10 to p90.",
        reference: Some(1.0),
        has_legend: false,
        groups: vec![Group { title: String::new(), bars }],
    })
}

fn with_spread(row: Row<'_>, length: &str, [low, high]: [&str; 2]) -> Result<Bar> {
    let spread = Some([row.number(low)?, row.number(high)?]);
    Ok(Bar { spread, text: format!("{} ×", row.text(length)?), ..bar(row, row.number(length)?)? })
}

fn bar(row: Row<'_>, length: f64) -> Result<Bar> {
    let name = names::of(row.text("variant")?)?;
    Ok(Bar { label: name.text.to_owned(), role: name.role, length, spread: None, text: String::new() })
}

fn refresh(data: &Data) -> Result<Chart> {
    let states = [
        ("timer", "the timer alone", Role::Yardstick),
        ("quiet", "no refresh", Role::Other),
        ("refreshing", "during refreshes", Role::Ours),
    ];
    let of_quantile = |(column, title): (&str, &str)| {
        let bar = |(state, label, role): (&str, &str, Role)| {
            let row = data.row(&[("state", state)])?;
            let text = format!("{} ns", grouped(row.text(column)?));
            Ok(Bar { label: label.to_owned(), role, length: row.number(column)?, spread: None, text })
        };
        Ok(Group { title: title.to_owned(), bars: states.into_iter().map(bar).collect::<Result<_>>()? })
    };
    let quantiles = [("p50_ns", "p50"), ("p99_ns", "p99"), ("p99_9_ns", "p99.9")];
    Ok(Chart {
        title: "What a request sees of a refresh",
        note: "Nanoseconds of one request, with replay, to a service that answers at once; medians of the rounds.",
        reference: None,
        has_legend: false,
        groups: quantiles.into_iter().map(of_quantile).collect::<Result<_>>()?,
    })
}
