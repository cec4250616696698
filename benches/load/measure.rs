//! Closed and open loops, and what they measured.
//!
//! In a closed loop a request starts when the one before has ended: it tells how much a server can
//! do. In an open loop requests start at fixed times whatever the server does, and a latency counts
//! from the time at which the request was due, so that a pause of the server is in the latency of
//! all requests that it kept waiting.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

/// One request, by number.
pub type Request = Arc<dyn Fn(u64) -> BoxFuture<'static, ()> + Send + Sync>;

const MICROS_MAX: u64 = 600_000_000;
/// Requests that an open loop has outstanding at most; one more means that the server is far behind.
const OUTSTANDING_MAX: usize = 20_000;

/// What a loop saw.
pub struct Measured {
    pub count: u64,
    pub elapsed: Duration,
    pub micros: Histogram<u64>,
}

impl Measured {
    pub fn per_second(&self) -> f64 {
        self.count as f64 / self.elapsed.as_secs_f64()
    }

    pub fn figures(&self) -> Value {
        json!({
            "count": self.count,
            "seconds": round(self.elapsed.as_secs_f64()),
            "per_s": self.per_second().round(),
            "p50_us": self.micros.value_at_quantile(0.5),
            "p99_us": self.micros.value_at_quantile(0.99),
            "p999_us": self.micros.value_at_quantile(0.999),
            "max_us": self.micros.max(),
        })
    }
}

pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, MICROS_MAX, 3).unwrap()
}

fn micros_since(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_micros()).unwrap().max(1)
}

/// When a closed loop ends.
#[derive(Clone, Copy)]
pub struct Limit {
    count: u64,
    time: Duration,
}

impl Limit {
    /// After so many requests.
    pub fn count(count: u64) -> Self {
        Self {
            count,
            time: Duration::MAX,
        }
    }

    /// After so much time.
    pub fn time(time: Duration) -> Self {
        Self {
            count: u64::MAX,
            time,
        }
    }
}

/// Sends requests, so many at a time.
pub async fn closed_loop(in_flight: u64, limit: Limit, request: Request) -> Measured {
    let next = Arc::new(AtomicU64::new(0));
    let begun = Instant::now();
    let worker = || {
        let (next, request) = (Arc::clone(&next), Arc::clone(&request));
        tokio::spawn(async move {
            let mut micros = histogram();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= limit.count || begun.elapsed() >= limit.time {
                    return micros;
                }
                let started = Instant::now();
                request(number).await;
                micros.saturating_record(micros_since(started));
            }
        })
    };
    let workers: Vec<_> = (0..in_flight).map(|_| worker()).collect();
    let mut micros = histogram();
    for worker in workers {
        micros.add(worker.await.unwrap()).unwrap();
    }
    Measured {
        count: micros.len(),
        elapsed: begun.elapsed(),
        micros,
    }
}

/// Sends `count` requests at a rate, whatever the server does.
pub async fn open_loop(per_second: f64, count: u64, request: Request) -> Measured {
    let room = Arc::new(Semaphore::new(OUTSTANDING_MAX));
    let started = Instant::now();
    let mut sent = Vec::with_capacity(usize::try_from(count).unwrap());
    for number in 0..count {
        let due = started + Duration::from_secs_f64(number as f64 / per_second);
        tokio::time::sleep_until(due.into()).await;
        let room = Arc::clone(&room).acquire_owned().await.unwrap();
        let request = request(number);
        sent.push(tokio::spawn(async move {
            request.await;
            drop(room);
            micros_since(due)
        }));
    }
    let mut micros = histogram();
    for request in sent {
        micros.saturating_record(request.await.unwrap());
    }
    Measured {
        count,
        elapsed: started.elapsed(),
        micros,
    }
}

pub fn round(figure: f64) -> f64 {
    (figure * 1000.0).round() / 1000.0
}
