//! Tables as GitHub's Markdown has them.

use super::html::Table;

/// A document of tables.
pub fn document(title: &str, subtitle: &str, tables: &[&Table]) -> String {
    let body: String = tables.iter().map(|t| format!("\n## {}\n\n{}", cell(&t.caption), table(t))).collect();
    format!("# {}\n\n{}\n{body}", cell(title), cell(subtitle))
}

fn table(table: &Table) -> String {
    let line =
        |cells: &[String]| format!("| {} |\n", cells.iter().map(|text| cell(text)).collect::<Vec<_>>().join(" | "));
    let rule: String = table.header.iter().enumerate().map(|(i, _)| if i == 0 { "|---" } else { "|---:" }).collect();
    let rows: String = table
        .rows
        .iter()
        .enumerate()
        .map(|(row, cells)| {
            let bold = |(column, text): (usize, &String)| match table.best.contains(&(row, column)) {
                true => format!("**{text}**"),
                false => text.clone(),
            };
            line(&cells.iter().enumerate().map(bold).collect::<Vec<_>>())
        })
        .collect();
    format!("{}{rule}|\n{rows}", line(&table.header))
}

/// Text of one line that ends no cell and opens no tag.
fn cell(text: &str) -> String {
    text.replace('\\', "\\\\").replace('|', "\\|").replace('<', "&lt;").replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_stays_a_cell() {
        let mut t = Table::new("c", ["a", "b"]);
        t.row(["x|y\n<script>", "2"]);
        t.best.push((0, 1));
        assert_eq!(table(&t), "| a | b |\n|---|---:|\n| x\\|y &lt;script> | **2** |\n");
    }
}
