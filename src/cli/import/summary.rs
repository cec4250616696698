//! What an import tells of its records: how many were what, and why some were refused.

use std::io::Write;

use serde_json::{Value, json};

use super::read::Origin;
use crate::cli::Failure;
use crate::cli::output::json_line;
use crate::error::Error;
use crate::format::{DateNote, Place};
use crate::rpc::proto;

/// Dates that could not be read and are told one by one; the summary counts all.
const WARNINGS_MAX: u64 = 20;

/// The figures of an import.
#[derive(Default)]
pub(super) struct Summary {
    new: u64,
    duplicate: u64,
    revision: u64,
    deleted: u64,
    pub(super) refused: u64,
    naive_dates: u64,
    unreadable_dates: u64,
}

impl Summary {
    pub(super) fn count(&mut self, outcome: proto::PutOutcome) {
        match outcome {
            proto::PutOutcome::Created => self.new += 1,
            proto::PutOutcome::Duplicate => self.duplicate += 1,
            proto::PutOutcome::Revision => self.revision += 1,
            proto::PutOutcome::Deleted => self.deleted += 1,
            proto::PutOutcome::Unspecified => self.refused += 1,
        }
    }

    /// Counts what became of a date. Returns what a person should be told of it.
    pub(super) fn count_date(&mut self, date: &DateNote) -> Option<String> {
        match date {
            DateNote::Fine => None,
            DateNote::Naive => {
                self.naive_dates += 1;
                None
            }
            DateNote::Unreadable(_) => {
                self.unreadable_dates += 1;
                date.warning()
                    .filter(|_| self.unreadable_dates <= WARNINGS_MAX)
            }
        }
    }

    pub(super) fn print(&self, json: bool, out: &mut (dyn Write + Send)) -> Result<(), Failure> {
        let Self {
            new,
            duplicate,
            revision,
            deleted,
            refused,
            naive_dates,
            unreadable_dates,
        } = self;
        if json {
            let line = json!({
                "new": new, "duplicate": duplicate, "revision": revision,
                "deleted": deleted, "refused": refused,
                "naive_dates": naive_dates, "unreadable_dates": unreadable_dates,
            });
            json_line(out, &line)?;
            return Ok(());
        }
        writeln!(
            out,
            "{new} new, {duplicate} duplicate, {revision} revision, {deleted} deleted before, \
             {refused} refused"
        )?;
        if naive_dates + unreadable_dates > 0 {
            writeln!(
                out,
                "{naive_dates} dates had no time zone and were taken as UTC, {unreadable_dates} could \
                 not be read and were left out"
            )?;
        }
        Ok(())
    }
}

/// Why a record is not stored.
pub(super) struct Refusal {
    reason: String,
    field: Option<String>,
    pub(super) message: String,
}

impl Refusal {
    /// The refusal of a record that was not sent.
    pub(super) fn of(error: &Error) -> Self {
        Self {
            reason: error.reason().as_str().to_owned(),
            field: error.field_name().map(str::to_owned),
            message: error.to_string(),
        }
    }

    /// The refusal that the archive answered.
    pub(super) fn answered(error: proto::ImportError) -> Self {
        Self {
            reason: error.reason,
            field: Some(error.field).filter(|field| !field.is_empty()),
            message: error.message,
        }
    }

    pub(super) fn json(&self, origin: &Origin) -> Value {
        let (line, row, byte) = match origin.place {
            Place::File => (None, None, None),
            Place::Line(line) => (Some(line), None, None),
            Place::Row(row) => (None, Some(row), None),
            Place::Byte(byte) => (None, None, Some(byte)),
        };
        json!({
            "file": origin.path.display().to_string(), "line": line, "row": row, "byte": byte,
            "reason": self.reason, "field": self.field, "error": self.message,
        })
    }
}
