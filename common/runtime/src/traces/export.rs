//! Spans to the collector: OTLP over HTTP as JSON, in batches, from a thread of their own with a queue that has an end. A job never
//! waits for it; what a collector that is away does not take is lost, which is told once.

use std::fmt;
use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::header::{HOST, HeaderValue};
use hyper_util::rt::TokioIo;
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, RetryPolicy, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider};
use tokio::net::TcpStream;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

use super::spans::{EXPORTED, ON};
use config::TracesConfig;

/// Spans that wait for the collector at most; further ones are lost.
const QUEUE: usize = 4096;
/// Spans in one request.
const BATCH: usize = 512;
/// Interval at which those that wait are sent.
const EVERY: Duration = Duration::from_secs(1);
/// Time that a request may take.
const REQUEST: Duration = Duration::from_secs(5);
/// Time that the end of a process may wait for its last spans.
const LAST: Duration = Duration::from_secs(3);
/// Bytes of an answer.
const ANSWER_BYTES: usize = 64 << 10;
/// Port where the URL has none.
const PORT: u16 = 4318;
/// Crates whose log lines go into the spans that they are written in.
const OWN: [&str; 4] = ["runtime", "deploy", "stage_", "vidi"];

/// Collector, to which a thread that may wait posts.
struct Collector {
    /// Whether the last request failed: that is told when it changes.
    away: AtomicBool,
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Collector")
    }
}

/// What the trait gives back, which its crate makes with a macro.
type Answered<'a> = Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'a>>;

impl HttpClient for Collector {
    fn send_bytes<'life0, 'async_trait>(&'life0 self, request: Request<Bytes>) -> Answered<'async_trait>
    where
        'life0: 'async_trait,
        Self: 'async_trait,
    {
        let url = request.uri().to_string();
        let answered = post(request);
        let trouble = match &answered {
            Ok(response) if response.status().is_success() => None,
            Ok(response) => Some(format!("the collector answers {}", response.status())),
            Err(error) => Some(error.to_string()),
        };
        let was_away = self.away.swap(trouble.is_some(), Ordering::Relaxed);
        match trouble {
            Some(error) if !was_away => {
                tracing::warn!(
                    url,
                    error,
                    "spans not exported; they are lost until the collector takes some, jobs go on"
                );
            }
            None if was_away => tracing::info!(url, "spans are exported again"),
            _ => {}
        }
        Box::pin(ready(answered))
    }
}

/// Posts a request from a thread that has no runtime, and waits for the answer.
fn post(request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { tokio::time::timeout(REQUEST, exchange(request)).await? })
}

async fn exchange(request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let (mut parts, body) = request.into_parts();
    let host = parts.uri.host().ok_or("the URL has no host")?.trim_matches(['[', ']']).to_owned();
    let authority = parts.uri.authority().map(|authority| authority.as_str().to_owned()).unwrap_or_default();
    let stream = TcpStream::connect((host, parts.uri.port_u16().unwrap_or(PORT))).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let driving = tokio::spawn(connection);
    parts.headers.insert(HOST, HeaderValue::from_str(&authority)?);
    parts.uri = parts.uri.path_and_query().map_or("/", |path| path.as_str()).parse()?;
    let answer = sender.send_request(Request::from_parts(parts, Full::new(body))).await?;
    let (head, body) = answer.into_parts();
    let body = Limited::new(body, ANSWER_BYTES).collect().await?.to_bytes();
    driving.abort();
    Ok(Response::from_parts(head, body))
}

/// Export of spans for as long as this is there; dropped, it waits for a short while until the last ones are sent.
#[derive(Debug, Default)]
pub struct Exporting(Option<SdkTracerProvider>);

impl Exporting {
    pub(crate) fn new(provider: Option<SdkTracerProvider>) -> Self {
        ON.store(provider.is_some(), Ordering::Relaxed);
        Exporting(provider)
    }
}

impl Drop for Exporting {
    fn drop(&mut self) {
        if let Some(provider) = self.0.take() {
            ON.store(false, Ordering::Relaxed);
            // A collector that is away has been told of.
            let _ = provider.shutdown_with_timeout(LAST);
        }
    }
}

/// Source of spans of a process that is called `service`; none where no collector is configured.
///
/// # Errors
/// An endpoint that is none.
pub(crate) fn provider(config: &TracesConfig, service: &'static str) -> Result<Option<SdkTracerProvider>, String> {
    if config.endpoint.is_empty() {
        return Ok(None);
    }
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(Collector { away: AtomicBool::new(false) })
        .with_retry_policy(RetryPolicy::disabled())
        .with_protocol(Protocol::HttpJson)
        .with_endpoint(format!("{}/v1/traces", config.endpoint.trim_end_matches('/')))
        .with_timeout(REQUEST)
        .build()
        .map_err(|e| format!("traces.endpoint {:?}: {e}", config.endpoint))?;
    let batches = BatchConfigBuilder::default()
        .with_max_queue_size(QUEUE)
        .with_max_export_batch_size(BATCH)
        .with_scheduled_delay(EVERY)
        .build();
    let resource = Resource::builder()
        .with_service_name(service)
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attribute(KeyValue::new("process.pid", i64::from(std::process::id())))
        .build();
    let processor = BatchSpanProcessor::builder(exporter).with_batch_config(batches).build();
    Ok(Some(SdkTracerProvider::builder().with_resource(resource).with_span_processor(processor).build()))
}

/// Layer that hands spans with the field [`EXPORTED`], and the log lines in them, to a provider.
pub(crate) fn layer<S>(provider: &SdkTracerProvider) -> impl Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let is_ours = |meta: &Metadata<'_>| match meta.is_span() {
        true => meta.fields().field(EXPORTED).is_some(),
        false => *meta.level() <= Level::INFO && OWN.iter().any(|own| meta.target().starts_with(own)),
    };
    tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("vidi"))
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        .with_filter(filter_fn(is_ours))
}
