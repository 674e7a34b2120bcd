//! Videos of other hosts: from those that the operator named alone, over http and https, and what such a host may do.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, ensure};
use demo_video::truth::Question;
use serde_json::{Value, json};
use tests::harness::Rig;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

use super::client::{Client, Response};
use super::rig::{Alone, clip, with_pipeline};
use super::{ensure_true, question};

/// Bytes that a fetched file may have here.
const UPLOAD_BYTES: usize = 64 << 20;

/// Host that gives a video, and what else one could be asked for; its address.
async fn host(video: Vec<u8>) -> anyhow::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let video = video.clone();
            tokio::spawn(async move {
                let mut head = vec![0; 4096];
                let read = socket.read(&mut head).await.unwrap_or(0);
                let head = String::from_utf8_lossy(&head[..read]).into_owned();
                let answer = match head.split(' ').nth(1).unwrap_or_default() {
                    "/clip.mp4?key=1" => {
                        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", video.len());
                        [head.as_bytes(), &video[..]].concat()
                    }
                    "/moved" => {
                        b"HTTP/1.1 302 Found\r\nlocation: /clip.mp4?key=1\r\ncontent-length: 0\r\n\r\n".to_vec()
                    }
                    "/said" => b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n".to_vec(),
                    // Without a length, and without an end.
                    "/endless" => {
                        let _ = socket.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
                        while socket.write_all(&[0; 65536]).await.is_ok() {}
                        return;
                    }
                    "/short" => b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nx".to_vec(),
                    "/silent" => {
                        let _ = socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nx").await;
                        std::future::pending().await
                    }
                    _ => b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_vec(),
                };
                let _ = socket.write_all(&answer).await;
            });
        }
    });
    Ok(address)
}

/// Host that gives the files of a directory over TLS, with a certificate of its own, and its port.
async fn secure_host(dir: &Path) -> anyhow::Result<(tokio::process::Child, u16)> {
    let key = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=host \
               -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE";
    let made = tokio::process::Command::new("openssl").args(key.split_whitespace()).current_dir(dir).output().await?;
    ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let mut server = tokio::process::Command::new("openssl")
        .args("s_server -accept 127.0.0.1:0 -cert cert.pem -key key.pem -WWW".split_whitespace())
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(server.stdout.take().context("no standard output")?).lines();
    while let Some(line) = lines.next_line().await? {
        if let Some(port) = line.strip_prefix("ACCEPT 127.0.0.1:") {
            let port = port.trim().parse()?;
            // Whoever writes to a pipe that nobody reads ends.
            tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
            return Ok((server, port));
        }
    }
    anyhow::bail!("openssl s_server does not listen")
}

async fn ask(client: &Client, url: &str, asked: &Question, job: &str) -> anyhow::Result<Response> {
    let part = json!({ "type": "video_url", "video_url": { "url": url } });
    let content = json!([part, { "type": "text", "text": asked.query }]);
    let body = json!({
        "model": "vidi", "task": asked.task, "job": job, "max_tokens": 24, "messages": [{ "role": "user", "content": content }],
    });
    client.post("/v1/chat/completions", &body).await
}

#[test]
fn videos_are_fetched_from_named_hosts_alone_and_no_further_than_they_may() -> anyhow::Result<()> {
    with_pipeline(fetched)
}

async fn fetched(rig: &Rig, open: &Client) -> anyhow::Result<()> {
    let (video, truth) = clip(rig).await?;
    let asked = question(&truth, "retrieval")?;
    let address = host(std::fs::read(&video)?).await?;
    let (_server, port) = secure_host(video.parent().context("no directory")?).await?;
    let hosts = format!("http.url_hosts=[\"{address}\", \"127.0.0.1:{port}\"]");
    let limit = format!("http.upload_bytes={UPLOAD_BYTES}");
    let certificate = rig.media().join("cert.pem").to_string_lossy().into_owned();
    let env = [("SSL_CERT_FILE", certificate.as_str())];
    let gateway = Alone::start(rig, "fetched", &[&hosts, &limit, "http.idle_s=1"], &env).await?;
    let client = &gateway.client;

    let both =
        [(format!("http://{address}/clip.mp4?key=1"), "plain"), (format!("https://127.0.0.1:{port}/5.mp4"), "secure")];
    for (url, job) in both {
        let answer = ask(client, &url, asked, job).await?.expect(200)?.json();
        ensure!(answer["object"] == "chat.completion", "{answer}");
        let result: Value = client.get(&format!("/v1/jobs/{job}")).await?.expect(200)?.json()["result"].clone();
        ensure_true(asked, &result)?;
    }
    ensure!(gateway.spooled()?.len() == 2, "one video and its facts: {:?}", gateway.spooled()?);

    for (path, status, kind) in [
        ("/moved", 502, "fetch_failed"),
        ("/nothing", 502, "fetch_failed"),
        ("/said", 413, "too_large"),
        ("/endless", 413, "too_large"),
        ("/short", 502, "fetch_failed"),
        ("/silent", 502, "fetch_failed"),
    ] {
        let refused = ask(client, &format!("http://{address}{path}"), asked, "refused").await?;
        refused.problem(status, kind).with_context(|| path.to_owned())?;
    }
    // No TLS there, and a host that is not named: by this gateway, and by one that names none.
    ask(client, &format!("https://{address}/clip.mp4?key=1"), asked, "refused").await?.problem(502, "fetch_failed")?;
    for url in [format!("http://localhost:{port}/5.mp4"), "http://127.0.0.1:9/5.mp4".to_owned()] {
        ask(client, &url, asked, "refused").await?.problem(403, "forbidden_path")?;
    }
    ask(open, &format!("http://{address}/clip.mp4"), asked, "refused").await?.problem(403, "forbidden_path")?;
    ensure!(gateway.spooled()?.len() == 2, "something was left: {:?}", gateway.spooled()?);
    Ok(())
}
