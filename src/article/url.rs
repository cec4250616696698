//! The canonical form of a URL, under which revisions of one article find each other.
//!
//! Only the look-up key is canonical: the URL of an article is stored and hashed as given.

use url::Url;

/// Query parameters that say where a click came from and never which article is meant.
///
/// Only names whose one use is tracking stand here: some sites have their only article id in the
/// query, and a parameter dropped wrongly would make two articles one. A change to this list
/// changes table `u` and needs a new archive format.
const TRACKING_PARAMETERS: &[&str] = &[
    "_ga",
    "_gl",
    "dclid",
    "fbclid",
    "gbraid",
    "gclid",
    "gclsrc",
    "igshid",
    "li_fat_id",
    "mc_cid",
    "mc_eid",
    "mkt_tok",
    "msclkid",
    "ttclid",
    "twclid",
    "wbraid",
    "yclid",
];

/// The prefix of the most common family of tracking parameters.
const TRACKING_PREFIX: &str = "utm_";

/// Brings a URL into canonical form.
///
/// Scheme and host become lower case and the default port goes, as the WHATWG URL standard
/// serialises them; the fragment and known tracking parameters go; the rest of the query stays as
/// it is and in its order. A text that is no URL is its own canonical form.
#[must_use]
pub fn canonical_url(text: &str) -> String {
    let Ok(mut url) = Url::parse(text) else {
        return text.to_owned();
    };
    url.set_fragment(None);
    if let Some(query) = url.query() {
        let kept: Vec<&str> = query.split('&').filter(|pair| !is_tracking(pair)).collect();
        let kept = kept.join("&");
        url.set_query((!kept.is_empty()).then_some(kept.as_str()));
    }
    url.into()
}

fn is_tracking(pair: &str) -> bool {
    let name = pair.split('=').next().unwrap_or(pair).to_ascii_lowercase();
    name.starts_with(TRACKING_PREFIX) || TRACKING_PARAMETERS.contains(&name.as_str())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        assert_eq!(canonical_url(text), expected);
        assert_eq!(
            canonical_url(expected),
            expected,
            "canonical form is stable"
        );
    }

    #[test]
    fn what_does_not_name_the_article_goes() {
        check("HTTP://News.Example.COM:80/A", "http://news.example.com/A");
        check("https://example.com:443", "https://example.com/");
        check(
            "https://example.com:8443/a#top",
            "https://example.com:8443/a",
        );
        check(
            "https://example.com/a?utm_source=x&UTM_medium=y&fbclid=z",
            "https://example.com/a",
        );
        check("https://example.com/a?", "https://example.com/a");
    }

    #[test]
    fn the_rest_of_the_query_stays() {
        check(
            "https://example.com/a.php?id=7&utm_source=x&b=%20&a",
            "https://example.com/a.php?id=7&b=%20&a",
        );
        check(
            "https://example.com/a?b=2&a=1",
            "https://example.com/a?b=2&a=1",
        );
        check("not a url", "not a url");
    }

    proptest! {
        #[test]
        fn canonical_form_is_stable(path in "[a-zA-Z0-9/._~%-]{0,30}", query in "[a-z0-9&=_%]{0,30}") {
            let once = canonical_url(&format!("https://Example.com/{path}?{query}"));
            prop_assert_eq!(canonical_url(&once), once);
        }
    }
}
