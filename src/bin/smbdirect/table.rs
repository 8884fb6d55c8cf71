//! Tables of text.

use std::fmt::Write as _;

/// Columns as wide as their widest entry. A table without rows has only its headings.
pub(crate) fn table(headings: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut lines = vec![headings
        .iter()
        .map(|&heading| heading.to_owned())
        .collect::<Vec<_>>()];
    lines.extend(rows);
    let mut widths = vec![0; headings.len()];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::from("\n");
    for line in &lines {
        let mut row = String::new();
        for (width, cell) in widths.iter().zip(line) {
            let _ = write!(row, "{cell:<width$}  ");
        }
        text.push_str(row.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [
            vec!["long entry".to_owned(), "1".into()],
            vec!["x".into(), "22".into()],
        ];
        let text = table(&["A", "B"], rows.into_iter());
        assert_eq!(text, "\nA           B\nlong entry  1\nx           22\n");
    }
}
