//! Tables with borders, as `etcdctl -w table` draws them: header in capitals and centred, cells right-aligned.

/// A header and rows of as many cells.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) header: Vec<&'static str>,
    pub(crate) rows: Vec<Vec<String>>,
}

impl Table {
    /// The rows with commas between the cells: what `-w simple` prints.
    pub(crate) fn lines(&self) -> String {
        self.rows.iter().map(|row| row.join(", ") + "\n").collect()
    }

    /// The drawn table.
    pub(crate) fn draw(&self) -> String {
        let header: Vec<String> =
            self.header.iter().map(|title| title.replace('_', " ").to_uppercase()).collect();
        let widths: Vec<usize> = (0..header.len())
            .map(|column| {
                self.rows.iter().map(|row| width(&row[column])).fold(width(&header[column]), usize::max)
            })
            .collect();
        let border = border(&widths);
        let mut drawn = format!("{border}{}{border}", row(&header, &widths, centred));
        for cells in &self.rows {
            drawn.push_str(&row(cells, &widths, |cell, width| format!("{cell:>width$}")));
        }
        if !self.rows.is_empty() {
            drawn.push_str(&border);
        }
        drawn
    }
}

fn width(text: &str) -> usize {
    text.chars().count()
}

fn border(widths: &[usize]) -> String {
    let dashes: String = widths.iter().map(|width| "-".repeat(width + 2) + "+").collect();
    format!("+{dashes}\n")
}

fn row(cells: &[String], widths: &[usize], align: impl Fn(&str, usize) -> String) -> String {
    let cells: String =
        cells.iter().zip(widths).map(|(cell, width)| format!(" {} |", align(cell, *width))).collect();
    format!("|{cells}\n")
}

fn centred(text: &str, wanted: usize) -> String {
    let gap = wanted - width(text);
    let left = gap / 2;
    format!("{}{text}{}", " ".repeat(left), " ".repeat(gap - left))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_is_centred_and_cells_are_right_aligned() {
        let table = Table {
            header: vec!["endpoint", "is_leader"],
            rows: vec![vec!["127.0.0.1:2379".into(), "true".into()], vec!["b".into(), "false".into()]],
        };
        let drawn = "\
+----------------+-----------+
|    ENDPOINT    | IS LEADER |
+----------------+-----------+
| 127.0.0.1:2379 |      true |
|              b |     false |
+----------------+-----------+
";
        assert_eq!(table.draw(), drawn);
        assert_eq!(table.lines(), "127.0.0.1:2379, true\nb, false\n");
    }
}
