//! Videos at http and https URLs: fetched to the spool, from hosts that the operator named alone.

use std::sync::Arc;
use std::time::Duration;

use axum::http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use protocol::error::ErrorKind;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::problem::{Kind, Problem};
use super::spool::Held;
use super::state::State;
use super::upload::{Upload, too_large};

/// Where a video is.
#[derive(Debug, PartialEq)]
struct Place {
    is_https: bool,
    /// Name or address, without brackets.
    host: String,
    port: u16,
    uri: Uri,
}

/// Fetches the video at a URL into the spool. Redirects are not followed.
///
/// # Errors
/// `bad_request` for no URL; `forbidden_path` for a host that is not on the list; `too_large`; `fetch_failed` with what the host, or
/// the way to it, did; and the spool's.
pub async fn fetch(app: &State, url: &str) -> Result<Held, Problem> {
    let place = place(url)?;
    if !is_allowed(&place, &app.http.url_hosts) {
        let text = format!("video not fetched: {}:{} is not in http.url_hosts", place.host, place.port);
        return Err(Problem::new(Kind::Job(ErrorKind::ForbiddenPath), text)
            .hint("upload the video (POST /v1/files) and send its file_id, or have the host added to http.url_hosts"));
    }
    let limit = Duration::from_secs_f64(app.http.fetch_s);
    match tokio::time::timeout(limit, fetched(app, &place)).await {
        Ok(held) => held,
        Err(_) => Err(failed(&place, &format!("not here within {limit:?} (http.fetch_s)"))),
    }
}

/// Reads a URL.
fn place(url: &str) -> Result<Place, Problem> {
    let shown: String = url.chars().take(80).collect();
    let wrong = |why: &str| Problem::bad_request(format!("no URL of a video: {shown:?} {why}"));
    let uri: Uri = url.parse().map_err(|e| wrong(&format!("is none ({e})")))?;
    let is_https = match uri.scheme_str() {
        Some("http") => false,
        Some("https") => true,
        _ => return Err(wrong("has another scheme than http and https")),
    };
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(wrong("has a user in it"));
    }
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_ascii_lowercase();
    let port = uri.port_u16().unwrap_or(if is_https { 443 } else { 80 });
    if host.is_empty() { Err(wrong("has no host")) } else { Ok(Place { is_https, host, port, uri }) }
}

/// Whether the operator named this host: with this port, or without one for the port of its scheme.
fn is_allowed(place: &Place, hosts: &[String]) -> bool {
    let own_port = if place.is_https { 443 } else { 80 };
    let named = |entry: &String| {
        let entry = entry.to_ascii_lowercase();
        let bare = entry.trim_matches(['[', ']']) == place.host && place.port == own_port;
        let with_port = entry.rsplit_once(':').filter(|(_, port)| port.parse() == Ok(place.port));
        bare || with_port.is_some_and(|(host, _)| host.trim_matches(['[', ']']) == place.host)
    };
    hosts.iter().any(named)
}

async fn fetched(app: &State, place: &Place) -> Result<Held, Problem> {
    let unreachable = |e: std::io::Error| failed(place, &format!("not reached: {e}"));
    let stream = TcpStream::connect((place.host.as_str(), place.port)).await.map_err(unreachable)?;
    if !place.is_https {
        return read(app, place, stream).await;
    }
    let name = ServerName::try_from(place.host.clone()).map_err(|e| failed(place, &e.to_string()))?;
    let untrusted = |e: std::io::Error| failed(place, &format!("no TLS connection: {e}"));
    read(app, place, tls(place)?.connect(name, stream).await.map_err(untrusted)?).await
}

/// TLS that trusts whom this host does.
fn tls(place: &Place) -> Result<TlsConnector, Problem> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let errors: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
        let text = format!("no certificates to trust on this host; {}", errors.join(", "));
        return Err(failed(place, &text).hint("install ca-certificates, or set SSL_CERT_FILE for the gateway"));
    }
    Ok(TlsConnector::from(Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())))
}

/// Asks for the video on a connection, and writes it to the spool as it comes.
async fn read<S>(app: &State, place: &Place, stream: S) -> Result<Held, Problem>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let broken = |e: hyper::Error| failed(place, &format!("it broke off: {e}"));
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    // The connection ends with this request, whoever ends that.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let path = place.uri.path_and_query().map_or("/", |path| path.as_str());
    let authority = place.uri.authority().map_or("", |authority| authority.as_str());
    let request = Request::get(path)
        .header(header::HOST, authority)
        .header(header::USER_AGENT, concat!("vidi/", env!("CARGO_PKG_VERSION")))
        .header(header::ACCEPT, "video/*, audio/*, */*;q=0.5")
        .body(Empty::<Bytes>::new())
        .map_err(|e| failed(place, &e.to_string()))?;
    let idle = Duration::from_secs_f64(app.http.idle_s);
    let silent = || failed(place, &format!("it sent nothing for {idle:?} (http.idle_s)"));
    let asked = tokio::time::timeout(idle, sender.send_request(request));
    let response = asked.await.map_err(|_| silent())?.map_err(broken)?;
    answered(place, response.status())?;
    let limit = app.http.upload_bytes;
    let length = response.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > limit) {
        return Err(too_large(limit));
    }
    let mut body: Incoming = response.into_body();
    let mut upload = Upload::begin(&app.spool, place.uri.path(), limit)?;
    while let Some(frame) = tokio::time::timeout(idle, body.frame()).await.map_err(|_| silent())? {
        if let Ok(bytes) = frame.map_err(broken)?.into_data() {
            upload.write(&bytes).await?;
        }
    }
    upload.finish().await.map(|(_, held)| held)
}

/// Refuses what comes with another status than 200.
fn answered(place: &Place, status: StatusCode) -> Result<(), Problem> {
    match status {
        StatusCode::OK => Ok(()),
        status if status.is_redirection() => {
            Err(failed(place, &format!("it redirects ({status}), which is not followed"))
                .hint("send the URL where the video itself is, if its host is in http.url_hosts"))
        }
        status => Err(failed(place, &format!("it answers {status}")).detail("status", status.as_u16())),
    }
}

fn failed(place: &Place, why: &str) -> Problem {
    // A path may hold a secret of whoever sent it.
    Problem::new(Kind::FetchFailed, format!("video not fetched from {}:{}: {why}", place.host, place.port))
        .hint("look whether the URL is right, and whether the gateway's host reaches it")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(url: &str, hosts: &[&str]) -> bool {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        is_allowed(&place(url).unwrap(), &hosts)
    }

    #[test]
    fn only_named_hosts_are_asked_each_at_its_own_port_unless_another_is_named() {
        assert!(allowed("https://Videos.example/a.mp4?x=1", &["videos.example"]));
        assert!(allowed("http://videos.example/a.mp4", &["videos.example"]));
        assert!(allowed("http://videos.example:8080/a.mp4", &["VIDEOS.example:8080"]));
        assert!(allowed("http://[::1]:8080/a.mp4", &["[::1]:8080"]) && allowed("http://[::1]/a.mp4", &["::1"]));
        for (url, host) in [
            ("http://videos.example:8080/a.mp4", "videos.example"),
            ("http://videos.example/a.mp4", "videos.example:8080"),
            ("http://videos.example.evil.example/a.mp4", "videos.example"),
            ("http://a.videos.example/a.mp4", "videos.example"),
            ("http://127.0.0.1/a.mp4", "localhost"),
        ] {
            assert!(!allowed(url, &[host]), "{url} and {host}");
        }
        assert!(!allowed("http://videos.example/a.mp4", &[]));
    }

    #[test]
    fn what_is_no_url_of_a_video_is_refused() {
        for wrong in
            ["http://", "http://user:pw@videos.example/a.mp4", "ftp://videos.example/a.mp4", "http://a b/c", "/v.mp4"]
        {
            assert_eq!(place(wrong).unwrap_err().kind, Kind::Job(ErrorKind::BadRequest), "{wrong}");
        }
        assert_eq!(place("https://a.example").unwrap().port, 443);
    }

    #[test]
    fn redirects_and_errors_are_no_videos() {
        let place = place("http://a.example/v.mp4?token=geheim").unwrap();
        for status in [301, 302, 307, 404, 500, 206, 204] {
            let problem = answered(&place, StatusCode::from_u16(status).unwrap()).unwrap_err();
            assert!(problem.kind == Kind::FetchFailed && problem.message.contains(&status.to_string()), "{problem:?}");
            assert!(!problem.message.contains("geheim"), "{problem:?}");
        }
        assert_eq!(answered(&place, StatusCode::OK), Ok(()));
    }
}
