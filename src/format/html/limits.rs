//! Refuses pages that are made to be slow. How an HTML parser mends tags that are not closed costs
//! time and memory that grow with the tags times those open around them.

/// Tags that need no end, so that those without one do not nest.
const UNNESTED: [&[u8]; 32] = [
    b"area",
    b"base",
    b"body",
    b"br",
    b"col",
    b"colgroup",
    b"dd",
    b"dt",
    b"embed",
    b"head",
    b"hr",
    b"html",
    b"img",
    b"input",
    b"li",
    b"link",
    b"meta",
    b"optgroup",
    b"option",
    b"p",
    b"param",
    b"path",
    b"source",
    b"tbody",
    b"td",
    b"tfoot",
    b"th",
    b"thead",
    b"tr",
    b"track",
    b"wbr",
    b"rp",
];

/// Tags that are opened again in every paragraph until they are closed.
const FORMATTING: [&[u8]; 14] = [
    b"a", b"b", b"big", b"code", b"em", b"font", b"i", b"nobr", b"s", b"small", b"strike",
    b"strong", b"tt", b"u",
];

/// How deep tags may be open in one another.
const DEPTH_MAX: usize = 3000;

/// All tags times the depth of those that format.
const REOPENED_MAX: usize = 4_000_000;

/// Checks how deep a page is nested.
pub(super) fn check(html: &str) -> Result<(), String> {
    let (mut tags, mut depth, mut formats) = (0_usize, 0_usize, 0_usize);
    let (mut depth_max, mut formats_max) = (0, 0);
    for rest in html.split('<').skip(1) {
        let (is_end, rest) = match rest.strip_prefix('/') {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        let end = rest
            .find(|c: char| !c.is_ascii_alphanumeric())
            .unwrap_or(rest.len());
        let name = rest
            .get(..end.min(16))
            .unwrap_or_default()
            .to_ascii_lowercase();
        let name = name.as_bytes();
        if name.is_empty() {
            continue;
        }
        tags += 1;
        if UNNESTED.contains(&name) {
            continue;
        }
        let is_format = usize::from(FORMATTING.contains(&name));
        if is_end {
            depth = depth.saturating_sub(1);
            formats = formats.saturating_sub(is_format);
        } else {
            depth += 1;
            formats += is_format;
        }
        depth_max = depth_max.max(depth);
        formats_max = formats_max.max(formats);
    }
    if depth_max > DEPTH_MAX {
        return Err(format!(
            "has tags nested {depth_max} deep, the limit is {DEPTH_MAX}"
        ));
    }
    let reopened = formats_max.saturating_mul(tags);
    if reopened > REOPENED_MAX {
        let what = format!(
            "has {formats_max} tags that format open at a time among {tags}; their product may be \
             {REOPENED_MAX}"
        );
        return Err(what);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_made_to_be_slow_are_refused() {
        check(&"<p><b>a</b><br>".repeat(100_000)).unwrap();
        for (slow, what) in [
            ("<div>".repeat(4000), "nested"),
            (
                format!("{}{}", "<b>".repeat(1000), "<p>".repeat(10_000)),
                "format",
            ),
        ] {
            let error = check(&slow).unwrap_err();
            assert!(error.contains(what), "{error}");
        }
    }
}
