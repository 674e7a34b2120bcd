//! Command line of `vidi bench`.

use std::path::{Path, PathBuf};

use config::Config;
use model::config_json::ModelConfig;
use protocol::error::StageName;
use protocol::file_uri;
use runtime::process::{Exit, Fatal};

use super::load::{LoadSource, RecordedLoad};
use super::{failed, pipeline, show, stage};
use config::replace;

/// Arguments of `vidi bench`.
#[derive(clap::Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["stage", "pipeline"]))]
pub struct Bench {
    /// One stage alone: vision, audio or fuse.
    #[arg(long)]
    stage: Option<StageName>,
    /// Whole jobs on VIDEO, through all stages.
    #[arg(long, value_name = "VIDEO")]
    pipeline: Option<PathBuf>,
    /// With --stage, numbers of replicas to measure [default: 1,2,4]; with --pipeline, processes per stage, e.g. vision=2.
    #[arg(long, value_delimiter = ',')]
    replicas: Vec<String>,
    /// Devices of stages, as for `up`, e.g. `vision=cuda:0,cuda:1`.
    #[arg(long, value_delimiter = ',', value_name = "STAGE=DEVICE")]
    pub place: Vec<String>,
    /// With --stage: messages to process for each number of replicas.
    #[arg(long, default_value_t = 60)]
    messages: u64,
    /// With --stage: takes its input from a recording (`vidi record`) instead of synthetic input.
    #[arg(long, value_name = "RECORDING", requires = "stage")]
    from: Option<PathBuf>,
    /// With --pipeline: numbers of jobs at a time to measure.
    #[arg(long, value_delimiter = ',', default_value = "1,2,4")]
    concurrent: Vec<usize>,
    /// With --pipeline: jobs to answer for each.
    #[arg(long, default_value_t = 8)]
    jobs: usize,
    /// With --pipeline: the question of every job; given several times, all of them in each job.
    #[arg(long, default_value = "a person")]
    query: Vec<String>,
    /// With --pipeline: length of an answer at most.
    #[arg(long, default_value_t = 32)]
    max_new_tokens: u32,
    /// With --pipeline: lets the language model keep the video, so that all jobs after the first cost their text only.
    #[arg(long, requires = "pipeline")]
    keep_video: bool,
    /// Checkpoint directory; VIDI_MODEL and model.dir say the same.
    #[arg(long)]
    pub model: Option<PathBuf>,
    /// Writes the figures as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draws throughput (SVG).
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

impl Bench {
    /// Measures, prints a table, and writes what was asked for. The configuration has its checkpoint.
    ///
    /// # Errors
    /// A wrong command line; a pipeline that does not start or loses something; a file that cannot be written.
    pub async fn run(self, config: &Config) -> Result<(), Fatal> {
        match (self.stage, self.pipeline.clone()) {
            (Some(stage), _) => self.stage(config, stage).await,
            (None, Some(video)) => self.pipeline(config, &video).await,
            (None, None) => Err(usage("give --stage STAGE or --pipeline VIDEO")),
        }
    }

    async fn stage(&self, config: &Config, stage: StageName) -> Result<(), Fatal> {
        let counts = match self.replicas.is_empty() {
            true => vec![1, 2, 4],
            false => self
                .replicas
                .iter()
                .map(|n| n.parse().map_err(|e| usage(&format!("--replicas {n:?}: {e}"))))
                .collect::<Result<Vec<usize>, Fatal>>()?,
        };
        if counts.contains(&0) || self.messages == 0 {
            return Err(usage("--replicas and --messages are at least 1"));
        }
        let model = ModelConfig::configured(&config.model).map_err(|e| Fatal(Exit::Model, e.to_string()))?;
        let taken = match &self.from {
            None => None,
            Some(path) => Some(RecordedLoad::open(path, stage).map_err(failed)?),
        };
        let source = taken.as_ref().map_or(LoadSource::Synthetic(&model), LoadSource::Recorded);
        let rows = stage::run(config, stage, &source, &counts, self.messages).await?;
        self.write(
            &serde_json::json!({ "stage": stage, "from": self.from.as_deref().map(file_uri::text), "rows": rows }),
        )?;
        self.draw(|path| show::stage_plot(stage, &rows, path))?;
        Ok(show::stage_table(stage, &rows)?)
    }

    async fn pipeline(&self, config: &Config, video: &Path) -> Result<(), Fatal> {
        if self.concurrent.contains(&0) || self.jobs == 0 {
            return Err(usage("--concurrent and --jobs are at least 1"));
        }
        let video = video.canonicalize().map_err(|e| usage(&format!("{}: {e}", video.display())))?;
        let mut config = config.clone();
        config.llm.keep_video = self.keep_video;
        config.decode.media_roots.extend(video.parent().map(Path::to_owned));
        let replicas = crate::up::replicas::replicas(&self.replicas, &config).map_err(|e| usage(&e))?;
        let question = pipeline::Question { video, queries: self.query.clone(), max_new_tokens: self.max_new_tokens };
        let rows = pipeline::run(&config, &question, &replicas, &self.concurrent, self.jobs).await?;
        self.write(&serde_json::json!({ "video": file_uri::text(&question.video), "rows": rows }))?;
        self.draw(|path| show::pipeline_plot(&rows, path))?;
        Ok(show::pipeline_table(&rows)?)
    }

    fn write(&self, object: &serde_json::Value) -> Result<(), Fatal> {
        let Some(path) = &self.json else { return Ok(()) };
        replace::write(path, object.to_string().as_bytes()).map_err(|e| usage(&format!("{}: {e}", path.display())))
    }

    fn draw(&self, plot: impl Fn(&Path) -> std::io::Result<()>) -> Result<(), Fatal> {
        let Some(path) = &self.plot else { return Ok(()) };
        plot(path).map_err(|e| usage(&format!("{}: {e}", path.display())))
    }
}

fn usage(text: &str) -> Fatal {
    Fatal(Exit::Usage, text.to_owned())
}
