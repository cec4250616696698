//! The dates that news corpora have, in all their notations.

use chrono::{DateTime, Datelike, NaiveDate, NaiveDateTime};
use serde_json::Value;

use crate::article::Timestamp;

/// An instant, and whether its time zone had to be guessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Date {
    pub(super) at: Timestamp,
    /// It came without a time zone, and was taken as UTC.
    pub(super) is_naive: bool,
}

/// The order of a date of numbers that does not begin with the year.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum DayOrder {
    /// Such dates are not read: 01-02-2019 is two days.
    #[default]
    Unknown,
    /// MM-DD-YYYY.
    MonthFirst,
}

/// From here on, a number counts milliseconds and not seconds: as seconds it would be in the year
/// 5138, and as milliseconds it is in 1973.
const MILLIS_FROM: i64 = 100_000_000_000;

/// The first year that is read where a year may have less than four digits.
const YEAR_MIN: i32 = 1000;

const WITH_ZONE: [&str; 3] = [
    "%Y-%m-%dT%H:%M:%S%.f%z",
    "%Y-%m-%d %H:%M:%S%.f%z",
    "%Y-%m-%d %H:%M:%S%.f %z",
];

const WITHOUT_ZONE: [&str; 6] = [
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M",
    "%Y-%m-%d %H:%M",
    "%Y/%m/%d %H:%M:%S",
    "%d-%b-%Y %H:%M:%S%.f",
];

const DAYS: [&str; 5] = ["%Y-%m-%d", "%Y/%m/%d", "%Y%m%d", "%B %d, %Y", "%d %B %Y"];

/// Reads a date: RFC 3339, RFC 2822, the same without a zone, a day, or Unix seconds or milliseconds.
pub(super) fn read(value: &Value, order: DayOrder) -> Option<Date> {
    match value {
        Value::Number(number) => {
            let whole = number.as_i64().map(|_| number.to_string());
            match whole {
                Some(whole) => read_text(&whole, order),
                None => unix_fraction(number.as_f64()?),
            }
        }
        Value::String(text) => read_text(text.trim(), order),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

fn read_text(text: &str, order: DayOrder) -> Option<Date> {
    if let Ok(at) = Timestamp::parse("date", text) {
        return Some(exact(at));
    }
    let zoned = DateTime::parse_from_rfc3339(text)
        .or_else(|_| DateTime::parse_from_rfc2822(text))
        .ok();
    let zoned = zoned.or_else(|| {
        let mut formats = WITH_ZONE.iter();
        formats.find_map(|format| DateTime::parse_from_str(text, format).ok())
    });
    if let Some(zoned) = zoned {
        // A year of two digits may be of any century.
        if zoned.year() < YEAR_MIN {
            return None;
        }
        return of_naive(zoned.naive_utc()).map(exact);
    }
    for zone in ["Z", "UTC", "GMT"] {
        if let Some(rest) = text.strip_suffix(zone)
            && let Some(local) = local_time(rest.trim_end(), order)
        {
            return of_naive(local).map(exact);
        }
    }
    if let Some(local) = local_time(text, order) {
        let at = of_naive(local)?;
        return Some(Date { at, is_naive: true });
    }
    match text.parse::<i64>() {
        Ok(number) => unix(number),
        Err(_) => unix_fraction(text.parse().ok()?),
    }
}

fn local_time(text: &str, order: DayOrder) -> Option<NaiveDateTime> {
    let mut formats = WITHOUT_ZONE.iter();
    let time = formats.find_map(|format| NaiveDateTime::parse_from_str(text, format).ok());
    if time.is_some() {
        return time.filter(|time| time.year() >= YEAR_MIN);
    }
    let mut days = DAYS.iter();
    let day = days.find_map(|format| NaiveDate::parse_from_str(text, format).ok());
    let day = day.or_else(|| match order {
        DayOrder::Unknown => None,
        DayOrder::MonthFirst => NaiveDate::parse_from_str(text, "%m-%d-%Y").ok(),
    });
    let day = day.filter(|day| day.year() >= YEAR_MIN)?;
    day.and_hms_opt(0, 0, 0)
}

fn exact(at: Timestamp) -> Date {
    let is_naive = false;
    Date { at, is_naive }
}

fn of_naive(time: NaiveDateTime) -> Option<Timestamp> {
    let time = time.and_utc();
    let nanos = i64::from(time.timestamp_subsec_nanos());
    Timestamp::new("date", time.timestamp(), nanos).ok()
}

fn unix(number: i64) -> Option<Date> {
    // A year, and not half an hour of 1970.
    if (1000..3000).contains(&number) {
        return None;
    }
    let millis = if number.checked_abs()? >= MILLIS_FROM {
        number
    } else {
        number.checked_mul(1000)?
    };
    of_naive(DateTime::from_timestamp_millis(millis)?.naive_utc()).map(exact)
}

/// Seconds with a fraction, as exact as a double is: to the microsecond.
fn unix_fraction(number: f64) -> Option<Date> {
    let is_seconds = number.abs() < 1e11;
    let seconds = if is_seconds { number } else { number / 1000.0 };
    let micros = format!("{:.0}", seconds * 1e6).parse().ok()?;
    of_naive(DateTime::from_timestamp_micros(micros)?.naive_utc()).map(exact)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shown(value: &Value, order: DayOrder) -> String {
        match read(value, order) {
            Some(date) if date.is_naive => format!("{} naive", date.at),
            Some(date) => date.at.to_string(),
            None => "none".into(),
        }
    }

    #[test]
    fn every_notation_is_read() {
        for (value, expected) in [
            (json!("2019-03-04T05:06:07Z"), "2019-03-04T05:06:07+00:00"),
            (
                json!("2019-03-04T05:06:07.25+03:00"),
                "2019-03-04T02:06:07.25+00:00",
            ),
            (
                json!("2019-03-04 05:06:07+00:00"),
                "2019-03-04T05:06:07+00:00",
            ),
            (
                json!("2019-03-04 05:06:07 +0200"),
                "2019-03-04T03:06:07+00:00",
            ),
            (
                json!("2019-03-04T05:06:07+0200"),
                "2019-03-04T03:06:07+00:00",
            ),
            (
                json!("2019-03-04 05:06:07 UTC"),
                "2019-03-04T05:06:07+00:00",
            ),
            (
                json!("Mon, 04 Mar 2019 05:06:07 GMT"),
                "2019-03-04T05:06:07+00:00",
            ),
            (
                json!("Mon, 4 Mar 2019 05:06:07 -0500"),
                "2019-03-04T10:06:07+00:00",
            ),
            (
                json!("2019-03-04T05:06:07"),
                "2019-03-04T05:06:07+00:00 naive",
            ),
            (
                json!(" 2019-03-04 05:06 "),
                "2019-03-04T05:06:00+00:00 naive",
            ),
            (json!("2019-03-04"), "2019-03-04T00:00:00+00:00 naive"),
            (json!("20190304"), "2019-03-04T00:00:00+00:00 naive"),
            (json!("March 4, 2019"), "2019-03-04T00:00:00+00:00 naive"),
            (json!(1_551_675_967), "2019-03-04T05:06:07+00:00"),
            (json!(1_551_675_967_250_i64), "2019-03-04T05:06:07.25+00:00"),
            (json!("1551675967"), "2019-03-04T05:06:07+00:00"),
            (json!(1_551_675_967.5), "2019-03-04T05:06:07.5+00:00"),
            (json!(-1), "1969-12-31T23:59:59+00:00"),
            (json!(20_190_304), "2019-03-04T00:00:00+00:00 naive"),
            (json!(1_551_675_967_250.0), "2019-03-04T05:06:07.25+00:00"),
        ] {
            assert_eq!(shown(&value, DayOrder::Unknown), expected, "{value}");
        }
    }

    #[test]
    fn what_is_no_date_or_two_is_not_read() {
        for value in [
            json!("03-04-2019"),
            json!("yesterday"),
            json!(""),
            json!("2019-02-30"),
            json!("03/04/19"),
            json!("19-03-04 10:11:12"),
            json!(2019),
            json!("2019"),
            json!(null),
            json!(true),
            json!(i64::MIN),
            json!(i64::MAX),
            json!(1e300),
            json!("NaN"),
            json!("99999-01-01"),
        ] {
            assert_eq!(shown(&value, DayOrder::Unknown), "none", "{value}");
        }
        let value = json!("03-04-2019");
        let expected = "2019-03-04T00:00:00+00:00 naive";
        assert_eq!(shown(&value, DayOrder::MonthFirst), expected);
    }
}
