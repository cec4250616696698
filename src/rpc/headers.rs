//! Reads the headers of requests that the server itself knows what to do with.

use std::time::Duration;

use http::HeaderMap;

use crate::error::{Error, Reason, Result, excerpt};

/// The header that names the sequence which the archive has to have come to before a request is
/// answered.
pub const MIN_SEQUENCE: &str = "pressmark-min-sequence";

/// What HTTP/2 counts for a header besides its name and value.
const HEADER_BYTES: usize = 32;

/// Refuses more bytes of headers than may be.
pub(super) fn check_headers(headers: &HeaderMap, most: u32) -> Result<()> {
    let bytes = headers.iter().map(|(name, value)| {
        let length = name.as_str().len() + value.len() + HEADER_BYTES;
        u32::try_from(length).unwrap_or(u32::MAX)
    });
    let bytes = bytes.fold(0, u32::saturating_add);
    if bytes > most {
        let what = format!("the headers have {bytes} bytes, the limit is {most}");
        return Err(Error::new(Reason::HeadersTooLarge, what));
    }
    Ok(())
}

pub(super) fn bearer(headers: &HeaderMap) -> Result<Option<&str>> {
    let Some(value) = headers.get(http::header::AUTHORIZATION) else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default();
    let token = text.split_once(' ').and_then(|(scheme, token)| {
        scheme
            .eq_ignore_ascii_case("bearer")
            .then_some(token.trim_start())
    });
    token.map(Some).ok_or_else(|| {
        let what = "the header `authorization` is not `Bearer TOKEN`";
        Error::new(Reason::CredentialsUnknown, what)
    })
}

/// The time that a client gives a request: up to eight digits and a unit.
pub(super) fn timeout_of(headers: &HeaderMap) -> Result<Option<Duration>> {
    let Some(value) = headers.get("grpc-timeout") else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default();
    let parsed = text.len().checked_sub(1).and_then(|end| {
        let (digits, unit) = text.split_at_checked(end)?;
        if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let count: u64 = digits.parse().ok()?;
        Some(match unit {
            "H" => Duration::from_secs(count * 3600),
            "M" => Duration::from_secs(count * 60),
            "S" => Duration::from_secs(count),
            "m" => Duration::from_millis(count),
            "u" => Duration::from_micros(count),
            "n" => Duration::from_nanos(count),
            _ => return None,
        })
    });
    parsed.map(Some).ok_or_else(|| {
        let what = format!("{text:?} is not up to eight digits and one of H, M, S, m, u, n");
        Error::field(Reason::ArgumentInvalid, "grpc-timeout", what)
    })
}

/// The sequence that the archive has to have come to.
pub(super) fn min_sequence_of(headers: &HeaderMap) -> Result<Option<u64>> {
    let mut values = headers.get_all(MIN_SEQUENCE).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return if headers.contains_key(MIN_SEQUENCE) {
            Err(no_sequence("it is sent more than once"))
        } else {
            Ok(None)
        };
    };
    let text = value.to_str().unwrap_or_default();
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let sequence = text.parse().ok().filter(|_| is_number);
    let what = || {
        format!(
            "{} is not a sequence, a number from 0 to {}",
            excerpt(text),
            u64::MAX
        )
    };
    sequence.map(Some).ok_or_else(|| no_sequence(&what()))
}

fn no_sequence(what: &str) -> Error {
    Error::field(Reason::ArgumentInvalid, MIN_SEQUENCE, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(name: &'static str, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().unwrap());
        headers
    }

    #[test]
    fn timeouts_are_read_as_the_protocol_says() {
        let read = |text| timeout_of(&header("grpc-timeout", text));
        assert_eq!(read("5S").unwrap(), Some(Duration::from_secs(5)));
        assert_eq!(
            read("99999999H").unwrap(),
            Some(Duration::from_secs(359_999_996_400))
        );
        assert_eq!(read("1m").unwrap(), Some(Duration::from_millis(1)));
        assert_eq!(timeout_of(&HeaderMap::new()).unwrap(), None);
        for text in ["", "S", "5", "5s", "-5S", "+5S", "123456789S", "5 S", "é"] {
            assert!(read(text).is_err() || text == "S", "{text}");
        }
    }

    #[test]
    fn a_header_without_a_token_is_no_anonymous_call() {
        let read =
            |text: &str| bearer(&header("authorization", text)).map(|t| t.map(str::to_owned));
        assert_eq!(read("Bearer x").unwrap().as_deref(), Some("x"));
        assert_eq!(read("bearer  x").unwrap().as_deref(), Some("x"));
        assert!(read("Basic x").is_err());
        assert!(read("x").is_err());
    }

    #[test]
    fn a_sequence_is_a_number_or_is_named_as_none() {
        let read = |text: &str| min_sequence_of(&header(MIN_SEQUENCE, text));
        assert_eq!(min_sequence_of(&HeaderMap::new()).unwrap(), None);
        assert_eq!(read("0").unwrap(), Some(0));
        assert_eq!(read("18446744073709551615").unwrap(), Some(u64::MAX));
        let mut twice = header(MIN_SEQUENCE, "1");
        twice.append(MIN_SEQUENCE, "1".parse().unwrap());
        let wrong = ["", "-1", "+1", "1.0", "0x1", "one", "18446744073709551616"];
        let errors = wrong.map(read).into_iter().chain([min_sequence_of(&twice)]);
        for error in errors.map(Result::unwrap_err) {
            assert_eq!(error.field_name(), Some(MIN_SEQUENCE), "{error}");
        }
    }
}
