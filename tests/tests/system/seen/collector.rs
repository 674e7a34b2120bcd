//! A collector of spans: OTLP over HTTP as JSON.

use std::sync::{Arc, Mutex};

use anyhow::{Context, ensure};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};

/// Span that came.
#[derive(Clone, Debug)]
pub struct Span {
    pub service: String,
    pub trace: String,
    pub id: String,
    /// Empty of the first one of a trace.
    pub parent: String,
    pub name: String,
    pub kind: u64,
    attributes: Value,
}

impl Span {
    /// Kind of work on a message.
    pub const CONSUMER: u64 = 5;

    /// Value of a text attribute; empty where it is not there.
    pub fn attribute(&self, key: &str) -> &str {
        value(&self.attributes, key)
    }
}

fn value<'a>(attributes: &'a Value, key: &str) -> &'a str {
    let found = attributes.as_array().and_then(|all| all.iter().find(|one| one["key"] == key));
    found.and_then(|one| one["value"]["stringValue"].as_str()).unwrap_or_default()
}

/// Port at which nobody listens yet.
pub struct Closed(TcpSocket, u16);

impl Closed {
    pub fn port(&self) -> u16 {
        self.1
    }

    /// Listens from now on.
    pub async fn open(self) -> anyhow::Result<Collector> {
        let listener = self.0.listen(64)?;
        let collector = Collector::default();
        let taken = collector.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let taken = taken.clone();
                tokio::spawn(async move {
                    if let Err(error) = take(stream, &taken.spans).await {
                        taken.trouble.lock().unwrap().push(format!("{error:#}"));
                    }
                });
            }
        });
        Ok(collector)
    }
}

/// Collector that listens.
#[derive(Clone, Default)]
pub struct Collector {
    spans: Arc<Mutex<Vec<Span>>>,
    /// Requests that are none.
    trouble: Arc<Mutex<Vec<String>>>,
}

impl Collector {
    /// A port of its own that refuses connections until it is opened.
    pub async fn closed() -> anyhow::Result<Closed> {
        let socket = TcpSocket::new_v4()?;
        socket.bind("127.0.0.1:0".parse()?)?;
        let port = socket.local_addr()?.port();
        Ok(Closed(socket, port))
    }

    /// Spans that came so far.
    pub fn spans(&self) -> anyhow::Result<Vec<Span>> {
        let trouble = self.trouble.lock().unwrap();
        ensure!(trouble.is_empty(), "{trouble:?}");
        Ok(self.spans.lock().unwrap().clone())
    }
}

/// Takes one request of a connection and answers it.
async fn take(stream: TcpStream, spans: &Mutex<Vec<Span>>) -> anyhow::Result<()> {
    let mut stream = BufReader::new(stream);
    let (mut head, mut bytes) = (Vec::new(), 0);
    loop {
        let mut line = String::new();
        ensure!(stream.read_line(&mut line).await? > 0, "the head ends in {head:?}");
        if line.trim().is_empty() {
            break;
        }
        let line = line.trim().to_ascii_lowercase();
        if let Some(length) = line.strip_prefix("content-length:") {
            bytes = length.trim().parse()?;
        }
        head.push(line);
    }
    ensure!(head.first().is_some_and(|line| line == "post /v1/traces http/1.1"), "{head:?}");
    ensure!(head.iter().any(|line| line == "content-type: application/json"), "{head:?}");
    let mut body = vec![0; bytes];
    stream.read_exact(&mut body).await?;
    let came = read(&serde_json::from_slice(&body)?)?;
    spans.lock().unwrap().extend(came);
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}").await?;
    Ok(())
}

/// Spans of a request.
fn read(request: &Value) -> anyhow::Result<Vec<Span>> {
    let list = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    let mut spans = Vec::new();
    for resource in list(request, "resourceSpans") {
        let service = value(&resource["resource"]["attributes"], "service.name").to_owned();
        for span in list(&resource, "scopeSpans").iter().flat_map(|scope| list(scope, "spans")) {
            let text = |key: &str| span[key].as_str().unwrap_or_default().to_owned();
            let (start, end) = (text("startTimeUnixNano").parse::<u64>()?, text("endTimeUnixNano").parse::<u64>()?);
            ensure!(start > 0 && start <= end, "{span}");
            spans.push(Span {
                service: service.clone(),
                trace: text("traceId"),
                id: text("spanId"),
                parent: text("parentSpanId"),
                name: text("name"),
                kind: span["kind"].as_u64().with_context(|| format!("no kind: {span}"))?,
                attributes: span["attributes"].clone(),
            });
        }
    }
    Ok(spans)
}
