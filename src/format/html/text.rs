//! HTML as plain text. The rule is part of what names an article, so it is here and in README, and does
//! not change with a library:
//!
//! - What is not shown is dropped: scripts, styles, forms, and embedded things.
//! - White space, no-break spaces too, becomes one space, and none is at the ends of a line; in `pre`
//!   it stays as it is.
//! - A paragraph or another block is divided from the next by an empty line; items of lists, rows of tables
//!   and what `br` divides are lines. Items of lists begin with `- `, or in numbered lists with
//!   their number; cells are divided by tabs.
//! - Everything else is its text.

use dom_query::{Document, NodeData, NodeRef};

/// Elements that are dropped with all that is in them.
const DROPPED: [&str; 19] = [
    "button", "canvas", "embed", "head", "iframe", "input", "math", "noscript", "object", "option",
    "script", "select", "style", "svg", "template", "textarea", "title", "video", "audio",
];

/// Elements that are lines.
const LINES: [&str; 6] = ["br", "dd", "dt", "li", "tr", "figcaption"];

/// Elements that are blocks.
const BLOCKS: [&str; 28] = [
    "address",
    "article",
    "aside",
    "blockquote",
    "body",
    "center",
    "details",
    "div",
    "dl",
    "fieldset",
    "figure",
    "footer",
    "form",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "header",
    "hr",
    "main",
    "nav",
    "ol",
    "p",
    "pre",
    "section",
    "table",
];

/// Tags that are found in titles and short texts. Others are text, as the `<IBM>` of a wire.
const MARKUP: [&str; 30] = [
    "a",
    "abbr",
    "b",
    "big",
    "blockquote",
    "br",
    "cite",
    "code",
    "del",
    "div",
    "em",
    "font",
    "h1",
    "h2",
    "h3",
    "i",
    "img",
    "ins",
    "li",
    "mark",
    "ol",
    "p",
    "q",
    "s",
    "small",
    "span",
    "strong",
    "sub",
    "sup",
    "ul",
];

/// Makes HTML plain text.
pub(in crate::format) fn text_of(html: &str) -> String {
    // What nests too deep to be parsed in time is no text of a person.
    if super::limits::check(html).is_err() {
        return html.to_owned();
    }
    let document = Document::fragment(html);
    let mut writer = Writer::default();
    let mut visits = vec![Visit::Enter(document.root())];
    // A stack of its own, so that no nesting of the page can end this thread's.
    while let Some(visit) = visits.pop() {
        match visit {
            Visit::Enter(node) => {
                let children = writer.enter(&node);
                visits.push(Visit::Leave(node));
                if children {
                    visits.extend(node.children_it(true).map(Visit::Enter));
                }
            }
            Visit::Leave(node) => writer.leave(&node),
        }
    }
    writer.text
}

/// Whether a text has what only HTML has: a known tag or a character reference.
pub(in crate::format) fn looks_marked_up(text: &str) -> bool {
    let is_tag = |rest: &str| {
        let rest = rest.strip_prefix('/').unwrap_or(rest);
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric());
        let name = rest.get(..end.unwrap_or(0)).unwrap_or_default();
        MARKUP.iter().any(|tag| name.eq_ignore_ascii_case(tag)) && rest.contains('>')
    };
    let is_reference = |rest: &str| {
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '#');
        end.is_some_and(|end| end > 1 && rest.get(end..).is_some_and(|rest| rest.starts_with(';')))
    };
    text.split('<').skip(1).any(is_tag) || text.split('&').skip(1).any(is_reference)
}

enum Visit<'a> {
    Enter(NodeRef<'a>),
    Leave(NodeRef<'a>),
}

/// What divides a text from the one before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Break {
    #[default]
    None,
    Space,
    Line,
    Block,
}

#[derive(Default)]
struct Writer {
    text: String,
    /// What comes before the next text, if there is text before it.
    next: Break,
    /// Line breaks of `br` that are to come, beyond the first.
    more_lines: usize,
    /// How many `pre` are open.
    preformatted: usize,
    /// The lists that are open, with the number of the next item in those that are numbered.
    lists: Vec<Option<u32>>,
    /// A mark of an item that has no text yet.
    mark: String,
}

fn name_of(node: &NodeRef) -> String {
    node.node_name()
        .map(|name| name.to_string())
        .unwrap_or_default()
}

impl Writer {
    /// Returns whether what is inside is of use.
    fn enter(&mut self, node: &NodeRef) -> bool {
        let text = node.query_or(None, |node| match &node.data {
            NodeData::Text { contents } => Some(contents.to_string()),
            NodeData::Document
            | NodeData::Fragment
            | NodeData::Doctype { .. }
            | NodeData::Comment { .. }
            | NodeData::Element(_)
            | NodeData::ProcessingInstruction { .. } => None,
        });
        if let Some(text) = text {
            self.add(&text);
            return false;
        }
        let name = name_of(node);
        let name = name.as_str();
        if DROPPED.contains(&name) {
            return false;
        }
        self.divide(name);
        match name {
            "br" if self.next >= Break::Line && !self.text.is_empty() => self.more_lines += 1,
            "br" => self.next = Break::Line,
            "ul" => self.lists.push(None),
            "ol" => self.lists.push(Some(1)),
            "li" => self.mark = self.item_mark(),
            "pre" => self.preformatted += 1,
            _ => {}
        }
        true
    }

    fn leave(&mut self, node: &NodeRef) {
        if !node.is_element() {
            return;
        }
        let name = name_of(node);
        let name = name.as_str();
        if DROPPED.contains(&name) || name == "br" {
            return;
        }
        if matches!(name, "ul" | "ol") {
            self.lists.pop();
        }
        self.divide(name);
        match name {
            "li" | "tr" => self.mark.clear(),
            "pre" => self.preformatted = self.preformatted.saturating_sub(1),
            "td" | "th" => "\t".clone_into(&mut self.mark),
            _ => {}
        }
    }

    fn divide(&mut self, name: &str) {
        let is_inner_list = matches!(name, "ul" | "ol") && !self.lists.is_empty();
        if LINES.contains(&name) && name != "br" || is_inner_list {
            self.next = self.next.max(Break::Line);
        } else if BLOCKS.contains(&name) || name == "ul" {
            // A block that is the first in an item or a cell stays behind its mark.
            if self.mark.is_empty() && self.lists.is_empty() {
                self.next = Break::Block;
            } else {
                self.next = self.next.max(Break::Line);
            }
        }
    }

    fn item_mark(&mut self) -> String {
        match self.lists.last_mut() {
            Some(Some(number)) => {
                let mark = format!("{number}. ");
                *number = number.saturating_add(1);
                mark
            }
            Some(None) | None => "- ".to_owned(),
        }
    }

    fn add(&mut self, text: &str) {
        if self.preformatted > 0 {
            if !text.is_empty() {
                self.begin();
                self.text.push_str(text.trim_end_matches('\n'));
                self.next = if text.ends_with('\n') {
                    Break::Line
                } else {
                    Break::None
                };
            }
            return;
        }
        let is_space = |c: char| c.is_ascii_whitespace() || c == '\u{a0}';
        if text.starts_with(is_space) {
            self.next = self.next.max(Break::Space);
        }
        for word in text.split(is_space).filter(|word| !word.is_empty()) {
            self.begin();
            self.text.push_str(word);
            self.next = Break::Space;
        }
        if !text.ends_with(is_space) && self.next == Break::Space {
            self.next = Break::None;
        }
    }

    /// Writes what divides the next text from the last.
    fn begin(&mut self) {
        if !self.text.is_empty() {
            self.text.push_str(match (self.next, self.mark.as_str()) {
                (Break::None, _) | (Break::Space, "\t") => "",
                (Break::Space, _) => " ",
                (Break::Line, _) => "\n",
                (Break::Block, _) => "\n\n",
            });
            for _ in 0..self.more_lines {
                self.text.push('\n');
            }
        }
        self.text.push_str(&std::mem::take(&mut self.mark));
        self.more_lines = 0;
        self.next = Break::None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn html_becomes_text_by_the_rule() {
        for (html, expected) in [
            ("", ""),
            ("plain", "plain"),
            (" a \n b&nbsp; c ", "a b c"),
            ("a<b>b</b> <i> c</i>", "ab c"),
            ("<p>a</p><p>b <br> c</p>d", "a\n\nb\nc\n\nd"),
            ("a<br><br>b", "a\n\nb"),
            ("<div><div>a</div></div><h2>b</h2>", "a\n\nb"),
            (
                "a<ul><li>b</li><li><p>c</p></li></ul>d",
                "a\n\n- b\n- c\n\nd",
            ),
            ("<ol><li>b<li>c</ol>", "1. b\n2. c"),
            (
                "<table><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table>",
                "a\tb\nc",
            ),
            ("<pre>a  b\n  c\n</pre>d", "a  b\n  c\n\nd"),
            ("a<script>x</script><style>y</style><!-- z -->b", "ab"),
            ("&lt;b&gt; &amp; &#233;", "<b> & \u{e9}"),
            ("1 < 2 & 3", "1 < 2 & 3"),
            ("<blockquote><p>a</p></blockquote>b", "a\n\nb"),
        ] {
            assert_eq!(text_of(html), expected, "{html}");
        }
    }

    #[test]
    fn markup_is_told_from_text() {
        for marked in ["a <b>", "a</p>", "&amp;", "x &#39; y"] {
            assert!(looks_marked_up(marked), "{marked}");
        }
        for plain in [
            "",
            "OIL <SRD> UP",
            "1 < 2 > 0",
            "Q&A; x",
            "a & b;",
            "AT&T",
            "<3",
        ] {
            assert!(!looks_marked_up(plain), "{plain}");
        }
    }
}
