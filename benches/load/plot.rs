//! SVG plots of results: latency at fixed rates, and what an archive costs as it grows.

use std::path::Path;

use plotters::prelude::*;
use serde_json::Value;

const SIZE: (u32, u32) = (800, 480);

/// Labels of an axis, about.
const LABELS: usize = 6;

/// One curve: its name and its points.
type Curve = (String, Vec<(f64, f64)>);

/// Reads lines of JSON and draws what they hold.
pub fn draw(results: &Path, folder: &Path) {
    let text = std::fs::read_to_string(results).unwrap();
    let lines = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    let lines: Vec<Value> = lines.collect();
    let curve = |work: &str, name: &str, x: &str, y: &str, unit: f64| -> Curve {
        let of_work = lines.iter().filter(|line| line["work"] == work);
        let points = of_work.filter_map(|line| Some((line[x].as_f64()?, line[y].as_f64()? / unit)));
        (name.to_owned(), points.collect())
    };
    for (work, what) in [("put_open", "put"), ("get_open", "get")] {
        let percentile = |name, field| curve(work, name, "wanted_per_s", field, 1e3);
        let curves = vec![
            percentile("p50", "p50_us"),
            percentile("p99", "p99_us"),
            percentile("p99.9", "p999_us"),
        ];
        let caption = format!("Latency of {what} at a fixed rate (open loop)");
        let axes = (&*format!("{what}s a second"), "milliseconds");
        plot(
            &folder.join(format!("latency-{what}.svg")),
            &caption,
            axes,
            &curves,
        );
    }
    let rate = |name, field| curve("growth", name, "articles", field, 1e3);
    let curves = vec![
        rate("import", "import_per_s"),
        rate("get anywhere", "get_any_per_s"),
        rate("scan by date", "scan_per_s"),
    ];
    let caption = "Rates as an archive grows";
    let axes = ("articles in the archive", "thousand articles a second");
    plot(&folder.join("growth.svg"), caption, axes, &curves);
}

/// Draws curves with logarithmic axes, unless there are none.
fn plot(file: &Path, caption: &str, (x_name, y_name): (&str, &str), curves: &[Curve]) {
    let points = || curves.iter().flat_map(|(_, points)| points);
    if points().next().is_none() {
        return;
    }
    let bounds = |axis: fn(&(f64, f64)) -> f64| {
        let low = points().map(axis).fold(f64::MAX, f64::min);
        let high = points().map(axis).fold(f64::MIN, f64::max);
        low * 0.8..high * 1.25
    };
    let area = SVGBackend::new(file, SIZE).into_drawing_area();
    area.fill(&WHITE).unwrap();
    let mut chart = ChartBuilder::on(&area)
        .caption(caption, ("sans-serif", 20))
        .margin(15)
        .x_label_area_size(45)
        .y_label_area_size(65)
        .build_cartesian_2d(
            bounds(|point| point.0).log_scale(),
            bounds(|point| point.1).log_scale(),
        )
        .unwrap();
    chart
        .configure_mesh()
        .x_desc(x_name)
        .y_desc(y_name)
        .x_labels(LABELS)
        .y_labels(LABELS)
        .max_light_lines(0)
        .x_label_formatter(&short)
        .y_label_formatter(&short)
        .draw()
        .unwrap();
    for (index, (name, points)) in curves.iter().enumerate() {
        let color = Palette99::pick(index).to_rgba();
        let line = LineSeries::new(points.iter().copied(), color.stroke_width(2)).point_size(3);
        let key = move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2));
        chart.draw_series(line).unwrap().label(name).legend(key);
    }
    let style = BLACK.mix(0.3);
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .border_style(style)
        .background_style(WHITE)
        .draw()
        .unwrap();
    area.present().unwrap();
}

/// A figure as the label of an axis.
fn short(figure: &f64) -> String {
    match *figure {
        figure if figure >= 1e6 => format!("{} M", figure / 1e6),
        figure if figure >= 1e3 => format!("{} k", figure / 1e3),
        figure => figure.to_string(),
    }
}
