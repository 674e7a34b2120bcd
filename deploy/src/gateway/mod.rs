//! HTTP gateway: one more client of the bus, for programs that speak HTTP. It knows no model, and copies no frame.
//!
//! In reading order: [`problem`] (errors and their statuses), [`stages`] and [`pipelines`] (who answers), [`state`] (what requests
//! share), [`access`] (who may ask), [`health`], [`spool`], [`upload`], [`form`](mod@form) and [`files`] (uploads), [`store`] (their copies on the bus), [`fetch`] (videos of other hosts), [`intake`]
//! (a body to a job), [`jobs`] and [`job_routes`], [`events`], [`export`], [`answer`] (a request that waits), [`inference`], [`chat`]
//! and [`models`], [`clock`] (times as texts), [`load`], [`counts`] and [`metrics`], [`openapi`], [`page`], [`serve`] (connections), this file
//! (routes, start and end).

pub mod access;
pub mod answer;
pub mod chat;
pub mod clock;
pub mod counts;
pub mod events;
pub mod export;
pub mod fetch;
pub mod files;
pub mod form;
pub mod health;
pub mod inference;
pub mod intake;
pub mod job_routes;
pub mod jobs;
pub mod load;
pub mod metrics;
pub mod models;
pub mod openapi;
pub mod page;
pub mod pipelines;
pub mod problem;
pub mod serve;
pub mod spool;
pub mod stages;
pub mod state;
pub mod store;
pub mod upload;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::Uri;
use axum::routing::{MethodRouter, get, post};
use config::{Config, FilesOn, HttpConfig, Secret};
use protocol::error::StageName;
use runtime::bus::Bus;
use runtime::process::{Exit, Fatal};
use runtime::run::Shutdown;
use tokio::net::TcpListener;

use crate::up::desired::Desired;
use crate::up::note;
use pipelines::{Pipelines, Unopened};
use problem::{Kind, Problem};
use spool::Spool;
use state::{App, State};
use store::Store;

/// Address where none is configured.
pub const ADDRESS: &str = "127.0.0.1:8099";
/// Interval at which files that are too old are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// Gateway that listens, and answers nobody yet.
pub struct Gateway {
    app: App,
    listener: TcpListener,
    address: SocketAddr,
}

/// Directory of uploaded files.
pub fn spool_dir(http: &HttpConfig) -> PathBuf {
    http.spool.clone().unwrap_or_else(|| note::state_dir().join("spool"))
}

impl Gateway {
    /// Listens on the configured address; jobs go over `bus`, and `desired` is the supervisor's, where that is in this process.
    ///
    /// # Errors
    /// An address that cannot be listened on, or is not loopback without a token; a token, spool or file of tasks that cannot be
    /// read; a broker that does not take a connection for each of `http.prefixes`, or has no room for uploads where they go there.
    pub async fn open(config: &Config, bus: Bus, desired: Option<Desired>) -> Result<Self, Fatal> {
        let http = &config.http;
        let wrong = |text: String| Fatal(Exit::Usage, text);
        let token = http.token_file.as_deref().map(token).transpose().map_err(wrong)?;
        let address = if http.address.is_empty() { ADDRESS } else { &http.address };
        let unusable = |e: std::io::Error| wrong(format!("http.address {address:?} cannot be listened on: {e}"));
        let addresses: Vec<SocketAddr> = tokio::net::lookup_host(address).await.map_err(unusable)?.collect();
        if token.is_none() && !addresses.iter().all(|address| address.ip().is_loopback()) {
            let text = format!("http.address {address:?} is not loopback, and there is no token: set http.token_file");
            return Err(wrong(text));
        }
        let listener = TcpListener::bind(addresses.as_slice()).await.map_err(unusable)?;
        let address = listener.local_addr().map_err(unusable)?;
        let spool = Spool::open(&spool_dir(http), http).await.map_err(|e| wrong(format!("{e:#}")))?;
        let broker = bus.config().clone();
        let pipelines = Pipelines::open(config, bus, desired).await.map_err(|unopened| match unopened {
            Unopened::Tasks(error) => wrong(error.to_string()),
            Unopened::Bus(error) => error.into(),
        })?;
        let store = match http.files {
            FilesOn::Disk => None,
            FilesOn::Bus => Some(Store::open(&broker, http, spool.names()).await?),
        };
        if let Some(store) = &store {
            spool.tell_removed(store.removed());
        }
        let app = Arc::new(State::new(pipelines, config, token, spool, store));
        Ok(Gateway { app, listener, address })
    }

    /// Notes that all stages are loading, where nobody else knows that of them.
    pub fn note_loading(&self) {
        self.app.pipelines.own().stages.note(&StageName::ALL, true);
    }

    /// Directory of uploaded files.
    pub fn spool(&self) -> &Path {
        self.app.spool.dir()
    }

    /// Address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers requests until `shutdown`.
    pub async fn run(self, shutdown: Shutdown) {
        let Gateway { app, listener, .. } = self;
        let spool = app.spool.clone();
        let sweeping = async {
            loop {
                tokio::time::sleep(SWEEP_EVERY).await;
                spool.sweep();
            }
        };
        let (idle, most) = (Duration::from_secs_f64(app.http.idle_s), app.http.connections);
        tokio::select! {
            () = serve::serve(listener, router(app), idle, most, shutdown) => {}
            () = sweeping => {}
        }
    }
}

/// Every path, with what answers there.
fn routes() -> Vec<(&'static str, MethodRouter<App>)> {
    vec![
        ("/", get(page::page)),
        ("/livez", get(health::live)),
        ("/readyz", get(health::ready)),
        ("/health", get(health::ready)),
        ("/metrics", get(metrics::metrics)),
        ("/openapi.json", get(openapi::openapi)),
        ("/v1/jobs", post(job_routes::submit)),
        ("/v1/jobs/{job}", get(job_routes::look).delete(job_routes::cancel)),
        ("/v1/jobs/{job}/events", get(events::events)),
        ("/v1/jobs/{job}/export", get(export::export)),
        ("/v1/files", post(files::upload)),
        ("/v1/files/{id}", get(files::look).delete(files::remove)),
        ("/v1/models", get(models::models)),
        ("/v1/chat/completions", post(chat::completions)),
        ("/v1/load", post(load::load).layer(DefaultBodyLimit::max(load::BODY_BYTES))),
        ("/v1/unload", post(load::unload).layer(DefaultBodyLimit::max(load::BODY_BYTES))),
        ("/inference", post(inference::inference)),
    ]
}

fn router(app: App) -> Router {
    let empty = Router::new();
    routes()
        .into_iter()
        .fold(empty, |router, (path, method)| router.route(path, method))
        .method_not_allowed_fallback(async |uri: Uri| {
            Problem::new(Kind::MethodNotAllowed, format!("{} takes another method", uri.path()))
        })
        .fallback(async |uri: Uri| Problem::new(Kind::NotFound, format!("no path {}", uri.path())))
        .layer(axum::middleware::from_fn_with_state(app.clone(), access::check))
        .layer(axum::middleware::from_fn_with_state(app.clone(), metrics::measure))
        // All other bodies are read with the limits of section `http`.
        .layer(DefaultBodyLimit::disable())
        .with_state(app)
}

/// Token in a file.
fn token(path: &Path) -> Result<Secret, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("http.token_file {}: {e}", path.display()))?;
    match text.trim() {
        "" => Err(format!("http.token_file {} is empty: write the token into it", path.display())),
        token => Ok(Secret::from(token)),
    }
}
