//! Tables and plots of what was measured.

use std::path::Path;

use protocol::error::StageName;
use runtime::answer;
use runtime::output::Unwritten;

use super::{pipeline, stage};
use crate::plot::{Line, Plot};
use config::replace;

/// Prints the table of one stage.
///
/// # Errors
/// When standard output cannot be written.
pub fn stage_table(stage: StageName, rows: &[stage::Row]) -> Result<(), Unwritten> {
    answer!("stage-{stage}")?;
    answer!(
        "{:>8} {:>9} {:>9} {:>9} {:>8} {:>9} {:>9}  busy share of each replica",
        "replicas",
        "msg/s",
        "items/s",
        "MB/s",
        "speedup",
        "p50 ms",
        "p99 ms"
    )?;
    let base = rows.first().map_or(1.0, |r| r.messages_per_s);
    for r in rows {
        answer!(
            "{:>8} {:>9.1} {:>9.1} {:>9.1} {:>8.2} {:>9.0} {:>9.0}  {}",
            r.replicas,
            r.messages_per_s,
            r.items_per_s,
            r.bytes_per_s / 1e6,
            r.messages_per_s / base,
            r.p50_ms,
            r.p99_ms,
            joined(&r.busy)
        )?;
    }
    Ok(())
}

/// Prints the table of whole jobs.
///
/// # Errors
/// When standard output cannot be written.
pub fn pipeline_table(rows: &[pipeline::Row]) -> Result<(), Unwritten> {
    answer!(
        "{:>10} {:>5} {:>7} {:>8} {:>9} {:>9} {:>9} {:>9} {:>9}  busy share of each process",
        "concurrent",
        "jobs",
        "cached",
        "jobs/s",
        "frames/s",
        "media t/s",
        "answer t/s",
        "p50 ms",
        "p99 ms"
    )?;
    for r in rows {
        let busy: Vec<String> = r.busy.iter().map(|(stage, shares)| format!("{stage} {}", joined(shares))).collect();
        answer!(
            "{:>10} {:>5} {:>7} {:>8.2} {:>9.1} {:>9.0} {:>10.1} {:>9.0} {:>9.0}  {}",
            r.concurrent,
            r.jobs,
            r.cached,
            r.jobs_per_s,
            r.frames_per_s,
            r.media_tokens_per_s,
            r.answer_tokens_per_s,
            r.p50_ms,
            r.p99_ms,
            busy.join(", ")
        )?;
    }
    Ok(())
}

fn joined(shares: &[f64]) -> String {
    shares.iter().map(|share| format!("{share:.2}")).collect::<Vec<_>>().join(" ")
}

/// Writes a plot (SVG) of a stage's throughput over replicas, beside perfect scaling.
///
/// # Errors
/// The file system's.
pub fn stage_plot(stage: StageName, rows: &[stage::Row], path: &Path) -> std::io::Result<()> {
    let points: Vec<(f64, f64)> = rows.iter().map(|r| (r.replicas as f64, r.messages_per_s)).collect();
    let title = format!("stage-{stage}: messages a second over replicas (grey: perfect scaling)");
    replace::write(path, plot(&title, &points).as_bytes())
}

/// Writes a plot (SVG) of a pipeline's throughput over concurrent jobs, beside perfect scaling.
///
/// # Errors
/// The file system's.
pub fn pipeline_plot(rows: &[pipeline::Row], path: &Path) -> std::io::Result<()> {
    let points: Vec<(f64, f64)> = rows.iter().map(|r| (r.concurrent as f64, r.jobs_per_s)).collect();
    replace::write(path, plot("jobs a second over concurrent jobs (grey: perfect scaling)", &points).as_bytes())
}

/// SVG of joined points, beside the line through the origin and the first of them.
fn plot(title: &str, points: &[(f64, f64)]) -> String {
    let base = points.first().copied().unwrap_or((1.0, 1.0));
    let ideal = |n: f64| base.1 * n / base.0;
    let most = points.iter().map(|p| p.0).fold(1.0, f64::max);
    let top = points.iter().map(|p| p.1).fold(ideal(most), f64::max);
    let line = |colour, points, marked| Line { name: String::new(), colour, points, marked };
    let lines = [line("#bbb", vec![base, (most, ideal(most))], false), line("#06c", points.to_vec(), true)];
    Plot { title, most: (most, top), ticks: 0, lines: &lines }.svg()
}
