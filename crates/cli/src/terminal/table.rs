//! Plain tables: columns two spaces apart, numbers to the right, no lines that would have to be cut away again.

/// A table under construction.
#[derive(Clone, Debug, Default)]
pub struct Table {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
    right: Vec<bool>,
}

impl Table {
    /// A table with these column names; a name that starts with `>` makes its column stand to the right.
    pub fn new<'a>(columns: impl IntoIterator<Item = &'a str>) -> Self {
        let (header, right) =
            columns.into_iter().map(|name| (name.trim_start_matches('>').to_owned(), name.starts_with('>'))).unzip();
        Self { header, rows: Vec::new(), right }
    }

    /// Adds a row; missing cells are empty.
    pub fn row<T: Into<String>>(&mut self, cells: impl IntoIterator<Item = T>) -> &mut Self {
        self.rows.push(cells.into_iter().map(Into::into).collect());
        self
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table as text, every line indented by so many spaces. Without column names there is no header line.
    pub fn render(&self, indent: usize) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0).max(self.header.len());
        let named = self.header.iter().any(|name| !name.is_empty());
        let lines: Vec<&Vec<String>> = named.then_some(&self.header).into_iter().chain(&self.rows).collect();
        let width = |column: usize| {
            lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();

        let mut out = String::new();
        for line in lines {
            let mut text = " ".repeat(indent);
            for (column, width) in widths.iter().enumerate() {
                let cell = line.get(column).map_or("", String::as_str);
                let gap = if column == 0 { "" } else { "  " };
                let width = *width;
                if self.right.get(column).copied().unwrap_or(false) {
                    text.push_str(&format!("{gap}{cell:>width$}"));
                } else {
                    text.push_str(&format!("{gap}{cell:<width$}"));
                }
            }
            out.push_str(text.trim_end());
            out.push('\n');
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(["tensor", ">values"]);
        table.row(["embed_tokens.weight", "1,024"]).row(["norm.weight", "32"]);
        assert_eq!(
            table.render(2),
            "  tensor               values\n  embed_tokens.weight   1,024\n  norm.weight              32\n"
        );
    }

    #[test]
    fn short_rows_leave_no_trailing_spaces() {
        let mut table = Table::new(["", "", ""]);
        table.row(["device", "cpu", "no GPU in this build"]).row(["dtype", "f32"]);
        assert_eq!(table.render(0), "device  cpu  no GPU in this build\ndtype   f32\n");
    }

    #[test]
    fn letters_are_counted_not_bytes() {
        let mut table = Table::new(["", ""]);
        table.row(["übung", "1"]).row(["probe", "2"]);
        assert_eq!(table.render(0), "übung  1\nprobe  2\n");
    }
}
