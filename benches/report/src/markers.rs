//! The places of a text where tables belong: from `<!-- figures: NAME -->` to `<!-- end -->`.

use crate::Result;

const END: &str = "<!-- end -->";

/// The text with each of these tables, by its name, in its place. Each has one, and no other place is there.
pub(crate) fn fill(text: &str, tables: &[(&str, String)]) -> Result<String> {
    let mut missing: Vec<_> = tables.iter().collect();
    let mut filled = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        filled += line;
        filled.push('\n');
        let Some(name) = marked(line) else { continue };
        let index = missing.iter().position(|(table, _)| *table == name);
        let index = index.ok_or_else(|| format!("no table is left for {line}"))?;
        // What stands there makes way.
        let end = lines.by_ref().find(|line| *line == END || marked(line).is_some());
        if end != Some(END) {
            return Err(format!("{line} has no {END}"));
        }
        let (_, table) = missing.remove(index);
        filled += &format!("\n{table}\n{END}\n");
    }
    match missing.first() {
        Some((name, _)) => Err(format!("there is no {}", marker(name))),
        None => Ok(filled),
    }
}

fn marked(line: &str) -> Option<&str> {
    line.strip_prefix("<!-- figures: ")?.strip_suffix(" -->")
}

fn marker(name: &str) -> String {
    format!("<!-- figures: {name} -->")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables() -> [(&'static str, String); 2] {
        [("one", "| 1 |\n".to_owned()), ("two", "| 2 |\n".to_owned())]
    }

    #[test]
    fn tables_come_to_their_places() {
        let empty =
            "before\n<!-- figures: two -->\n<!-- end -->\nbetween\n<!-- figures: one -->\nold\n<!-- end -->\nafter\n";
        let full = "before\n<!-- figures: two -->\n\n| 2 |\n\n<!-- end -->\nbetween\n<!-- figures: one -->\n\n| 1 |\n\n\
                    <!-- end -->\nafter\n";
        assert_eq!(fill(empty, &tables()).as_deref(), Ok(full));
        assert_eq!(fill(full, &tables()).as_deref(), Ok(full));
    }

    #[test]
    fn each_table_has_one_place_and_each_place_one_table() {
        let (one, two) = ("<!-- figures: one -->\n<!-- end -->\n", "<!-- figures: two -->\n<!-- end -->\n");
        for text in [
            one.to_owned(),
            [one, one, two].concat(),
            [one, two, "<!-- figures: three -->\n<!-- end -->\n"].concat(),
            ["<!-- figures: one -->\n", two].concat(),
            [one, "<!-- figures: two -->\n"].concat(),
        ] {
            assert!(fill(&text, &tables()).is_err(), "{text}");
        }
    }
}
