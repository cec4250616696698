//! Counters since the process started. They count; what they mean for a service is told where they
//! are served.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts more.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// The number so far.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one archive did since it was opened.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Articles stored at a URL that was new, or without a URL.
    pub created: Counter,
    /// Articles stored at a URL that had one.
    pub revised: Counter,
    /// Puts of an article that was stored already.
    pub duplicate: Counter,
    /// Puts of an article that has a tombstone.
    pub put_deleted: Counter,
    /// Articles deleted.
    pub deleted: Counter,
    /// Groups written and synced.
    pub commits: Counter,
    /// Microseconds spent in writing and syncing them.
    pub commit_micros: Counter,
    /// Articles read and proved intact.
    pub read: Counter,
    /// Reads that found damage.
    pub damaged: Counter,
}
