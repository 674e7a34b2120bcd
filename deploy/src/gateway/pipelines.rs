//! Pipelines that answer: the gateway's own, and those of `http.prefixes` on the same broker. A request chooses by `model`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use config::Config;
use model::config_json::{Family, ModelConfig};
use protocol::error::JobError;
use protocol::event::JobEvent;
use protocol::message::JobId;
use protocol::wire;
use runtime::bus::{Bus, BusError, Role};
use runtime::subject::StreamName;
use stage_llm::text::registry::Tasks;

use super::problem::{Kind, Problem};
use super::stages::Stages;
use crate::client::{self, Said};
use crate::up::desired::Desired;

/// Name of the gateway's own model where nobody says one; it stands for that model in requests too.
pub const UNNAMED: &str = "vidi";
/// The broker has this long to say what a job's last event is.
const BROKER_WAIT: Duration = Duration::from_secs(10);
/// A connection is made within this time.
const CONNECT_WAIT: Duration = Duration::from_secs(2);

/// One pipeline: the subjects below a prefix, and what is known of whoever works on them.
pub struct Pipeline {
    /// Connection on which jobs are submitted and followed.
    pub bus: Bus,
    /// What is known of the stages' processes.
    pub stages: Stages,
    /// Its number, for who has to note it.
    pub number: usize,
    /// What its stage-llm said last; at first what this process's configuration says, if that is about this pipeline.
    said: Mutex<Option<Said>>,
}

impl Pipeline {
    fn new(number: usize, bus: Bus, stages: Stages, said: Option<Said>) -> Self {
        Pipeline { bus, stages, number, said: Mutex::new(said) }
    }

    /// First part of its subjects.
    pub fn prefix(&self) -> &str {
        self.bus.subjects().prefix()
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

    /// Family of its model; that of Vidi 1.5 9B where nobody says one.
    fn family(&self) -> Family {
        self.said().and_then(|said| said.family).unwrap_or(Family::Gemma2)
    }

    fn said(&self) -> Option<Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Model that requests may name, and the pipeline that answers with it.
pub struct Model {
    /// Its name: what stage-llm says, else this process's configuration, else the prefix; no two have the same.
    pub id: String,
    /// Whether its stage-llm, or the configuration, has said its name.
    is_said: bool,
    /// Family that it is of, if that was said.
    pub family: Option<Family>,
    /// Where it is.
    pub pipeline: Arc<Pipeline>,
}

/// All pipelines of a gateway.
pub struct Pipelines {
    all: Vec<Arc<Pipeline>>,
    /// Tasks that this process's configuration knows, as each family has them.
    tasks: Vec<(Family, Tasks)>,
}

impl Pipelines {
    /// The pipeline on `bus`, whose supervisor's `desired` is known if that is in this process, and those of `http.prefixes`.
    ///
    /// # Errors
    /// A file of tasks that is wrong; a broker that does not take another connection.
    pub async fn open(config: &Config, bus: Bus, desired: Option<Desired>) -> Result<Self, Unopened> {
        let of = |family| Ok((family, Tasks::with_file(config.llm.tasks_file.as_deref(), family)?));
        let tasks = Family::ALL.into_iter().map(of).collect::<Result<_, JobError>>().map_err(Unopened::Tasks)?;
        let name = config.model.name();
        // A gateway without stages beside it need not see the files of their model.
        let family = ModelConfig::configured(&config.model).ok().map(|model| model.family);
        let own = (!name.is_empty()).then_some(Said { model: name, family });
        let mut all = Vec::new();
        for prefix in config.http.prefixes.iter().filter(|prefix| *prefix != bus.subjects().prefix()) {
            let section = config::BusConfig { prefix: prefix.clone(), ..bus.config().clone() };
            let other = Bus::connect(&section, Role::Client, CONNECT_WAIT).await.map_err(Unopened::Bus)?;
            all.push(Arc::new(Pipeline::new(all.len() + 1, other, Stages::new(None), None)));
        }
        all.insert(0, Arc::new(Pipeline::new(0, bus, Stages::new(desired), own)));
        Ok(Pipelines { all, tasks })
    }

    /// The gateway's own pipeline, which answers where a request names none.
    pub fn own(&self) -> &Arc<Pipeline> {
        &self.all[0]
    }

    /// All of them, the own one first.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Pipeline>> {
        self.all.iter()
    }

    /// Pipeline of a number that one of them has.
    pub fn at(&self, number: usize) -> &Arc<Pipeline> {
        self.all.get(number).unwrap_or(self.own())
    }

    /// Tasks of a pipeline, as its model's family has them.
    pub fn tasks(&self, pipeline: &Pipeline) -> &Tasks {
        self.of(pipeline.family())
    }

    /// Tasks as a family has them.
    pub fn of(&self, family: Family) -> &Tasks {
        let found = self.tasks.iter().find(|(of, _)| *of == family);
        &found.unwrap_or(&self.tasks[0]).1
    }

    /// The models, as whoever answers for them now says, or said last.
    pub async fn models(&self) -> Vec<Model> {
        // All are on one broker: one question reaches them all.
        let heard = client::models(&self.own().bus).await.unwrap_or_default();
        for pipeline in &self.all {
            if let Some(said) = heard.get(pipeline.prefix()) {
                *pipeline.said.lock().unwrap_or_else(PoisonError::into_inner) = Some(said.clone());
            }
        }
        let mut models: Vec<Model> = Vec::new();
        for pipeline in &self.all {
            let said = pipeline.said();
            let family = said.as_ref().and_then(|said| said.family);
            let name = said.map(|said| said.model).filter(|name| !name.is_empty());
            let free = name.clone().filter(|name| models.iter().all(|model| model.id != *name));
            let unsaid = if pipeline.number == 0 { UNNAMED } else { pipeline.prefix() };
            let id = free.unwrap_or_else(|| unsaid.to_owned());
            models.push(Model { id, is_said: name.is_some(), family, pipeline: pipeline.clone() });
        }
        models
    }

    /// The model that a request names, by its name or its pipeline's prefix; the own one where it names none, or [`UNNAMED`].
    ///
    /// # Errors
    /// `not_found` with the known names; `unavailable` where a pipeline that never answered may have that name.
    pub async fn named(&self, name: Option<&str>) -> Result<Model, Problem> {
        chosen(self.models().await, name)
    }

    /// The pipeline that a request names, as [`named`](Self::named); nobody is asked where it names none.
    ///
    /// # Errors
    /// As `named`.
    pub async fn pipeline(&self, name: Option<&str>) -> Result<Arc<Pipeline>, Problem> {
        match own_or(name) {
            None => Ok(self.own().clone()),
            name => Ok(self.named(name).await?.pipeline),
        }
    }
}

/// Name that a request gives, if that is not the own model's by default.
fn own_or(name: Option<&str>) -> Option<&str> {
    name.filter(|name| !name.is_empty() && *name != UNNAMED)
}

fn chosen(mut models: Vec<Model>, name: Option<&str>) -> Result<Model, Problem> {
    let is = |model: &Model| match own_or(name) {
        None => model.pipeline.number == 0,
        Some(name) => model.id == name,
    };
    let of_prefix = |model: &Model| name.is_some_and(|name| model.pipeline.prefix() == name);
    if let Some(at) = models.iter().position(is).or_else(|| models.iter().position(of_prefix)) {
        return Ok(models.swap_remove(at));
    }
    let shown: String = name.unwrap_or_default().chars().take(80).collect();
    let known: Vec<&str> = models.iter().filter(|model| model.is_said).map(|model| model.id.as_str()).collect();
    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
    let silent: Vec<&str> = models.iter().filter(|model| !model.is_said).map(|model| model.pipeline.prefix()).collect();
    if silent.is_empty() {
        let text = format!("request refused: no model {shown:?}; known are {known}");
        return Err(Problem::new(Kind::NotFound, text).hint("leave model out, or set it to one of them"));
    }
    let text = format!(
        "no model {shown:?} answers; known are {known}, and the stage-llm of {} has not said its name yet",
        silent.join(", ")
    );
    Err(Problem::new(Kind::Unavailable, text).hint("come again once its stages are ready"))
}

/// Reason for which pipelines could not be opened.
#[derive(Debug)]
pub enum Unopened {
    /// The file of tasks is wrong.
    Tasks(JobError),
    /// The broker does not take another connection.
    Bus(BusError),
}
