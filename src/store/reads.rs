//! Where the reads of an engine run.
//!
//! A read that finds its rows in memory takes a few microseconds, less than it takes to hand it to
//! another thread and back. A read that waits for the disk would hold up every task of the thread that
//! it runs on. Nobody can tell beforehand which one it will be, so a small read runs where it is asked
//! for as long as such reads are fast, and after a slow one the next ones run on threads that may wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::closed;
use crate::error::{Error, Reason, Result, panic};

/// The most rows of a read that is small.
pub(super) const SMALL_ROWS_MAX: usize = 64;

/// What a small read takes at most if it need not wait, and what a row of it adds.
const SMALL_TIME_MAX: Duration = Duration::from_micros(100);
const ROW_TIME_MAX: Duration = Duration::from_micros(10);

/// Small reads that run on other threads after one was slow.
const READS_AFTER_SLOW: u32 = 32;

/// Reads that run on other threads at a time. Each costs memory of its own, and more of them do not
/// make a disk faster.
const THREADS_MAX: usize = 16;

/// Decides where reads run.
#[derive(Debug)]
pub(super) struct Reads {
    /// Small reads still to be run on other threads.
    after_slow: AtomicU32,
    /// Small reads that took no longer than memory takes, and those that did.
    fast_count: AtomicU64,
    slow_count: AtomicU64,
    threads: Arc<Semaphore>,
}

impl Default for Reads {
    fn default() -> Self {
        Self {
            after_slow: AtomicU32::new(0),
            fast_count: AtomicU64::new(0),
            slow_count: AtomicU64::new(0),
            threads: Arc::new(Semaphore::new(THREADS_MAX)),
        }
    }
}

impl Reads {
    /// Runs a read of at most so many rows. One that panics has failed.
    pub(super) async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        rows_max: usize,
        read: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        if rows_max <= SMALL_ROWS_MAX && self.are_fast() {
            let (result, is_fast) = self.timed(rows_max, read);
            if !is_fast {
                self.after_slow.store(READS_AFTER_SLOW, Ordering::Relaxed);
            }
            return result;
        }
        let reads = Arc::clone(self);
        let threads = Arc::clone(&self.threads);
        let thread = threads.acquire_owned().await.map_err(|_| closed())?;
        let reading = move || {
            let result = if rows_max <= SMALL_ROWS_MAX {
                reads.timed(rows_max, read).0
            } else {
                guarded(read)
            };
            drop(thread);
            result
        };
        let read = tokio::task::spawn_blocking(reading).await;
        read.unwrap_or_else(|_| Err(panicked()))
    }

    /// Runs a small read, and tells whether it was as fast as memory is.
    fn timed<T>(&self, rows_max: usize, read: impl FnOnce() -> Result<T>) -> (Result<T>, bool) {
        let started = Instant::now();
        let result = guarded(read);
        let rows = u32::try_from(rows_max).unwrap_or(u32::MAX);
        let is_fast = started.elapsed() <= SMALL_TIME_MAX + ROW_TIME_MAX * rows;
        let count = if is_fast {
            &self.fast_count
        } else {
            &self.slow_count
        };
        count.fetch_add(1, Ordering::Relaxed);
        (result, is_fast)
    }

    /// Small reads so far: those that were as fast as memory is, and the others.
    pub(super) fn counts(&self) -> (u64, u64) {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (count(&self.fast_count), count(&self.slow_count))
    }

    /// Whether a small read need not wait, as far as one can tell.
    fn are_fast(&self) -> bool {
        let one_less = |reads: u32| reads.checked_sub(1);
        let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
        self.after_slow.fetch_update(set, fetch, one_less).is_err()
    }
}

fn guarded<T>(read: impl FnOnce() -> Result<T>) -> Result<T> {
    panic::caught(read).unwrap_or_else(|_| Err(panicked()))
}

/// The panic's own text can hold the whole tree.
fn panicked() -> Error {
    Error::new(Reason::StoreDamaged, "a read of the engine panicked")
}

#[cfg(test)]
mod tests {
    use std::thread::{self, ThreadId};

    use super::*;

    async fn thread_of(reads: &Arc<Reads>, rows_max: usize) -> ThreadId {
        let read = || Ok(thread::current().id());
        reads.run(rows_max, read).await.unwrap()
    }

    #[tokio::test]
    async fn reads_run_where_they_are_asked_for_until_one_is_slow() {
        let reads = Arc::new(Reads::default());
        let here = thread::current().id();
        assert_eq!(thread_of(&reads, 1).await, here);
        assert_ne!(thread_of(&reads, SMALL_ROWS_MAX + 1).await, here);

        let slow = || {
            let started = Instant::now();
            while started.elapsed() <= SMALL_TIME_MAX + ROW_TIME_MAX {}
            Ok(())
        };
        reads.run(1, slow).await.unwrap();
        for _ in 0..READS_AFTER_SLOW {
            assert_ne!(thread_of(&reads, 1).await, here);
        }
        assert_eq!(thread_of(&reads, 1).await, here);
        let (fast_count, slow_count) = reads.counts();
        assert!(slow_count >= 1, "{slow_count}");
        // The large one is not counted.
        assert_eq!(fast_count + slow_count, u64::from(READS_AFTER_SLOW) + 3);
    }

    #[tokio::test]
    async fn a_panic_is_an_error_on_either_thread() {
        let reads = Arc::new(Reads::default());
        for rows_max in [1, SMALL_ROWS_MAX + 1] {
            let read = || -> Result<()> { std::panic::resume_unwind(Box::new(7)) };
            let error = reads.run(rows_max, read).await.unwrap_err();
            assert_eq!(error.reason(), Reason::StoreDamaged);
        }
    }
}
