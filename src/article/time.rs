//! [`Timestamp`]: an instant of the years 0001..=9999, in UTC, to the nanosecond.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use chrono::{DateTime, Datelike, NaiveDate, Timelike};

use crate::error::{Error, Reason, Result, excerpt};

/// Seconds since the Unix epoch of 0001-01-01T00:00:00Z, the first instant.
pub const SECONDS_MIN: i64 = -62_135_596_800;

/// Seconds since the Unix epoch of 9999-12-31T23:59:59Z, the last second.
pub const SECONDS_MAX: i64 = 253_402_300_799;

const NANOS_MAX: u32 = 999_999_999;

/// An instant. The range is that of `google.protobuf.Timestamp`; leap seconds do not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    seconds: i64,
    nanos: u32,
}

impl Timestamp {
    /// The Unix epoch.
    pub const EPOCH: Self = Self {
        seconds: 0,
        nanos: 0,
    };

    /// Checks seconds since the Unix epoch and the nanoseconds after them; the error names `field`.
    ///
    /// # Errors
    /// `ArgumentInvalid` outside of the years 0001..=9999 or of 0..=999,999,999 nanoseconds.
    pub fn new(field: &str, seconds: i64, nanos: i64) -> Result<Self> {
        let invalid = |what: String| Error::field(Reason::ArgumentInvalid, field, what);
        if !(SECONDS_MIN..=SECONDS_MAX).contains(&seconds) {
            return Err(invalid(format!(
                "{seconds} seconds since 1970 is outside of the years 0001 to 9999 \
                 ({SECONDS_MIN} to {SECONDS_MAX})"
            )));
        }
        match u32::try_from(nanos) {
            Ok(nanos) if nanos <= NANOS_MAX => Ok(Self { seconds, nanos }),
            _ => Err(invalid(format!(
                "{nanos} nanoseconds is not in 0 to {NANOS_MAX}"
            ))),
        }
    }

    /// Converts what a clock shows.
    ///
    /// # Errors
    /// `ArgumentInvalid` if the clock is not in the years 1970..=9999.
    pub fn from_clock(now: SystemTime) -> Result<Self> {
        let since = now
            .duration_since(UNIX_EPOCH)
            .map_err(|_| Error::field(Reason::ArgumentInvalid, "clock", "is before 1970"))?;
        let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
        Self::new("clock", seconds, i64::from(since.subsec_nanos()))
    }

    /// Reads the one form that [`Display`](fmt::Display) writes, and nothing else.
    ///
    /// # Errors
    /// `ArticleInvalid`, naming `field`, if the text is not that form or no such instant exists.
    pub fn parse(field: &str, text: &str) -> Result<Self> {
        Self::parse_canonical(text).ok_or_else(|| {
            Error::field(
                Reason::ArticleInvalid,
                field,
                format!(
                    "{} is not an instant of the years 0001 to 9999 as \
                     YYYY-MM-DDTHH:MM:SS[.fraction]+00:00",
                    excerpt(text)
                ),
            )
        })
    }

    /// Reads what people write: a day, or a time with or without the zone, which can only be UTC.
    #[must_use]
    pub fn parse_short(text: &str) -> Option<Self> {
        let time = text
            .strip_suffix('Z')
            .or_else(|| text.strip_suffix("+00:00"))
            .unwrap_or(text);
        let midnight = if time.contains('T') { "" } else { "T00:00:00" };
        Self::parse_canonical(&format!("{time}{midnight}+00:00"))
    }

    /// Seconds since the Unix epoch.
    #[must_use]
    pub const fn seconds(self) -> i64 {
        self.seconds
    }

    /// Nanoseconds after [`seconds`](Self::seconds).
    #[must_use]
    pub const fn nanos(self) -> u32 {
        self.nanos
    }

    fn parse_canonical(text: &str) -> Option<Self> {
        let bytes = text.strip_suffix("+00:00")?.as_bytes();
        let (whole, fraction) = bytes.split_at_checked("YYYY-MM-DDTHH:MM:SS".len())?;
        for (at, separator) in [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')] {
            if whole.get(at) != Some(&separator) {
                return None;
            }
        }
        let number = |from: usize, to: usize| digits(whole.get(from..to)?);
        let year = i32::try_from(number(0, 4)?)
            .ok()
            .filter(|year| *year >= 1)?;
        let day = NaiveDate::from_ymd_opt(year, number(5, 7)?, number(8, 10)?)?;
        let instant = day.and_hms_opt(number(11, 13)?, number(14, 16)?, number(17, 19)?)?;
        let nanos = match fraction {
            [] => 0,
            [b'.', fraction @ ..] => fraction_nanos(fraction)?,
            _ => return None,
        };
        Some(Self {
            seconds: instant.and_utc().timestamp(),
            nanos,
        })
    }
}

/// The value of up to nine decimal digits.
fn digits(text: &[u8]) -> Option<u32> {
    text.iter().try_fold(0_u32, |value, digit| {
        let digit = digit.is_ascii_digit().then(|| u32::from(*digit - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

/// Nanoseconds of the digits after the dot, which end in no zero.
fn fraction_nanos(fraction: &[u8]) -> Option<u32> {
    const DIGITS_MAX: usize = 9;
    if fraction.is_empty() || fraction.len() > DIGITS_MAX || fraction.last() == Some(&b'0') {
        return None;
    }
    let missing = u32::try_from(DIGITS_MAX - fraction.len()).ok()?;
    digits(fraction)?.checked_mul(10_u32.checked_pow(missing)?)
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = DateTime::from_timestamp(self.seconds, self.nanos).ok_or(fmt::Error)?;
        write!(
            f,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}",
            time.year(),
            time.month(),
            time.day(),
            time.hour(),
            time.minute(),
            time.second()
        )?;
        if self.nanos != 0 {
            let fraction = format!("{:09}", self.nanos);
            write!(f, ".{}", fraction.trim_end_matches('0'))?;
        }
        f.write_str("+00:00")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(seconds: i64, nanos: i64, text: &str) {
        let time = Timestamp::new("published_at", seconds, nanos).unwrap();
        assert_eq!(time.to_string(), text);
        assert_eq!(Timestamp::parse("published_at", text).unwrap(), time);
    }

    #[test]
    fn both_ends_and_fractions_print_as_they_parse() {
        check(0, 0, "1970-01-01T00:00:00+00:00");
        check(SECONDS_MIN, 0, "0001-01-01T00:00:00+00:00");
        check(
            SECONDS_MAX,
            999_999_999,
            "9999-12-31T23:59:59.999999999+00:00",
        );
        check(951_782_400, 500_000_000, "2000-02-29T00:00:00.5+00:00");
        check(-1, 1, "1969-12-31T23:59:59.000000001+00:00");
    }

    #[test]
    fn only_the_canonical_form_parses() {
        for text in [
            "",
            "2019-11-03",
            "2019-11-03T15:00:44Z",
            "2019-11-03T15:00:44+01:00",
            "2019-11-03 15:00:44+00:00",
            "2019-11-03T15:00:44.+00:00",
            "2019-11-03T15:00:44.50+00:00",
            "2019-11-03T15:00:44.1234567891+00:00",
            "2019-11-03T15:00:60+00:00",
            "2019-02-29T15:00:44+00:00",
            "0000-01-01T00:00:00+00:00",
            "10000-01-01T00:00:00+00:00",
            "+019-11-03T15:00:44+00:00",
        ] {
            let error = Timestamp::parse("published_at", text).unwrap_err();
            assert_eq!(error.field_name(), Some("published_at"), "{text}");
        }
    }

    #[test]
    fn years_0_and_10000_are_outside() {
        for (seconds, nanos) in [
            (SECONDS_MIN - 1, 0),
            (SECONDS_MAX + 1, 0),
            (0, -1),
            (0, 1_000_000_000),
        ] {
            let error = Timestamp::new("published_at", seconds, nanos).unwrap_err();
            assert_eq!(
                error.field_name(),
                Some("published_at"),
                "{seconds} {nanos}"
            );
        }
    }

    proptest! {
        #[test]
        fn every_instant_parses_back(seconds in SECONDS_MIN..=SECONDS_MAX, nanos in 0..=i64::from(NANOS_MAX)) {
            let time = Timestamp::new("t", seconds, nanos).unwrap();
            prop_assert_eq!(Timestamp::parse("t", &time.to_string()).unwrap(), time);
        }
    }
}
