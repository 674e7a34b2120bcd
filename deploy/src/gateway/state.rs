//! What all requests share: the pipelines, the settings, the jobs that came this way, the uploaded files.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use config::{Config, HttpConfig, Secret};
use protocol::event::JobEvent;
use protocol::file_uri;
use protocol::message::JobId;
use protocol::stage::ON_THE_BUS;

use super::counts::Metrics;
use super::jobs::Jobs;
use super::pipelines::{Pipeline, Pipelines};
use super::problem::Problem;
use super::spool::{Held, Spool};
use super::store::Store;

/// Videos that chats named by a `uuid`, at most.
const NAMED_VIDEOS: usize = 10_000;

/// Shared state of the gateway.
pub struct State {
    /// Pipelines that answer, and the tasks that they know.
    pub pipelines: Pipelines,
    /// Section `http`.
    pub http: HttpConfig,
    /// Token that requests carry; none where nobody needs one.
    pub token: Option<Secret>,
    /// Beginnings of paths, as clients see them and as stage-decode does.
    pub paths: Vec<(PathBuf, PathBuf)>,
    /// Jobs that came this way.
    pub jobs: Jobs,
    /// What is counted.
    pub metrics: Metrics,
    /// Uploaded files.
    pub spool: Arc<Spool>,
    /// Their copies on the bus; none where stage-decode reads them in the spool.
    pub store: Option<Arc<Store>>,
    /// Videos by the `uuid` that a chat gave them.
    named: Mutex<Named>,
}

/// State, as handlers have it.
pub type App = Arc<State>;

#[derive(Default)]
struct Named {
    videos: BTreeMap<String, String>,
    order: VecDeque<String>,
}

impl State {
    /// State of a gateway of pipelines.
    pub fn new(
        pipelines: Pipelines,
        config: &Config,
        token: Option<Secret>,
        spool: Spool,
        store: Option<Arc<Store>>,
    ) -> Self {
        let http = config.http.clone();
        let own = &pipelines.own();
        let event_age = Duration::from_secs(own.bus.config().event_age_s);
        State {
            token,
            // Checked with the configuration.
            paths: http.mapped_paths().unwrap_or_default(),
            jobs: Jobs::new(http.jobs, event_age),
            // Families differ in what their tasks are made of, not in their names.
            metrics: Metrics::new(pipelines.tasks(own).iter().map(|task| task.name.clone()).collect()),
            spool: Arc::new(spool),
            store,
            named: Mutex::default(),
            pipelines,
            http,
        }
    }

    /// Pipeline of a job, and its last event, if the broker has one: the pipeline that it was submitted to where it came this
    /// way, else the one that has events of it, else the own one.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn job(&self, job: &JobId) -> Result<(Arc<Pipeline>, Option<JobEvent>), Problem> {
        if let Some(number) = self.jobs.pipeline(job) {
            let pipeline = self.pipelines.at(number);
            return Ok((pipeline.clone(), pipeline.last_event(job).await?));
        }
        for pipeline in self.pipelines.iter() {
            if let Some(event) = pipeline.last_event(job).await? {
                return Ok((pipeline.clone(), Some(event)));
            }
        }
        Ok((self.pipelines.own().clone(), None))
    }

    /// Path of a video as stage-decode sees it, of one as the client does.
    pub fn mapped(&self, video: &str) -> String {
        let mapped = self.paths.iter().find_map(|(theirs, ours)| {
            let path = file_uri::path(video);
            Some(file_uri::text(&ours.join(path.strip_prefix(theirs).ok()?)))
        });
        mapped.unwrap_or_else(|| video.to_owned())
    }

    /// What a job calls an uploaded file.
    pub fn video_of(&self, held: &Held) -> String {
        if self.store.is_some() { Store::video(&held.facts) } else { file_uri::text(&held.path) }
    }

    /// Path of a video as this gateway has it: of one that travels over the bus, in the spool.
    pub fn on_disk(&self, video: &str) -> String {
        let name = video.strip_prefix(ON_THE_BUS);
        name.map_or_else(|| video.to_owned(), |name| file_uri::text(&self.spool.dir().join(name)))
    }

    /// Makes sure that the stage-decode of the pipeline below a prefix, the own one for none, can read an uploaded file.
    ///
    /// # Errors
    /// As [`Store::copy`].
    pub async fn lend(&self, held: Option<&Held>, prefix: Option<&str>) -> Result<(), Problem> {
        match (&self.store, held) {
            (Some(store), Some(held)) => store.copy(held, prefix.unwrap_or(store.prefix())).await,
            _ => Ok(()),
        }
    }

    /// Notes the video that a chat calls `uuid`.
    pub fn name_video(&self, uuid: &str, video: &str) {
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        if named.videos.insert(uuid.to_owned(), video.to_owned()).is_none() {
            named.order.push_back(uuid.to_owned());
        }
        if named.order.len() > NAMED_VIDEOS
            && let Some(oldest) = named.order.pop_front()
        {
            named.videos.remove(&oldest);
        }
    }

    /// The video that a chat called `uuid`.
    pub fn named_video(&self, uuid: &str) -> Option<String> {
        let named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        named.videos.get(uuid).cloned()
    }
}
