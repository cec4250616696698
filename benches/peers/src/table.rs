//! The table of results: medians, their spread, and what pressmark's are to the others'.

use std::collections::BTreeMap;

use serde_json::Value;

const OWN: &str = "pressmark";

/// What is shown of each work: the figure, its unit, and whether more of it is better.
const ROWS: [(&str, &str, &str, bool); 19] = [
    ("put, 64 in flight", "per_s", "/s", true),
    ("put, 64 in flight", "p99_us", "us p99", false),
    ("put, 256 in flight", "per_s", "/s", true),
    ("put, 256 in flight", "p99_us", "us p99", false),
    ("import", "per_s", "/s", true),
    (
        "import",
        "server_cpu_us_per_article",
        "us server CPU",
        false,
    ),
    (
        "import",
        "client_cpu_us_per_article",
        "us client CPU",
        false,
    ),
    ("import", "rss_peak_bytes", "B memory", false),
    ("import", "written_bytes", "B written", false),
    ("import again", "per_s", "/s", true),
    ("find missing", "per_s", "ids/s", true),
    ("get, in cache", "per_s", "/s", true),
    ("get, in cache", "p99_us", "us p99", false),
    (
        "get, in cache",
        "server_cpu_us_per_get",
        "us server CPU",
        false,
    ),
    ("scan by date", "per_s", "/s", true),
    (
        "scan by date",
        "server_cpu_us_per_article",
        "us server CPU",
        false,
    ),
    ("open after stop", "open_ms", "ms", false),
    ("open after kill", "open_ms", "ms", false),
    ("disk", "disk_bytes_per_article", "B an article", false),
];

/// Results by server, work and figure, one per round.
#[derive(Default)]
pub struct Table(BTreeMap<(String, String), Vec<Value>>);

impl Table {
    pub fn add(&mut self, server: &str, work: &str, figures: Value) {
        let key = (server.to_owned(), work.to_owned());
        self.0.entry(key).or_default().push(figures);
    }

    /// Median, lowest and highest of a figure.
    fn figures(&self, server: &str, work: &str, figure: &str) -> Option<(f64, f64, f64)> {
        let rounds = self.0.get(&(server.to_owned(), work.to_owned()))?;
        let mut figures: Vec<f64> = rounds
            .iter()
            .filter_map(|round| round[figure].as_f64())
            .collect();
        figures.sort_by(f64::total_cmp);
        let (first, last) = (*figures.first()?, *figures.last()?);
        let middle = figures.len() / 2;
        let low = figures[(figures.len() - 1) / 2];
        Some(((low + figures[middle]) / 2.0, first, last))
    }

    /// Markdown: a ratio above 1 says that pressmark is better.
    pub fn render(&self, servers: &[&str]) -> String {
        let mut text = format!("| work | {} |\n|---", servers.join(" | "));
        text.push_str(&"|---".repeat(servers.len()));
        text.push_str("|\n");
        for (work, figure, unit, more_is_better) in ROWS {
            let own = self.figures(OWN, work, figure);
            text.push_str(&format!("| {work}, {unit} "));
            for server in servers {
                text.push_str("| ");
                let Some((median, low, high)) = self.figures(server, work, figure) else {
                    continue;
                };
                text.push_str(&format!(
                    "{} ({}..{}) ",
                    short(median),
                    short(low),
                    short(high)
                ));
                if let (Some((own, ..)), true) = (own, *server != OWN) {
                    let ratio = if more_is_better {
                        own / median
                    } else {
                        median / own
                    };
                    text.push_str(&format!("**{ratio:.2}x** "));
                }
            }
            text.push_str("|\n");
        }
        text
    }
}

/// A figure with three digits or so.
fn short(figure: f64) -> String {
    match figure {
        figure if figure >= 1e9 => format!("{:.2} G", figure / 1e9),
        figure if figure >= 1e6 => format!("{:.1} M", figure / 1e6),
        figure if figure >= 1e4 => format!("{:.1} k", figure / 1e3),
        figure if figure >= 10.0 => format!("{figure:.0}"),
        figure => format!("{figure:.1}"),
    }
}
