//! What a migration tells while it runs: where it is, how fast, and how far behind. A line that is
//! drawn anew on a terminal, lines from time to time elsewhere, objects on standard output with
//! `--json`.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget};
use serde_json::json;

use crate::cli::complain;
use crate::cli::output::json_line;

/// How often it is told where a migration is, where that is a new line each time and where it is not.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
const INTERVAL: Duration = Duration::from_secs(1);

pub(super) struct Report {
    json: bool,
    bar: ProgressBar,
    told: Option<Told>,
    phase: Phase,
    /// When both archives answered last.
    pub(super) alive: Option<Instant>,
    /// The last sequence that is durable at the new place.
    pub(super) sequence: u64,
    /// The sequence that it began behind.
    first: Option<u64>,
    /// Whether the old archive takes no more writes.
    pub(super) has_moved: bool,
}

/// How far a migration is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It copies what was there at the start.
    Copying,
    /// It has just finished that, which is worth a line whenever it comes.
    CaughtUp,
    /// It copies what comes.
    Following,
}

impl Phase {
    fn word(self) -> &'static str {
        match self {
            Self::Copying => "copying",
            Self::CaughtUp | Self::Following => "following",
        }
    }
}

/// What was told last.
#[derive(Clone, Copy)]
struct Told {
    at: Instant,
    sequence: u64,
}

impl Report {
    pub(super) fn new(json: bool) -> Self {
        let bar = if io::stderr().is_terminal() && !json {
            ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr())
        } else {
            ProgressBar::hidden()
        };
        Self {
            json,
            bar,
            told: None,
            phase: Phase::Copying,
            alive: None,
            sequence: 0,
            first: None,
            has_moved: false,
        }
    }

    /// Records that were copied since the start.
    pub(super) fn copied_count(&self) -> u64 {
        self.first
            .map_or(0, |first| self.sequence.saturating_sub(first))
    }

    /// Tells from time to time that everything up to a sequence is durable, of those up to `last`.
    pub(super) fn progress(
        &mut self,
        sequence: u64,
        last: u64,
        out: &mut (dyn Write + Send),
    ) -> io::Result<()> {
        let now = Instant::now();
        self.alive = Some(now);
        self.first.get_or_insert(sequence);
        self.sequence = sequence;
        let interval = if self.json || !self.bar.is_hidden() {
            INTERVAL
        } else {
            LINE_INTERVAL
        };
        let Some(told) = self.told.replace(Told { at: now, sequence }) else {
            return Ok(());
        };
        let elapsed = now - told.at;
        if elapsed < interval && self.phase != Phase::CaughtUp {
            self.told = Some(told);
            return Ok(());
        }
        if self.phase == Phase::CaughtUp {
            self.phase = Phase::Following;
        }
        let millis = u64::try_from(elapsed.as_millis())
            .unwrap_or(u64::MAX)
            .max(1);
        let rate = sequence.saturating_sub(told.sequence).saturating_mul(1000) / millis;
        let behind = last.saturating_sub(sequence);
        if self.json {
            let line = json!({
                "event": self.phase.word(),
                "sequence": sequence, "last_sequence": last, "behind": behind,
                "records_per_second": rate,
            });
            json_line(out, &line)?;
            return out.flush();
        }
        let word = self.phase.word();
        let line = format!("{word}: {sequence} of {last} records, {behind} behind, {rate}/s");
        if self.bar.is_hidden() {
            complain(&line);
        } else {
            self.bar.set_message(line);
            self.bar.tick();
        }
        Ok(())
    }

    /// Notes that all that was there at the start is copied, and what comes is from now on.
    pub(super) fn follow(&mut self) {
        if self.phase == Phase::Copying {
            self.phase = Phase::CaughtUp;
        }
    }

    /// Prints a line for the person at the terminal.
    pub(super) fn tell(&self, line: &str) {
        self.bar.suspend(|| complain(line));
    }

    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
