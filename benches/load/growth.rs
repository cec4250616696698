//! What an archive costs as it grows: rates, memory, disk and the time to open it.

use rustix::process::Signal;
use serde_json::json;

use crate::measure::round;
use crate::{Bench, report, workload};

/// Articles that are generated and imported at a time.
const STEP: u64 = 100_000;

/// Reads an archive that is there by date, right after a start and again.
pub async fn scan(bench: &Bench) {
    let (client, mut running) = bench.start_known().await;
    for work in ["scan_after_start", "scan_again"] {
        let mut figures = workload::scan_first(&running, &client).await;
        let gets = client
            .stats()
            .await
            .storage_requests
            .map(|requests| requests.get_count());
        figures["gets_since_start"] = json!(gets);
        report(work, figures);
    }
    running.process.stop(Signal::TERM);
}

/// Imports articles until the archive has each of these sizes, in ascending order, and measures it
/// there: the rate is that of the last step.
pub async fn run(bench: &Bench, sizes: &[u64]) {
    let (mut client, mut running) = bench.start_known().await;
    let (mut number, mut stored, mut text_bytes) = (0, 0, 0);
    let mut ids = Vec::new();
    for &size in sizes {
        let mut rates = Vec::new();
        let mut peak = 0;
        while number < size {
            let work = bench.generate(number..(number + STEP).min(size));
            let figures = workload::import(&running, &work, false).await;
            rates.push(figures["per_s"].as_f64().unwrap());
            peak = peak.max(figures["rss_peak_bytes"].as_u64().unwrap());
            number += work.article_count;
            stored += work.article_count - work.duplicates;
            text_bytes += work.text_bytes;
            ids.extend(work.ids);
            crate::empty(bench.folder.path());
        }
        let storage = client.stats().await.storage_requests.map(|requests| {
            json!({
                "puts": requests.put_count(), "gets": requests.get_count(),
                "per_1000_articles": requests.puts_per_1000_articles(),
            })
        });
        let missing = workload::missing(&running, &ids).await;
        let get_any = workload::get_any(&running, &ids).await;
        let scan = workload::scan_first(&running, &client).await;
        running.process.stop(Signal::TERM);
        (client, running) = bench.start_known().await;
        let stopped = running.open;
        let disk = bench.disk(&client, text_bytes, stored).await;
        let get_first = workload::get_any(&running, &ids).await;
        let scan_first = workload::scan_first(&running, &client).await;
        running.process.kill();
        (client, running) = bench.start_known().await;
        report(
            "growth",
            json!({
                "articles": number, "import_per_s": rates.last(), "import_rates": rates,
                "rss_peak_bytes": peak, "missing_per_s": missing["per_s"],
                "get_any_per_s": get_any["per_s"], "get_any_p99_us": get_any["p99_us"],
                "scan_per_s": scan["per_s"], "get_any_after_start_per_s": get_first["per_s"],
                "scan_after_start_per_s": scan_first["per_s"], "disk_bytes": disk["disk_bytes"],
                "disk_bytes_per_article": disk["disk_bytes_per_article"],
                "disk_to_text": disk["disk_to_text"],
                "requests": storage, "open_after_stop_ms": round(stopped.as_secs_f64() * 1e3),
                "open_after_kill_ms": round(running.open.as_secs_f64() * 1e3),
            }),
        );
    }
    running.process.stop(Signal::TERM);
}
