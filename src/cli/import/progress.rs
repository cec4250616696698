//! The bar of an import: on a terminal, and nothing elsewhere.

use std::io::{self, IsTerminal};
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::read::Position;
use crate::cli::complain;

/// Articles between two looks at how far the files are read.
const STEP_ARTICLES: u64 = 64;

/// While it is not known how much there is to read, as from a pipe.
const WITHOUT_END: &str = "{spinner} {msg} articles  {binary_bytes}  {elapsed}";
const WITH_END: &str = "{bar:24} {percent:>3}%  {msg} articles  {binary_bytes_per_sec}  {eta} left";

pub(super) struct Progress {
    bar: ProgressBar,
    position: Arc<Position>,
    articles: u64,
    has_end: bool,
}

impl Progress {
    pub(super) fn new(position: Arc<Position>) -> Self {
        let bar = if io::stderr().is_terminal() {
            ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr())
        } else {
            ProgressBar::hidden()
        };
        let progress = Self {
            bar,
            position,
            articles: 0,
            has_end: false,
        };
        progress.style(WITHOUT_END);
        progress
    }

    fn style(&self, template: &str) {
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style);
        }
    }

    pub(super) fn step(&mut self) {
        self.articles += 1;
        if self.articles % STEP_ARTICLES != 1 || self.bar.is_hidden() {
            return;
        }
        let total = self.position.total();
        if total > 0 && !self.has_end {
            self.has_end = true;
            self.bar.set_length(total);
            self.style(WITH_END);
        }
        let seconds = self.bar.elapsed().as_secs().max(1);
        let rate = self.articles / seconds;
        self.bar
            .set_message(format!("{} ({rate}/s)", self.articles));
        self.bar.set_position(self.position.bytes.get());
    }

    pub(super) fn tell(&mut self, line: &str) {
        self.bar.suspend(|| complain(line));
    }

    pub(super) fn finish(&mut self) {
        self.bar.finish_and_clear();
    }
}
