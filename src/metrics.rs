//! What an archive counts since it was opened, under the names that Prometheus reads.

use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// A number that only grows.
pub type Counter = prometheus_client::metrics::counter::Counter;

/// Articles at which the histogram of groups counts.
const GROUP_BUCKETS: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// Seconds at which the histogram of commits counts.
const COMMIT_BUCKETS: [f64; 11] = [
    0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
];

/// What one archive did since it was opened.
#[derive(Debug)]
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
    /// Puts in each group.
    pub group_articles: Histogram,
    /// Seconds for each group's write and sync.
    pub commit_seconds: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            created: Counter::default(),
            revised: Counter::default(),
            duplicate: Counter::default(),
            put_deleted: Counter::default(),
            deleted: Counter::default(),
            commits: Counter::default(),
            commit_micros: Counter::default(),
            read: Counter::default(),
            damaged: Counter::default(),
            group_articles: Histogram::new(GROUP_BUCKETS),
            commit_seconds: Histogram::new(COMMIT_BUCKETS),
        }
    }
}

impl Metrics {
    /// Gives the figures their names, to which the registry adds `_total` where they are counters.
    pub fn register(&self, registry: &mut Registry) {
        let mut count = |name: &str, help: &str, counter: &Counter| {
            registry.register(name, help, counter.clone());
        };
        count("puts_created", "Articles stored as new", &self.created);
        count(
            "puts_revision",
            "Articles stored at a URL that had one",
            &self.revised,
        );
        count(
            "puts_duplicate",
            "Puts of what was stored already",
            &self.duplicate,
        );
        count(
            "puts_deleted",
            "Puts of what has a tombstone",
            &self.put_deleted,
        );
        count("deletes", "Articles deleted", &self.deleted);
        count("reads", "Articles read and proved intact", &self.read);
        count("reads_damaged", "Reads that found damage", &self.damaged);
        let help = "Puts in each group of writes";
        registry.register("group_articles", help, self.group_articles.clone());
        let help = "Time to write and sync each group";
        registry.register("commit_seconds", help, self.commit_seconds.clone());
    }
}
