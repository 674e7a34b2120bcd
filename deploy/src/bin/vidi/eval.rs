//! `vidi eval`: benchmarks asked and scored.

use std::path::{Path, PathBuf};

use config::Config;
use config::replace;
use deploy::eval::compare::Comparison;
use deploy::eval::line::Asking;
use deploy::eval::score::score;
use deploy::eval::suite::{Suite, Truth};
use deploy::eval::{EvalError, run, show};
use runtime::bus::Role;
use runtime::process::Fatal;

use crate::running::connect;

/// Subcommands of `vidi eval`.
#[derive(clap::Subcommand)]
pub enum Eval {
    /// Scores a file of answers as the benchmark's authors do: a table by groups, in percent.
    Score {
        #[command(flatten)]
        truth: TruthArgs,
        /// Answers: a JSON list, or one object a line; a table of boxes for VUE-STG.
        #[arg(long, value_name = "FILE")]
        pred: PathBuf,
        /// Writes totals, curves and the scores of each query as JSON.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// Draws the curves whose areas are the scores (SVG).
        #[arg(long, value_name = "FILE")]
        plot: Option<PathBuf>,
    },
    /// Compares two files of answers: totals of both, and the queries that got better and worse.
    Compare {
        #[command(flatten)]
        truth: TruthArgs,
        /// First answers.
        before: PathBuf,
        /// Second answers.
        after: PathBuf,
        /// Queries to name that got better, and that got worse.
        #[arg(long, default_value_t = 10)]
        top: usize,
    },
    /// Asks a running pipeline every query about the videos of a directory, video by video. The same command goes on with a
    /// run that was interrupted.
    Run {
        /// Queries of VUE-TR or VUE-TR-V2.
        #[arg(long, value_name = "FILE")]
        truth: PathBuf,
        /// Videos, called like `video_id`; below a media root, and in the same place for stage-decode.
        #[arg(long, value_name = "DIR")]
        videos: PathBuf,
        /// Answers: a line is added for each query as it is answered.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Frames a second to look at.
        #[arg(long, default_value_t = 1.0)]
        fps: f64,
        /// Length of an answer at most.
        #[arg(long, default_value_t = 1024)]
        max_new_tokens: u32,
        /// Gives a query up after so many seconds.
        #[arg(long)]
        deadline: Option<f64>,
    },
}

/// What answers are scored against.
#[derive(clap::Args)]
pub struct TruthArgs {
    /// Queries with their true answers: a JSON list, or one object a line; a table of boxes for VUE-STG.
    #[arg(long, value_name = "FILE")]
    truth: PathBuf,
    /// Benchmark: VUE-TR, VUE-TR-V2, VUE-STG, or the reasoning of VUE-PLOT.
    #[arg(long, value_enum, default_value = "tr-v2")]
    suite: Suite,
    /// With --suite stg: table of all queries (query_id, query_text, video_id); those of the truth's boxes if none is given.
    #[arg(long, value_name = "FILE")]
    queries: Option<PathBuf>,
    /// With --queries: table of the videos' lengths (video_id, video_duration), for the groups by length.
    #[arg(long, value_name = "FILE")]
    lengths: Option<PathBuf>,
    /// Scores the queries that both files have, and says which are left out.
    #[arg(long)]
    partial: bool,
}

impl From<TruthArgs> for Truth {
    fn from(args: TruthArgs) -> Self {
        let TruthArgs { truth: file, suite, queries, lengths, partial } = args;
        Truth { suite, file, queries, lengths, partial }
    }
}

/// Runs a subcommand of `vidi eval`.
///
/// # Errors
/// A file that cannot be used or written; for `run` also as [`run::run`], and when no pipeline runs.
pub async fn eval(config: &Config, action: Eval) -> Result<(), Fatal> {
    match action {
        Eval::Score { truth, pred, json, plot } => {
            let sheet = score(&truth.into(), &pred)?;
            if let Some(path) = plot {
                write(&path, &show::plot(&sheet)?)?;
            }
            if let Some(path) = json {
                write(&path, &show::json(&sheet).to_string())?;
            }
            Ok(show::print(&sheet)?)
        }
        Eval::Compare { truth, before, after, top } => {
            let truth = truth.into();
            let compared = Comparison::between(score(&truth, &before)?, score(&truth, &after)?);
            Ok(compared.print(top)?)
        }
        Eval::Run { truth, videos, out, fps, max_new_tokens, deadline } => {
            let asking = Asking { fps, max_new_tokens };
            let options = run::Options { truth, videos, out, asking, deadline_s: deadline };
            run::run(&connect(config, Role::Client).await?, &options).await
        }
    }
}

fn write(path: &Path, text: &str) -> Result<(), EvalError> {
    replace::write(path, text.as_bytes()).map_err(EvalError::writing(path))
}
