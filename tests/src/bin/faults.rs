//! Fault suite at full size: `cargo run --bin faults`.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a tool for developers: what it prints is read by who started it"
)]

use std::path::{Path, PathBuf};

use clap::Parser;
use tests::faults::{
    Row, Scale, batches, broker, clock, cluster, ends, flow, hung, killed, losses, messages, probes, supervisor, table,
    waiting, weights,
};

/// Runs every fault case on real processes and a real broker, and writes the table.
#[derive(Parser)]
struct Args {
    /// Number of jobs of the cases that need many.
    #[arg(long, default_value_t = 100)]
    jobs: usize,
    /// Seed of all random choices.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// File for the table; standard output if not given. The file's chapters behind the table stay.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Only cases whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let scale = Scale { jobs: args.jobs, seed: args.seed, ..Scale::full() };
    let old = tests::harness::brokers()
        .into_iter()
        .flatten()
        .next()
        .map(|broker| Scale { broker: Some(broker), ..scale.clone() });
    let mut rows: Vec<Row> = Vec::new();
    macro_rules! run {
        ($($name:literal $case:path),* $(,)?) => {$(
            if $name.contains(&args.only) {
                rows.push(said($case(&scale).await));
            }
        )*};
    }
    run!("kill" killed::any_stage, "deadly message" killed::by_a_message, "deadly job" killed::by_a_job,
        "owners" killed::two_owners, "several killed" batches::owner_killed, "several ends" batches::ends,
        "several owners" batches::two_owners, "affinity" batches::affinity, "supervisor" supervisor::killed, "end of a supervisor" supervisor::killed_for_good, "two supervisors" supervisor::two_at_once, "start" killed::start_together, "restart" broker::restarted, "memory" broker::restarted_without_memory,
        "payload" broker::smaller_payload, "pause" broker::paused, "answer" broker::paused_in_an_answer, "true answers" broker::paused_in_true_answers, "disk" broker::disk_full, "garbage" messages::poison,
        "poison" messages::poison_of_a_job, "refused" messages::refused_end, "duplicates" messages::duplicates, "order" messages::out_of_order, "lost" messages::lost,
        "full stream" flow::full_stream, "many" flow::no_deadlock, "slow" flow::slow_consumer, "long" flow::long_video, "cancel" ends::cancel,
        "waiting" ends::cancel_without_a_worker, "deadline" ends::deadline, "gone" ends::client_gone,
        "flood" waiting::flood, "admission" waiting::cancel_before_admission, "probe" waiting::cancel_in_a_probe, "line" waiting::idle,
        "ages" waiting::ages, "deleted" losses::deleted, "store" losses::empty_store, "probes" probes::probes, "hung" hung::hung, "clock" clock::clock,
        "weights" weights::other_weights, "cluster killed" cluster::each_killed, "cluster stopped" cluster::one_stopped,
        "cluster quorum" cluster::two_down);
    if let Some(old) = old {
        macro_rules! run_old {
            ($($name:literal $case:path),* $(,)?) => {$(
                if $name.contains(&args.only) {
                    let mut row = $case(&old).await;
                    row.case.push_str(", nats-server 2.9.10");
                    rows.push(said(row));
                }
            )*};
        }
        run_old!("old kill" killed::any_stage, "old several killed" batches::owner_killed, "old affinity" batches::affinity, "old restart" broker::restarted, "old memory" broker::restarted_without_memory, "old pause" broker::paused,
            "old lost" messages::lost, "old answer" broker::paused_in_an_answer, "old flood" waiting::flood,
            "old admission" waiting::cancel_before_admission, "old ages" waiting::ages,
            "old store" losses::empty_store, "old supervisor" supervisor::killed,
            "old end of a supervisor" supervisor::killed_for_good, "old probes" probes::probes, "old hung" hung::hung,
            "old clock" clock::clock, "old weights" weights::other_weights);
    }
    let text = table(&rows);
    match &args.out {
        None => print!("{text}"),
        Some(path) => {
            let seconds: f64 = rows.iter().map(|r| r.seconds).sum();
            let head = format!(
                "# Fault suite\n\nMade by `cargo run --bin faults -- --jobs {} --seed {} --out tests/FAULTS.md` after \
                 `cargo build --workspace --bins`, on {} CPU cores, in {seconds:.0} s; CI runs the same cases at a smaller size \
                 (`cargo test --workspace --test faults`). Every case has real processes (`vidi up`) and a real broker. Answers are \
                 the demo model's about made videos: they are true, and have the token ids of the same questions asked undisturbed. \
                 Cases that need an answer without end, or of 1,500 tokens, have the golden checkpoint `tied`, of random weights. Seconds are \
                 those of the whole case, or, where the expected outcome names a time, of that.\n\n",
                args.jobs,
                args.seed,
                std::thread::available_parallelism().map_or(0, usize::from),
            );
            std::fs::write(path, format!("{head}{text}{}", chapters(path)))?;
        }
    }
    anyhow::ensure!(
        rows.iter().all(|r| r.passed),
        "{} of {} cases failed",
        rows.iter().filter(|r| !r.passed).count(),
        rows.len()
    );
    Ok(())
}

/// What a file from an earlier run has from its first chapter on.
fn chapters(path: &Path) -> String {
    let earlier = std::fs::read_to_string(path).unwrap_or_default();
    earlier.find("\n## ").map(|at| earlier[at..].to_owned()).unwrap_or_default()
}

fn said(row: Row) -> Row {
    eprintln!(
        "{} {}: {} ({:.2} s of {})",
        if row.passed { "pass" } else { "FAIL" },
        row.case,
        row.observed,
        row.seconds,
        row.bound_s
    );
    row
}
