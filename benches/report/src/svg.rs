//! Horizontal bars, as SVG that is readable on light and on dark.

use crate::{Result, names::Role};

const WIDTH: f64 = 760.0;
const MARGIN: f64 = 8.0;
/// Where the bars begin; their labels end before it.
const BARS: f64 = 212.0;
const ROW: f64 = 23.0;
const BAR: f64 = 13.0;
const GAP: f64 = 7.0;
/// No letter is much wider, on average, in any font that is likely.
const LETTER: f64 = 8.0;

const STYLE: &str = "\
text { font: 13px system-ui, -apple-system, 'Segoe UI', 'Noto Sans', Helvetica, Arial, sans-serif; fill: #1f2328 }
.title { font-size: 16px; font-weight: 600 }
.note { fill: #59636e }
.group, .of-ours { font-weight: 600 }
.label { text-anchor: end }
.ours { fill: #218bff }
.other { fill: #868f99 }
.yardstick { fill: none; stroke: #59636e; stroke-width: 1.5 }
.line { stroke: #1f2328; stroke-width: 1.5 }
.reference { stroke: #59636e; stroke-dasharray: 4 3 }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc }
.note { fill: #a5adb8 }
.ours { fill: #388bfd }
.other { fill: #6e7681 }
.yardstick { stroke: #a5adb8 }
.line { stroke: #f0f6fc }
.reference { stroke: #a5adb8 }
}
";

/// Bars that have a scale in common.
#[derive(Debug)]
pub(crate) struct Chart {
    pub(crate) title: &'static str,
    /// What a bar's length is.
    pub(crate) note: &'static str,
    /// A line is drawn here.
    pub(crate) reference: Option<f64>,
    /// Whether it is said what the looks of a bar mean; the labels alone may say it.
    pub(crate) has_legend: bool,
    pub(crate) groups: Vec<Group>,
}

#[derive(Debug)]
pub(crate) struct Group {
    /// Empty where there is but one.
    pub(crate) title: String,
    pub(crate) bars: Vec<Bar>,
}

#[derive(Debug)]
pub(crate) struct Bar {
    pub(crate) label: String,
    pub(crate) role: Role,
    pub(crate) length: f64,
    /// From where to where a whisker goes.
    pub(crate) spread: Option<[f64; 2]>,
    /// At the end of the bar.
    pub(crate) text: String,
}

impl Bar {
    fn reach(&self) -> f64 {
        self.spread.map_or(self.length, |[_, high]| self.length.max(high))
    }
}

impl Chart {
    /// The whole picture.
    pub(crate) fn svg(&self) -> Result<String> {
        let scale = self.scale().ok_or_else(|| format!("{}: nothing is longer than nothing", self.title))?;
        let mut shapes = Shapes { text: String::new(), y: MARGIN, scale };
        shapes.heading(self);
        let top = shapes.y;
        for group in &self.groups {
            shapes.group(group);
        }
        if let Some(reference) = self.reference {
            shapes.vertical("reference", reference, [top, shapes.y]);
        }
        if self.has_legend {
            shapes.legend();
        }
        let height = shapes.y + MARGIN;
        Ok(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
             height=\"{height}\" role=\"img\" aria-labelledby=\"title desc\">\n<title id=\"title\">{}</title>\n\
             <desc id=\"desc\">{}</desc>\n<style>\n{STYLE}</style>\n{}</svg>\n",
            escaped(self.title),
            escaped(&self.description()),
            shapes.text,
        ))
    }

    /// As long as every bar leaves room for its text.
    fn scale(&self) -> Option<f64> {
        let longest = |bar: &Bar| (WIDTH - MARGIN - BARS - GAP - width(&bar.text)) / bar.reach();
        self.bars().filter(|bar| bar.reach() > 0.0).map(longest).min_by(f64::total_cmp)
    }

    fn bars(&self) -> impl Iterator<Item = &Bar> {
        self.groups.iter().flat_map(|group| &group.bars)
    }

    /// What is to be seen, for who does not see it.
    fn description(&self) -> String {
        let of_group = |group: &Group| {
            let bars: Vec<_> = group.bars.iter().map(|bar| format!("{}: {}", bar.label, bar.text)).collect();
            let before = if group.title.is_empty() { String::new() } else { format!("{}. ", group.title) };
            format!("{before}{}.", bars.join("; "))
        };
        let groups: Vec<_> = self.groups.iter().map(of_group).collect();
        format!("{} {}", self.note, groups.join(" "))
    }
}

struct Shapes {
    text: String,
    /// Where there is room.
    y: f64,
    scale: f64,
}

impl Shapes {
    fn heading(&mut self, chart: &Chart) {
        self.label("title", MARGIN, 18.0, chart.title);
        self.y += 22.0;
        self.label("note", MARGIN, 16.0, chart.note);
        self.y += 30.0;
    }

    fn group(&mut self, group: &Group) {
        if !group.title.is_empty() {
            self.label("group", MARGIN, 16.0, &group.title);
            self.y += ROW;
        }
        for bar in &group.bars {
            self.bar(bar);
        }
        self.y += GAP;
    }

    fn bar(&mut self, bar: &Bar) {
        let of_ours = if bar.role == Role::Ours { " of-ours" } else { "" };
        self.label(&format!("label{of_ours}"), BARS - GAP, 15.0, &bar.label);
        self.rectangle(bar.role, BARS, bar.length.max(0.0) * self.scale);
        if let Some([low, high]) = bar.spread {
            let middle = self.y + ROW / 2.0 - 1.0;
            let [from, to] = [low.max(0.0), high].map(|end| BARS + end * self.scale);
            self.text += &format!(
                "<line class=\"line\" x1=\"{from:.1}\" y1=\"{middle:.1}\" x2=\"{to:.1}\" y2=\"{middle:.1}\"/>\n"
            );
            // An end beyond the plot has no stroke.
            for end in [low, high].into_iter().filter(|end| *end >= 0.0) {
                self.vertical("line", end, [middle - 4.0, middle + 4.0]);
            }
        }
        self.label(&format!("value{of_ours}"), BARS + bar.reach().max(0.0) * self.scale + GAP, 15.0, &bar.text);
        self.y += ROW;
    }

    fn legend(&mut self) {
        self.y += GAP;
        let mut x = BARS;
        for (role, meaning) in
            [(Role::Ours, "this layer"), (Role::Other, "others"), (Role::Yardstick, "the least, to compare with")]
        {
            self.rectangle(role, x, BAR);
            self.label("note", x + BAR + GAP, 15.0, meaning);
            x += BAR + 3.0 * GAP + width(meaning);
        }
        self.y += ROW;
    }

    fn rectangle(&mut self, role: Role, x: f64, width: f64) {
        let class = match role {
            Role::Ours => "ours",
            Role::Other => "other",
            Role::Yardstick => "yardstick",
        };
        let y = self.y + (ROW - BAR) / 2.0 - 1.0;
        self.text +=
            &format!("<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{BAR}\"/>\n");
    }

    fn vertical(&mut self, class: &str, value: f64, [from, to]: [f64; 2]) {
        let x = BARS + value * self.scale;
        self.text +=
            &format!("<line class=\"{class}\" x1=\"{x:.1}\" y1=\"{from:.1}\" x2=\"{x:.1}\" y2=\"{to:.1}\"/>\n");
    }

    /// Text, of which the line is so far below where there is room.
    fn label(&mut self, class: &str, x: f64, below: f64, text: &str) {
        let y = self.y + below;
        self.text += &format!("<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{}</text>\n", escaped(text));
    }
}

#[allow(clippy::cast_precision_loss, reason = "a text is short")]
fn width(text: &str) -> f64 {
    text.chars().count() as f64 * LETTER
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(length: f64, text: &str) -> Bar {
        Bar { label: "a < b".to_owned(), role: Role::Ours, length, spread: None, text: text.to_owned() }
    }

    fn chart(bars: Vec<Bar>) -> Chart {
        Chart {
            title: "Costs & gains",
            note: "In pence.",
            reference: None,
            has_legend: true,
            groups: vec![Group { title: String::new(), bars }],
        }
    }

    #[test]
    fn what_xml_would_read_is_escaped() {
        let svg = chart(vec![bar(1.0, "1 > 0")]).svg().expect("a bar has a length");
        assert!(svg.contains("<title id=\"title\">Costs &amp; gains</title>"));
        assert!(svg.contains("<desc id=\"desc\">In pence. a &lt; b: 1 &gt; 0.</desc>"));
    }

    #[test]
    fn the_text_of_every_bar_has_room() {
        let bars = vec![bar(10.0, ""), bar(9.0, "a text that takes a third of the plot")];
        let chart = chart(bars);
        let scale = chart.scale().expect("a bar has a length");
        for bar in chart.bars() {
            assert!(BARS + bar.length * scale + GAP + width(&bar.text) <= WIDTH - MARGIN + 1e-9);
        }
    }

    #[test]
    fn a_chart_of_nothing_is_none() {
        assert!(chart(vec![bar(0.0, "0")]).svg().is_err());
    }
}
