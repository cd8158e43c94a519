//! HTML: escaping, and the few shapes that pages are made of.

use std::fmt::Display;

const STYLE: &str = include_str!("style.css");

/// Text as HTML shows it. Everything that comes from outside goes through here: paths and names may hold anything.
pub fn escape(text: impl Display) -> String {
    let mut out = String::new();
    for c in text.to_string().chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            // Not characters of HTML.
            c if c.is_control() && !matches!(c, '\n' | '\t') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// A whole page. `body` is HTML, the rest text. The policy forbids what the page does not need: scripts and the network.
pub fn document(title: &str, subtitle: &str, body: &str) -> String {
    let (title, subtitle) = (escape(title), escape(subtitle));
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n\
         <link rel=\"icon\" href=\"data:,\">\n<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <header><h1>{title}</h1><p class=\"sub\">{subtitle}</p></header>\n<main>\n{body}</main>\n\
         <footer>Made by perp-engine {}. Everything is in this file.</footer>\n</body>\n</html>\n",
        escape(env!("CARGO_PKG_VERSION"))
    )
}

/// A section with a heading; nothing where `body` is empty.
pub fn section(heading: &str, body: &str) -> String {
    if body.is_empty() { String::new() } else { format!("<section>\n<h2>{}</h2>\n{body}</section>\n", escape(heading)) }
}

/// A section of figures.
pub fn cards(heading: &str, figures: &[String]) -> String {
    let figures = figures.concat();
    if figures.is_empty() {
        String::new()
    } else {
        section(heading, &format!("<div class=\"cards\">\n{figures}</div>\n"))
    }
}

/// A number that is looked at first, and what it is.
pub fn tile(value: &str, label: &str) -> String {
    format!("<div class=\"tile\"><b>{}</b><span>{}</span></div>\n", escape(value), escape(label))
}

/// A figure: a heading, what it shows, the drawing (HTML), and the same as a table for who cannot see it or wants the numbers.
pub fn figure(heading: &str, text: &str, drawing: &str, table: &Table) -> String {
    let text = if text.is_empty() { String::new() } else { format!("<p>{}</p>", escape(text)) };
    format!(
        "<figure>\n<figcaption><h3>{}</h3>{text}</figcaption>\n{drawing}<details><summary>As a table</summary>\n{}</details>\n\
         </figure>\n",
        escape(heading),
        table.html("")
    )
}

/// A table of text.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// What it is, for those who hear it.
    pub caption: String,
    /// Above the columns.
    pub header: Vec<String>,
    /// The first cell of each is its heading.
    pub rows: Vec<Vec<String>>,
    /// Cells that stand out, (row, column).
    pub best: Vec<(usize, usize)>,
}

impl Table {
    /// An empty table.
    pub fn new(caption: impl Into<String>, header: impl IntoIterator<Item = impl Into<String>>) -> Table {
        let header = header.into_iter().map(Into::into).collect();
        Table { caption: caption.into(), header, ..Table::default() }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// As HTML, in a region of its own that scrolls where the page is narrow.
    pub fn html(&self, class: &str) -> String {
        let head: String = self.header.iter().map(|cell| format!("<th scope=\"col\">{}</th>", escape(cell))).collect();
        let head = if head.is_empty() { head } else { format!("<thead><tr>{head}</tr></thead>\n") };
        let body: String = self
            .rows
            .iter()
            .enumerate()
            .map(|(row, cells)| {
                let cells = cells.iter().enumerate().map(|(column, cell)| match column {
                    0 => format!("<th scope=\"row\">{}</th>", escape(cell)),
                    _ if self.best.contains(&(row, column)) => format!("<td class=\"best\">{}</td>", escape(cell)),
                    _ => format!("<td>{}</td>", escape(cell)),
                });
                format!("<tr>{}</tr>\n", cells.collect::<String>())
            })
            .collect();
        let caption = escape(&self.caption);
        format!(
            "<div class=\"scroll\" role=\"region\" aria-label=\"{caption}\" tabindex=\"0\"><table class=\"{class}\">\
             <caption>{caption}</caption>\n{head}<tbody>\n{body}</tbody></table></div>\n"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_stays_text() {
        let name = "</title><script>alert('x')</script>\" onload=\"y&\u{0}";
        let mut table = Table::new(name, [name]);
        table.row([name, name]);
        let page = document(name, name, &section(name, &figure(name, name, "", &table)));
        assert!(!page.contains("<script") && !page.contains("onload=\"y") && !page.contains('\u{0}'), "{page}");
        assert!(escape(name).starts_with("&lt;/title&gt;&lt;script&gt;alert(&#39;x&#39;)"));
    }
}
