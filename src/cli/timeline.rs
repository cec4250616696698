//! `pressmark timeline`.

use std::io::Write;

use clap::ValueEnum;
use serde_json::json;

use super::output::{json_line, time_of};
use super::select::SelectorArgs;
use super::{CommandResult, Outcome};
use crate::client::{Client, message};
use crate::rpc::proto;

/// The width of the longest bar.
const BAR_CHARS: u64 = 50;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    selector: SelectorArgs,
    /// What one bar counts, in UTC; a week begins on Monday
    #[arg(long, value_enum, default_value_t = BucketArg::Day)]
    bucket: BucketArg,
    /// A timeline of its own for each source
    #[arg(long)]
    by_source: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum BucketArg {
    Hour,
    Day,
    Week,
    Month,
    Year,
}

impl BucketArg {
    fn message(self) -> proto::TimelineBucket {
        match self {
            Self::Hour => proto::TimelineBucket::Hour,
            Self::Day => proto::TimelineBucket::Day,
            Self::Week => proto::TimelineBucket::Week,
            Self::Month => proto::TimelineBucket::Month,
            Self::Year => proto::TimelineBucket::Year,
        }
    }

    /// The length of the part of a date that tells a bucket from the next.
    fn label_chars(self) -> usize {
        let label = match self {
            Self::Hour => "YYYY-MM-DDTHH",
            Self::Day | Self::Week => "YYYY-MM-DD",
            Self::Month => "YYYY-MM",
            Self::Year => "YYYY",
        };
        label.len()
    }
}

pub(super) async fn run(
    args: Args,
    client: &Client,
    json: bool,
    out: &mut (dyn Write + Send),
) -> CommandResult {
    let request = proto::GetTimelineRequest {
        selector: Some(args.selector.message()),
        bucket: args.bucket.message().into(),
        by_source: args.by_source,
    };
    let timeline = message(client.articles().get_timeline(request).await)?;
    let counts = timeline.series.iter().flat_map(|series| &series.counts);
    let largest = counts.map(|count| count.article_count).max().unwrap_or(0);
    for series in &timeline.series {
        if json {
            print_json(series, args.by_source, out)?;
        } else {
            print_bars(series, args.bucket, largest, out)?;
        }
    }
    Ok(Outcome::Done)
}

fn print_json(
    series: &proto::TimelineSeries,
    by_source: bool,
    out: &mut (dyn Write + Send),
) -> std::io::Result<()> {
    let source = by_source.then_some(&series.source);
    for count in &series.counts {
        let start = time_of(count.start).map(|start| start.to_string());
        let line = json!({"source": source, "start": start, "article_count": count.article_count});
        json_line(out, &line)?;
    }
    if series.undated_count() > 0 {
        let line =
            json!({"source": source, "start": null, "article_count": series.undated_count()});
        json_line(out, &line)?;
    }
    Ok(())
}

fn print_bars(
    series: &proto::TimelineSeries,
    bucket: BucketArg,
    largest: u64,
    out: &mut (dyn Write + Send),
) -> std::io::Result<()> {
    if !series.source.is_empty() {
        writeln!(out, "{}", series.source)?;
    }
    let width = bucket.label_chars().max("undated".len());
    for count in &series.counts {
        let start = time_of(count.start).map_or_else(String::new, |start| start.to_string());
        let label: String = start.chars().take(bucket.label_chars()).collect();
        let bar = bar(count.article_count, largest);
        writeln!(out, "{label:width$} {:>10}  {bar}", count.article_count)?;
    }
    if series.undated_count() > 0 {
        writeln!(out, "{:width$} {:>10}", "undated", series.undated_count())?;
    }
    Ok(())
}

/// A bar as long as a count is beside the largest; no count is without one.
fn bar(count: u64, largest: u64) -> String {
    let length = (u128::from(count) * u128::from(BAR_CHARS)).div_ceil(u128::from(largest.max(1)));
    "#".repeat(usize::try_from(length).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_counts() {
        let lengths = [(0, 10), (1, 1000), (5, 10), (10, 10), (u64::MAX, u64::MAX)];
        let lengths = lengths.map(|(count, largest)| bar(count, largest).len());
        assert_eq!(lengths, [0, 1, 25, 50, 50]);
    }
}
