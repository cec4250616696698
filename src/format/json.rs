//! JSON: an array of objects, objects one behind the other, and JSON Feed
//! (<https://www.jsonfeed.org/version/1.1/>), whose items are in an array inside an object.

use serde_json::{Map, Value};

use super::input::Input;
use super::pieces::{
    Held, PIECE_BYTES_MAX, Piece, Place, broken_off, bytes_piece, invalid, position, too_long,
};
use crate::error::{Error, Result};

/// How deep a JSON record may be nested; the parser has the same limit.
const DEPTH_MAX: usize = 127;

/// What a feed names as its version.
const FEED_VERSION: &[u8] = b"jsonfeed.org/version/";

/// The longest start of a feed, before its items.
const FEED_HEAD_BYTES_MAX: usize = 1024 * 1024;

/// Whether a JSON file that begins so is a feed.
pub(super) fn is_feed(start: &[u8]) -> bool {
    position(start, FEED_VERSION).is_some()
        || position(start, br"jsonfeed.org\/version\/").is_some()
}

/// Reads a JSON object.
pub(super) fn object(bytes: &[u8]) -> Result<Map<String, Value>> {
    let value: Value = serde_json::from_slice(bytes)
        .map_err(|error| invalid(format!("is not valid JSON: {error}")))?;
    let Value::Object(record) = value else {
        return Err(invalid("is JSON, but not an object"));
    };
    Ok(record)
}

/// The objects of a file.
pub(super) struct Values {
    held: Held,
    /// Whether the end of the array is the end of the records.
    is_feed: bool,
    is_done: bool,
}

impl Values {
    pub(super) fn new(input: Input) -> Self {
        Self {
            held: Held::new(input),
            is_feed: false,
            is_done: false,
        }
    }

    /// The items of a feed, and its title.
    pub(super) fn of_feed(input: Input) -> Result<(Self, Option<String>)> {
        let mut values = Self::new(input);
        values.is_feed = true;
        let mut scan = ValueScan::default();
        loop {
            let held = values.held.rest();
            let at = scan.at;
            if let Step::Items(items) = scan.step_to(held, Some(b"items")) {
                let title = feed_title(held.get(..items).unwrap_or_default());
                values.held.drop_start(items);
                return Ok((values, title));
            }
            let is_stuck = scan.at == at && !held.is_empty();
            let is_more = !is_stuck
                && held.len() <= FEED_HEAD_BYTES_MAX
                && values.held.more().map_err(super::markdown::unreadable)?;
            if !is_more {
                return Err(invalid("has no items, which a JSON Feed has"));
            }
        }
    }

    /// Whether there is another value.
    fn skip_between(&mut self) -> std::io::Result<bool> {
        if !self.is_feed {
            let between = |byte: u8| byte.is_ascii_whitespace() || b"[],".contains(&byte);
            return self.held.skip_until(|byte| !between(byte));
        }
        let between = |byte: u8| byte.is_ascii_whitespace() || b"[,".contains(&byte);
        Ok(self.held.skip_until(|byte| !between(byte))? && !self.held.rest().starts_with(b"]"))
    }

    /// Goes from the start of a broken value to what looks like the start of the next: an object
    /// right behind the end of another.
    fn skip_broken(&mut self) -> std::io::Result<()> {
        let mut is_behind_end = false;
        let mut is_first = true;
        self.held.skip_until(|byte| {
            let is_start = byte == b'{' && is_behind_end && !is_first;
            is_first = false;
            is_behind_end =
                byte == b'}' || is_behind_end && (byte == b',' || byte.is_ascii_whitespace());
            is_start
        })?;
        Ok(())
    }

    /// Tells of what cannot be read, and goes on behind it if that can be.
    fn broken_off(&mut self, place: Place, error: std::io::Error) -> Piece {
        self.held.drop_all();
        self.is_done = !super::input::goes_on(&error);
        broken_off(place, error)
    }
}

impl Iterator for Values {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        if self.is_done {
            return None;
        }
        match self.skip_between() {
            Ok(true) => {}
            Ok(false) => {
                self.is_done = true;
                return None;
            }
            Err(error) => return Some(self.broken_off(Place::Byte(self.held.offset), error)),
        }
        let place = Place::Byte(self.held.offset);
        let mut scan = ValueScan::default();
        let end: Result<usize, (Option<usize>, Error)> = loop {
            match scan.step(self.held.rest()) {
                Step::End(end) => break Ok(end),
                Step::Next(next) => break Err((Some(next), invalid("has no end"))),
                Step::Broken(what) => break Err((None, invalid(what))),
                Step::Items(_) | Step::More if scan.at > PIECE_BYTES_MAX => {
                    break Err((None, too_long()));
                }
                Step::Items(_) | Step::More => match self.held.more() {
                    Ok(true) => {}
                    Ok(false) => break Err((None, invalid("ends in the middle"))),
                    Err(error) => return Some(self.broken_off(place, error)),
                },
            }
        };
        let bytes = match end {
            Ok(end) => Ok(self.held.take_start(end)),
            Err((Some(next), error)) => {
                self.held.drop_start(next);
                Err(error)
            }
            Err((None, error)) => {
                self.held.go_back(0, scan.at);
                if let Err(error) = self.skip_broken() {
                    return Some(self.broken_off(place, error));
                }
                Err(error)
            }
        };
        Some(bytes_piece(place, bytes))
    }
}

/// The title in what comes before the items of a feed.
fn feed_title(head: &[u8]) -> Option<String> {
    let fields = head.get(..head.iter().rposition(|byte| *byte == b',')?)?;
    let head = object(&[fields, b"}"].concat()).ok()?;
    Some(head.get("title")?.as_str()?.to_owned())
}

/// How far the end of a JSON object was looked for.
#[derive(Debug, Default)]
struct ValueScan {
    at: usize,
    /// What closes the objects and arrays that are open.
    open: Vec<u8>,
    is_in_string: bool,
    is_escaped: bool,
    is_behind_comma: bool,
    /// Where the last string began, behind its quotation mark, and where it ended.
    string: (usize, usize),
}

enum Step {
    /// The object ends before this byte.
    End(usize),
    /// The array that was looked for begins at this byte, behind its key.
    Items(usize),
    /// It does not end, and another begins at this byte.
    Next(usize),
    Broken(&'static str),
    More,
}

impl ValueScan {
    /// Goes on in bytes that begin with the object. Only what could not be JSON is noticed, as
    /// early as it can be: behind a lost quotation mark, text is where numbers should be.
    fn step(&mut self, held: &[u8]) -> Step {
        self.step_to(held, None)
    }

    /// The same, but stops at the array that has this key in the outermost object.
    fn step_to(&mut self, held: &[u8], key: Option<&[u8]>) -> Step {
        for byte in held.get(self.at..).unwrap_or_default() {
            self.at += 1;
            if self.is_in_string {
                match byte {
                    _ if self.is_escaped => self.is_escaped = false,
                    b'\\' => self.is_escaped = true,
                    b'"' => {
                        self.is_in_string = false;
                        self.string.1 = self.at - 1;
                    }
                    b'\n' => return Step::Broken("has a line break in a string"),
                    _ => {}
                }
                continue;
            }
            if byte.is_ascii_whitespace() {
                continue;
            }
            let is_behind_comma = std::mem::replace(&mut self.is_behind_comma, *byte == b',');
            match byte {
                b'{' if is_behind_comma && self.open.last() == Some(&b'}') => {
                    return Step::Next(self.at - 1);
                }
                b'{' | b'[' if self.open.len() >= DEPTH_MAX => {
                    return Step::Broken("is nested deeper than 127 levels");
                }
                b'{' => self.open.push(b'}'),
                _ if self.open.is_empty() => return Step::Broken("is not a JSON object"),
                b'[' if self.open.len() == 1
                    && key
                        .is_some_and(|key| held.get(self.string.0..self.string.1) == Some(key)) =>
                {
                    return Step::Items(self.at - 1);
                }
                b'[' => self.open.push(b']'),
                b'}' | b']' => {
                    if self.open.pop() != Some(*byte) {
                        return Step::Broken("has brackets that do not match");
                    }
                    if self.open.is_empty() {
                        return Step::End(self.at);
                    }
                }
                b'"' => {
                    self.is_in_string = true;
                    self.string.0 = self.at;
                }
                // Numbers, and the letters of true, false, null, and of NaN and Infinity, which are
                // no JSON, but leave the rest of the file in order.
                b':'
                | b','
                | b'+'
                | b'-'
                | b'.'
                | b'0'..=b'9'
                | b't'
                | b'r'
                | b'u'
                | b'e'
                | b'f'
                | b'a'
                | b'l'
                | b's'
                | b'n'
                | b'E'
                | b'N'
                | b'I'
                | b'i'
                | b'y' => {}
                _ => return Step::Broken("has text outside of quotation marks"),
            }
        }
        Step::More
    }
}

#[cfg(test)]
mod tests {
    use super::super::pieces::tests::{endless, input, shown};
    use super::*;

    fn cut(text: &str) -> Vec<String> {
        shown(Values::new(input(text)))
    }

    #[test]
    fn arrays_and_rows_of_objects_are_cut() {
        for text in [
            r#"[{"a":"}{"},{"b":[1,{"c":"\"]"}]}]"#,
            "{\"a\":\"}{\"}\n{\"b\":[1,{\"c\":\"\\\"]\"}]}\n",
            " [\n{\"a\":\"}{\"} ,\n {\"b\":[1,{\"c\":\"\\\"]\"}]}",
        ] {
            let pieces = cut(text);
            assert_eq!(pieces, [r#"{"a":"}{"}"#, r#"{"b":[1,{"c":"\"]"}]}"#]);
        }
    }

    #[test]
    fn a_broken_object_costs_only_itself() {
        for (broken, what) in [
            (r#"{"a":"lost quote,"b":"x y"}"#, "text outside"),
            ("{\"a\":\"lost\n\"}", "line break"),
            (r#"{"a":1"#, "has no end"),
            (r#"{"a":[1}"#, "brackets"),
            (r#"{"a" 1 } x }"#, "not a JSON object"),
            (r#"x{"a":1}"#, "not a JSON object"),
        ] {
            let good = [r#"{"n":1}"#, r#"{"n":2}"#, r#"{"n":3}"#];
            let text = format!("[{}, {broken}, {},\n{}]", good[0], good[1], good[2]);
            let pieces = cut(&text);
            let whole: Vec<&String> = pieces.iter().filter(|p| p.starts_with("{\"n\"")).collect();
            assert_eq!(whole, good, "{broken}: {pieces:?}");
            let told: Vec<&String> = pieces.iter().filter(|p| p.starts_with('!')).collect();
            assert_eq!(told.len(), 1, "{broken}: {pieces:?}");
            assert!(told[0].contains(what), "{broken}: {told:?}");
        }
    }

    #[test]
    fn nesting_and_length_have_limits() {
        let deep = format!("{}1", r#"{"a":"#.repeat(200));
        assert_eq!(cut(&deep).len(), 1);
        let pieces = shown(Values::new(endless("{\"a\":\"", "\"}\n{\"n\":1}\n")));
        let [refused, good] = pieces.as_slice() else {
            panic!("{pieces:?}");
        };
        assert!(refused.contains("33554432"), "{refused}");
        assert_eq!(good, "{\"n\":1}");
    }

    #[test]
    fn the_items_of_a_feed_are_cut() {
        let head = r#"{"version": "https://jsonfeed.org/version/1.1", "title": "A \"items\": [",
            "author": {"items": [{"no": 1}]}"#;
        let items = r#""items" : [ {"a": [1]}, {"b": 2} ], "more": [{"c": 3}]}"#;
        assert!(is_feed(head.as_bytes()) && !is_feed(items.as_bytes()));
        let (values, title) = Values::of_feed(input(format!("{head}, {items}"))).unwrap();
        assert_eq!(title.as_deref(), Some("A \"items\": ["));
        assert_eq!(shown(values), [r#"{"a": [1]}"#, r#"{"b": 2}"#]);
        assert!(Values::of_feed(input(format!("{head}}}"))).is_err());
        assert!(Values::of_feed(input(head)).is_err());
        assert!(Values::of_feed(endless("{\"a\": \"", "")).is_err());
    }
}
