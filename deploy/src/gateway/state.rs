//! What all requests share: the bus, the settings, the jobs that came this way, the uploaded files.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use config::{Config, HttpConfig, Secret};
use protocol::event::JobEvent;
use protocol::file_uri;
use protocol::message::JobId;
use protocol::wire;
use runtime::bus::{Bus, Role};
use runtime::subject::StreamName;
use stage_llm::text::registry::Tasks;

use super::counts::Metrics;
use super::jobs::Jobs;
use super::problem::{Kind, Problem};
use super::spool::Spool;
use super::stages::Stages;

/// The broker has this long to say what a job's last event is.
const BROKER_WAIT: Duration = Duration::from_secs(10);
/// An operator's connection is made within this time.
const CONNECT_WAIT: Duration = Duration::from_secs(2);
/// Videos that chats named by a `uuid`, at most.
const NAMED_VIDEOS: usize = 10_000;

/// Shared state of the gateway.
pub struct State {
    /// Connection on which jobs are submitted and followed.
    pub bus: Bus,
    /// Section `http`.
    pub http: HttpConfig,
    /// Tasks that this process's configuration knows.
    pub tasks: Tasks,
    /// Name of the model, where this process's configuration says it.
    pub model: String,
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
    /// What is known of the stages' processes.
    pub stages: Stages,
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
    /// State of a gateway on a bus.
    pub fn new(bus: Bus, config: &Config, tasks: Tasks, token: Option<Secret>, spool: Spool, stages: Stages) -> Self {
        let http = config.http.clone();
        State {
            model: config.model.name(),
            token,
            // Checked with the configuration.
            paths: http.mapped_paths().unwrap_or_default(),
            jobs: Jobs::new(http.jobs, Duration::from_secs(bus.config().event_age_s)),
            metrics: Metrics::new(tasks.iter().map(|task| task.name.clone()).collect()),
            tasks,
            spool: Arc::new(spool),
            stages,
            named: Mutex::default(),
            bus,
            http,
        }
    }

    /// Last event of a job; none where the broker has none.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn last_event(&self, job: &JobId) -> Result<Option<JobEvent>, Problem> {
        let subject = self.bus.subjects().events(job);
        let last = tokio::time::timeout(BROKER_WAIT, self.bus.last_on(StreamName::Events, &subject)).await;
        let last = last.map_err(|_| {
            Problem::new(Kind::Unavailable, format!("the broker has not answered for {BROKER_WAIT:?}"))
                .hint("come again; look at the broker's log if that does not help")
        })?;
        Ok(last.and_then(|message| wire::decode_any(&message.payload).ok()))
    }

    /// A connection of an operator, who may load and unload stages.
    ///
    /// # Errors
    /// When the broker does not let one in with this process's credentials.
    pub async fn operator(&self) -> Result<Bus, Problem> {
        Bus::connect(self.bus.config(), Role::Operator, CONNECT_WAIT).await.map_err(|e| {
            Problem::new(Kind::Unavailable, format!("stages not asked: {e}"))
                .hint("give the gateway an operator's credentials: bus.user, bus.password_file")
        })
    }

    /// Path of a video as stage-decode sees it, of one as the client does.
    pub fn mapped(&self, video: &str) -> String {
        let mapped = self.paths.iter().find_map(|(theirs, ours)| {
            let path = file_uri::path(video);
            Some(file_uri::text(&ours.join(path.strip_prefix(theirs).ok()?)))
        });
        mapped.unwrap_or_else(|| video.to_owned())
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
