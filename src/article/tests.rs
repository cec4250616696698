//! Tests of the canonical text: the one real example, every refusal, and injectivity by property.

use proptest::prelude::*;

use super::*;

/// The layout of the example article in the project's own words; its id is checked in `tests/it`.
const EXAMPLE: &str = "\n# Rates held\n\nPublished at: **2019-11-03T15:00:44+00:00**\n\n\
    Author: ****\n\nOriginal: [Gazette](https://example.com/a?id=1)\n\nFirst.\n\n    Second.\n";

fn fields() -> ArticleFields {
    ArticleFields {
        title: "Rates held".into(),
        published_at: Some(Timestamp::new("t", 1_572_793_244, 0).unwrap()),
        author: String::new(),
        source: "Gazette".into(),
        url: "https://example.com/a?id=1".into(),
        body: "First.\n\n    Second.\n".into(),
    }
}

#[test]
fn the_layout_is_the_documented_one() {
    let article = Article::new(fields()).unwrap();
    assert_eq!(article.render(), EXAMPLE);
    assert_eq!(Article::parse(EXAMPLE).unwrap(), article);
    assert_eq!(article.text_bytes(), EXAMPLE.len());
    assert_eq!(article.id(), ContentHash::of(EXAMPLE.as_bytes()));
}

#[track_caller]
fn check_refused(field: &str, expected: &str, change: impl FnOnce(&mut ArticleFields)) {
    let mut fields = fields();
    change(&mut fields);
    let error = Article::new(fields).unwrap_err();
    assert_eq!(error.field_name(), Some(field), "{error}");
    assert_eq!(error.reason(), Reason::ArticleInvalid);
    assert!(error.message().contains(expected), "{error}");
}

#[test]
fn every_refusal_names_field_value_and_limit() {
    check_refused("title", "1 to 4096 bytes", |f| f.title.clear());
    check_refused("title", "has 4097 bytes, the limit is 4096", |f| {
        f.title = "x".repeat(4097);
    });
    check_refused("title", "U+000A at byte 3", |f| {
        f.title = "two\nlines".into();
    });
    check_refused("title", "U+0085", |f| f.title = "next\u{85}line".into());
    check_refused("author", "the limit is 1024", |f| {
        f.author = "x".repeat(1025);
    });
    check_refused("author", "U+0000", |f| f.author = "\0".into());
    check_refused("source", "1 to 256 bytes", |f| f.source.clear());
    check_refused("source", "the limit is 256", |f| f.source = "x".repeat(257));
    check_refused("source", "contains \"](\"", |f| f.source = "a](b".into());
    check_refused("url", "the limit is 8192", |f| {
        f.url = format!("http://a/{}", "x".repeat(8192));
    });
    check_refused("url", "white space at byte 10", |f| {
        f.url = "http://a/b c".into();
    });
    check_refused("url", "contains \"](\"", |f| f.url = "http://a/](b".into());
    check_refused("url", "not an absolute URL", |f| f.url = "/relative".into());
    check_refused("body", "NUL byte at byte 1", |f| f.body = "a\0".into());
}

#[test]
fn the_limit_is_on_the_whole_text() {
    let mut largest = fields();
    largest.body.clear();
    let head_bytes = Article::new(largest.clone()).unwrap().text_bytes();
    largest.body = "x".repeat(TEXT_BYTES_MAX - head_bytes);
    assert_eq!(
        Article::new(largest.clone()).unwrap().text_bytes(),
        TEXT_BYTES_MAX
    );
    check_refused("body", "the limit is 3145728", |f| {
        f.body = largest.body + "x";
    });
}

#[test]
fn a_damaged_layout_names_the_field_where_it_stops() {
    for (from, to, field) in [
        ("\n# ", "# ", "title"),
        ("\n\nPublished at: **", "\n\nPublished: **", "published_at"),
        ("+00:00**", "Z**", "published_at"),
        ("Author: ****", "Author: ***", "author"),
        ("Original: [", "Original: ", "source"),
        ("](", "] (", "url"),
        ("id=1)", "id=1", "source"),
        (")\n\n", ")\n", "body"),
    ] {
        let error = Article::parse(&EXAMPLE.replacen(from, to, 1)).unwrap_err();
        assert_eq!(error.field_name(), Some(field), "{from:?}: {error}");
    }
    for cut in 0..EXAMPLE.find("First").unwrap() {
        assert!(Article::parse(&EXAMPLE[..cut]).is_err(), "cut at {cut}");
    }
}

/// One line of text that leans towards what the layout is made of.
fn line(bytes: std::ops::Range<usize>) -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("**".to_owned()),
        Just("](".to_owned()),
        Just("]".to_owned()),
        Just("(".to_owned()),
        Just("# ".to_owned()),
        Just("\u{2028}".to_owned()),
        "\\PC{1,4}",
    ];
    prop::collection::vec(piece, bytes).prop_map(|pieces| pieces.concat())
}

fn any_fields() -> impl Strategy<Value = ArticleFields> {
    let time = (
        SECONDS_MIN..=SECONDS_MAX,
        prop_oneof![Just(0), 0..1_000_000_000_i64],
    )
        .prop_map(|(seconds, nanos)| Timestamp::new("t", seconds, nanos).unwrap());
    let url = prop_oneof![
        Just(String::new()),
        "https?://[a-z]{1,8}\\.com/[a-zA-Z0-9()\\[\\]*_/?=&#é-]{0,20}",
    ];
    let body = prop_oneof![line(0..6), Just(EXAMPLE.to_owned()), "[^\\x00]{0,60}",];
    (
        line(1..4),
        prop::option::of(time),
        line(0..3),
        line(1..3),
        url,
        body,
    )
        .prop_map(
            |(title, published_at, author, source, url, body)| ArticleFields {
                title,
                published_at,
                author,
                source,
                url,
                body,
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn parse_is_the_inverse_of_render(fields in any_fields()) {
        match Article::new(fields) {
            Ok(article) => {
                let text = article.render();
                prop_assert_eq!(text.len(), article.text_bytes());
                prop_assert_eq!(Article::parse(&text).unwrap(), article.clone());
                prop_assert_eq!(Article::parse_trusted(&text).unwrap(), article);
            }
            Err(error) => {
                let named = ["title", "source", "url"].contains(&error.field_name().unwrap());
                prop_assert!(named, "{}", error);
            }
        }
    }

    /// Any text that parses at all is the rendering of what it parsed to, so no two texts, and
    /// with the property above no two articles, share one.
    #[test]
    fn no_text_but_the_rendered_one_parses(fields in any_fields(), at in any::<prop::sample::Index>(), piece in line(0..2)) {
        if let Ok(article) = Article::new(fields) {
            let mut text = article.render();
            let at = (0..=at.index(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap();
            text.insert_str(at, &piece);
            if let Ok(other) = Article::parse(&text) {
                prop_assert_eq!(other.render(), text);
            }
        }
    }

    #[test]
    fn two_different_articles_never_render_alike(a in any_fields(), b in any_fields()) {
        if let (Ok(a), Ok(b)) = (Article::new(a), Article::new(b)) {
            prop_assert_eq!(a == b, a.render() == b.render());
        }
    }
}
