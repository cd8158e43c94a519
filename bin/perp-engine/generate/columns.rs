//! Texts beside each other, each in a column of its own, that grow at the same time: a row is printed when no column has more to say
//! in it. On a terminal the row that is not whole yet is shown, and written anew.

use console::{Alignment, measure_text_width, pad_str, truncate_str};
use textwrap::{Options, WordSeparator, WordSplitter, WrapAlgorithm};

/// Between columns.
const RULE: &str = " │ ";
/// Narrower columns are no text to read.
const NARROWEST: usize = 16;

pub struct Columns {
    /// Of a column, in places of a terminal.
    width: usize,
    texts: Vec<Text>,
    /// Rows that are out.
    rows: usize,
    /// Whether the row after them is shown as it grows.
    live: bool,
}

#[derive(Clone, Default)]
struct Text {
    text: String,
    ended: bool,
}

impl Columns {
    /// So many columns in `width` places, if they have room.
    pub fn fit(columns: usize, width: usize, live: bool) -> Option<Columns> {
        let rules = columns.saturating_sub(1) * measure_text_width(RULE);
        // A terminal's last place is left alone: some begin a new line after it.
        let width = width.saturating_sub(rules + 1) / columns.max(1);
        (width >= NARROWEST).then(|| Columns { width, texts: vec![Text::default(); columns], rows: 0, live })
    }

    /// The names over the columns, and a line below them.
    pub fn head(&self, names: &[String]) -> String {
        // Of a path its end tells more.
        let name = |name: &String| match measure_text_width(name) > self.width {
            true => {
                let tail: Vec<char> = name.chars().rev().take(self.width - 1).collect();
                format!("…{}", tail.into_iter().rev().collect::<String>())
            }
            false => name.clone(),
        };
        let names = self.row(names.iter().map(name).map(Some));
        format!("{names}\n{}\n", vec!["─".repeat(self.width); self.texts.len()].join("─┼─"))
    }

    /// What is to be printed when a column's text goes on with `more`.
    pub fn push(&mut self, column: usize, more: &str) -> String {
        let text = &mut self.texts[column].text;
        // What would move the cursor has no place in a column.
        let shown = |c: char| if c.is_control() && c != '\n' { ' ' } else { c };
        text.extend(more.chars().map(shown));
        if text.starts_with(' ') {
            *text = text.trim_start_matches(' ').to_string();
        }
        self.advance()
    }

    /// The same when it ends.
    pub fn end(&mut self, column: usize) -> String {
        self.texts[column].ended = true;
        self.advance()
    }

    fn advance(&mut self) -> String {
        // The first that fits, word by word: lines before a text's last one stay as they are, whatever comes.
        let options = Options::new(self.width)
            .wrap_algorithm(WrapAlgorithm::FirstFit)
            .word_separator(WordSeparator::AsciiSpace)
            .word_splitter(WordSplitter::NoHyphenation);
        let lines: Vec<Vec<String>> = self
            .texts
            .iter()
            .map(|text| textwrap::wrap(&text.text, &options).into_iter().map(String::from).collect())
            .collect();
        let mut out = if self.live { "\r\u{1b}[2K".to_string() } else { String::new() };
        let row = |at: usize| self.row(lines.iter().map(|lines| lines.get(at).cloned()));
        let is_whole = |at: usize| {
            let mut columns = self.texts.iter().zip(&lines);
            columns.all(|(text, lines)| text.ended || lines.len() > at + 1)
                && lines.iter().any(|lines| lines.len() > at)
        };
        let mut rows = self.rows;
        while is_whole(rows) {
            out += &row(rows);
            out.push('\n');
            rows += 1;
        }
        if self.live && lines.iter().any(|lines| lines.len() > rows) {
            out += &row(rows);
        }
        self.rows = rows;
        out
    }

    /// One line of each column.
    fn row(&self, lines: impl Iterator<Item = Option<String>>) -> String {
        let cell = |line: Option<String>| {
            let line = line.unwrap_or_default();
            pad_str(&truncate_str(&line, self.width, ""), self.width, Alignment::Left, None).into_owned()
        };
        lines.map(cell).collect::<Vec<_>>().join(RULE).trim_end().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two columns of 16 places.
    fn two(live: bool) -> Columns {
        Columns::fit(2, 36, live).unwrap()
    }

    #[test]
    fn a_row_comes_when_no_column_adds_to_it() {
        let mut columns = two(false);
        assert_eq!(columns.push(0, " a text that is longer"), "");
        assert_eq!(columns.push(1, "short"), "");
        assert_eq!(columns.push(1, " and then it goes on"), "a text that is   │ short and then\n");
        // A column that ended is waited for no more; what it has is shown to its end.
        assert_eq!(columns.end(1), "");
        assert_eq!(columns.push(0, ", and on\nand on"), "longer, and on   │ it goes on\n");
        assert_eq!(columns.end(0), "and on           │\n");
    }

    #[test]
    fn all_words_come_in_order_however_they_are_cut() {
        let words = [
            "one two three ",
            "four five ",
            "a-word-that-is-longer-than-a-column six 日本語日本語日本語 ",
            "\u{1b}[2Jseven\n\neight",
        ];
        let text = words.concat();
        let whole = |piece: usize| {
            let mut columns = two(false);
            let mut out = String::new();
            let chars: Vec<char> = text.chars().collect();
            for piece in chars.chunks(piece) {
                for column in [0, 1] {
                    out += &columns.push(column, &piece.iter().collect::<String>());
                }
            }
            out + &columns.end(0) + &columns.end(1)
        };
        let want = whole(1000);
        assert!(!want.contains('\u{1b}') && want.lines().all(|line| measure_text_width(line) <= 35), "{want}");
        for piece in [1, 2, 3, 7] {
            assert_eq!(whole(piece), want, "{piece}");
        }
        let of_first = want.lines().map(|line| line.split('│').next().unwrap().trim()).collect::<String>();
        let bare = |text: &str| text.chars().filter(|c| !c.is_whitespace() && !c.is_control()).collect::<String>();
        assert_eq!(bare(&of_first), bare(&text));
    }

    #[test]
    fn a_terminal_sees_the_row_as_it_grows() {
        let mut columns = two(true);
        assert_eq!(columns.push(0, "one"), "\r\u{1b}[2Kone              │");
        assert_eq!(columns.push(1, "two"), "\r\u{1b}[2Kone              │ two");
        assert_eq!(columns.end(0), "\r\u{1b}[2Kone              │ two");
        assert_eq!(columns.end(1), "\r\u{1b}[2Kone              │ two\n");
    }

    #[test]
    fn columns_need_room_and_names_show_their_end() {
        assert!(Columns::fit(3, 50, false).is_none());
        let columns = Columns::fit(2, 36, false).unwrap();
        let head = columns.head(&["short".into(), "a/path/that/is/long/name".into()]);
        assert_eq!(head, "short            │ …at/is/long/name\n─────────────────┼─────────────────\n");
    }
}
