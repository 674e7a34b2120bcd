//! `GET /metrics` of a process that has no gateway.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OnceCell, Semaphore};

use super::counts;
use config::MetricsConfig;

/// Type of the body.
pub const CONTENT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Connections at a time.
const CONNECTIONS: usize = 8;
/// Time that one connection may take, its request and answer included.
const CONNECTION: Duration = Duration::from_secs(10);
/// Pause before a connection is accepted where the system has just given none.
const AGAIN: Duration = Duration::from_millis(100);

/// Where this process listens.
static LISTENING: OnceCell<SocketAddr> = OnceCell::const_new();

/// Address where this process answers; none where none is configured.
pub fn address() -> Option<SocketAddr> {
    LISTENING.get().copied()
}

/// Answers `GET /metrics` at the configured address from now on, if there is one; the stages of one process share it.
///
/// # Errors
/// An address that cannot be listened on, and what to do.
pub async fn start(config: &MetricsConfig) -> Result<(), String> {
    let listen = &config.listen;
    if listen.is_empty() {
        return Ok(());
    }
    let begin = async {
        let unusable = |e: std::io::Error| {
            format!(
                "metrics.listen {listen:?} cannot be listened on: {e}; name an address that is free (`vidi up` takes one port for each \
                 process), or port 0 and read the addresses in `vidi status --json`"
            )
        };
        let listener = TcpListener::bind(listen).await.map_err(unusable)?;
        let address = listener.local_addr().map_err(unusable)?;
        tracing::info!(%address, "metrics are served");
        tokio::spawn(accept(listener));
        Ok(address)
    };
    LISTENING.get_or_try_init(|| begin).await.map(|_| ())
}

async fn accept(listener: TcpListener) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let slot = slots.clone().acquire_owned().await;
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(async move {
                    // Whoever takes longer is cut off: a reader comes again, and must not keep others out.
                    let _ = tokio::time::timeout(CONNECTION, connection(stream)).await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "accepting a connection failed, retrying");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

async fn connection(stream: TcpStream) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(CONNECTION).keep_alive(false);
    if let Err(error) = http.serve_connection(TokioIo::new(stream), service_fn(respond)).await {
        tracing::debug!(%error, "connection ended");
    }
}

async fn respond(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, body) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => match counts::text(&[]) {
            Ok(text) => (StatusCode::OK, text),
            Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, format!("metrics not written: {e}\n")),
        },
        (_, "/metrics") => (StatusCode::METHOD_NOT_ALLOWED, "/metrics takes GET\n".to_owned()),
        _ => (StatusCode::NOT_FOUND, "what there is is at /metrics\n".to_owned()),
    };
    let kind = if status == StatusCode::OK { CONTENT } else { "text/plain; charset=utf-8" };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn asked(request: &str) -> String {
        let mut stream = TcpStream::connect(address().unwrap()).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn metrics_are_read_by_get_and_a_port_that_is_taken_is_told_with_what_to_do() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listen = taken.local_addr().unwrap().to_string();
        let refused = start(&MetricsConfig { listen: listen.clone() }).await.unwrap_err();
        assert!(refused.contains(&listen) && refused.contains("vidi status"), "{refused}");
        start(&MetricsConfig::default()).await.unwrap();
        assert_eq!(address(), None);
        for _ in 0..2 {
            start(&MetricsConfig { listen: "127.0.0.1:0".to_owned() }).await.unwrap();
        }
        let text = asked("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("# EOF\n"), "{text}");
        assert!(text.contains(CONTENT) && text.contains("vidi_build_info{"), "{text}");
        assert!(asked("HEAD /metrics HTTP/1.1\r\nHost: a\r\n\r\n").await.starts_with("HTTP/1.1 200"));
        assert!(asked("POST /metrics HTTP/1.1\r\nHost: a\r\n\r\n").await.starts_with("HTTP/1.1 405"));
        assert!(asked("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.starts_with("HTTP/1.1 404"));
    }
}
