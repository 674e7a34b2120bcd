//! A small HTTP client on a socket: one request a connection, as few rules as it takes, so that a test can also break them.

use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// Longest time that an answer may take.
const ANSWER_WAIT: Duration = Duration::from_secs(180);
/// Boundary of forms.
const BOUNDARY: &str = "a-boundary-of-tests";

/// Response, or its head alone where the body was not read.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    /// Value of a header; empty where it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Body as JSON; null where it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// Checks the status; the body says what was wrong.
    pub fn expect(self, status: u16) -> anyhow::Result<Self> {
        ensure!(self.status == status, "status {} and not {status}: {}", self.status, self.text());
        Ok(self)
    }

    /// Checks that it is a problem of a status and a kind.
    pub fn problem(self, status: u16, kind: &str) -> anyhow::Result<Value> {
        let response = self.expect(status)?;
        ensure!(response.header("content-type") == "application/problem+json", "{:?}", response.headers);
        let body = response.json();
        ensure!(body["kind"] == kind && body["status"] == status, "{body}");
        ensure!(body["message"].as_str().is_some_and(|message| !message.is_empty()), "{body}");
        Ok(body)
    }
}

/// Where to ask, and the token to ask with.
#[derive(Clone, Debug)]
pub struct Client {
    pub address: String,
    pub token: Option<String>,
}

impl Client {
    pub async fn get(&self, path: &str) -> anyhow::Result<Response> {
        self.ask("GET", path, "", &[]).await
    }

    pub async fn delete(&self, path: &str) -> anyhow::Result<Response> {
        self.ask("DELETE", path, "", &[]).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Response> {
        self.ask("POST", path, "application/json", body.to_string().as_bytes()).await
    }

    /// Posts a form of texts, and a file where one is given: its field and bytes.
    pub async fn form(
        &self,
        path: &str,
        texts: &[(&str, &str)],
        file: Option<(&str, &[u8])>,
    ) -> anyhow::Result<Response> {
        self.ask("POST", path, &form_type(), &form(texts, file)).await
    }

    pub async fn ask(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> anyhow::Result<Response> {
        let mut socket = self.send(method, path, &[("content-type", kind)], body, body.len()).await?;
        let whole = async {
            let mut response = head(&mut socket).await?;
            socket.read_to_end(&mut response.body).await?;
            if response.header("transfer-encoding") == "chunked" {
                response.body = joined(&response.body)?;
            }
            anyhow::Ok(response)
        };
        tokio::time::timeout(ANSWER_WAIT, whole).await.with_context(|| format!("{method} {path}: no answer"))?
    }

    /// Sends a request, or its beginning: `length` is what it says its body has.
    pub async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        length: usize,
    ) -> anyhow::Result<BufReader<TcpStream>> {
        let mut socket = TcpStream::connect(&self.address).await?;
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n", self.address);
        for (name, value) in headers.iter().filter(|(_, value)| !value.is_empty()) {
            head += &format!("{name}: {value}\r\n");
        }
        if let Some(token) = &self.token {
            head += &format!("authorization: Bearer {token}\r\n");
        }
        if length > 0 || method == "POST" {
            head += &format!("content-length: {length}\r\n");
        }
        socket.write_all(format!("{head}\r\n").as_bytes()).await?;
        // A server that has refused it already does not read on.
        let _ = socket.write_all(body).await;
        Ok(BufReader::new(socket))
    }

    /// Opens a stream of server-sent events.
    pub async fn events(&self, path: &str, last: Option<u64>) -> anyhow::Result<EventStream> {
        let last = last.map_or(String::new(), |last| last.to_string());
        self.stream("GET", path, &[("last-event-id", &last)], &[]).await
    }

    /// Opens a stream that answers a request.
    pub async fn stream(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> anyhow::Result<EventStream> {
        let mut socket = self.send(method, path, headers, body, body.len()).await?;
        let head = head(&mut socket).await?;
        Ok(EventStream { head, socket })
    }
}

/// Stream of server-sent events; the connection is cut when it is dropped.
pub struct EventStream {
    pub head: Response,
    socket: BufReader<TcpStream>,
}

impl EventStream {
    /// The next event: its id, if it has one, and its data. None at the end.
    pub async fn next(&mut self) -> anyhow::Result<Option<(Option<u64>, String)>> {
        let mut id = None;
        loop {
            let mut line = String::new();
            let read = tokio::time::timeout(ANSWER_WAIT, self.socket.read_line(&mut line));
            if read.await.context("no event")?? == 0 {
                return Ok(None);
            }
            // Sizes of chunks and comments stand between them.
            if let Some(number) = line.strip_prefix("id: ") {
                id = Some(number.trim().parse()?);
            } else if let Some(data) = line.strip_prefix("data: ") {
                return Ok(Some((id, data.trim_end().to_owned())));
            }
        }
    }
}

/// Head of a response.
pub async fn head(socket: &mut BufReader<TcpStream>) -> anyhow::Result<Response> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        let read = tokio::time::timeout(ANSWER_WAIT, socket.read_line(&mut line)).await.context("no response")??;
        ensure!(read > 0, "the connection ended before a response; lines so far {lines:?}");
        if line.trim().is_empty() {
            break;
        }
        lines.push(line.trim().to_owned());
    }
    let status = lines.first().and_then(|line| line.split(' ').nth(1)).context("no status")?.parse()?;
    let header = |line: &String| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned()));
    Ok(Response { status, headers: lines.iter().skip(1).filter_map(header).collect(), body: Vec::new() })
}

/// Body of a form.
pub fn form(texts: &[(&str, &str)], file: Option<(&str, &[u8])>) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, text) in texts {
        body.extend(
            format!("--{BOUNDARY}\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{text}\r\n").bytes(),
        );
    }
    if let Some((name, bytes)) = file {
        let head = "content-disposition: form-data";
        body.extend(format!("--{BOUNDARY}\r\n{head}; name=\"{name}\"; filename=\"clip.mp4\"\r\n").bytes());
        body.extend(b"content-type: video/mp4\r\n\r\n");
        body.extend(bytes);
        body.extend(b"\r\n");
    }
    body.extend(format!("--{BOUNDARY}--\r\n").bytes());
    body
}

/// Where the bytes of a file begin in a [`form`] with a file and no texts.
pub fn file_at(form: &[u8]) -> anyhow::Result<usize> {
    Ok(form.windows(4).position(|four| four == b"\r\n\r\n").context("no head of a file")? + 4)
}

/// Content type of [`form`].
pub fn form_type() -> String {
    format!("multipart/form-data; boundary={BOUNDARY}")
}

/// Content of a chunked body.
fn joined(mut body: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut content = Vec::new();
    loop {
        let end = body.windows(2).position(|two| two == b"\r\n").context("a chunk has no size")?;
        let size = usize::from_str_radix(std::str::from_utf8(&body[..end])?.trim(), 16)?;
        if size == 0 {
            return Ok(content);
        }
        body = body.get(end + 2..).context("a chunk ends early")?;
        content.extend(body.get(..size).context("a chunk ends early")?);
        body = body.get(size + 2..).context("a chunk ends early")?;
    }
}
