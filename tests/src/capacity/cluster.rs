//! What one server stores a second, and a cluster of three: messages as small as events, and as large as tensors.

use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use async_nats::jetstream::{self, stream};
use bytes::Bytes;
use config::replace;
use deploy::up::broker::{Broker, MAX_PAYLOAD, Options};
use futures::{StreamExt, TryStreamExt};
use serde::Serialize;

use super::monitor::cpu_seconds;

/// Time that a cluster may take to elect its leaders.
const ELECTED: Duration = Duration::from_secs(60);
/// Publications that wait for their acknowledgements at a time, in bytes: as of a stage's outputs.
const SENDING_BYTES: usize = 16 << 20;
/// And in number.
const SENDING: usize = 64;

/// Figures of one stream.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Servers of the cluster.
    pub servers: usize,
    /// Copies of the stream.
    pub replicas: usize,
    /// Bytes of a message.
    pub bytes: usize,
    /// Messages a second, each acknowledged.
    pub messages_per_s: f64,
    /// Bytes a second that were published.
    pub bytes_per_s: f64,
    /// CPU seconds of all servers for a GB that was published.
    pub cpu_s_per_gb: f64,
    /// CPU microseconds of all servers for a message.
    pub cpu_us_per_message: f64,
}

/// Measures so many messages of each size on one server, and on three with one copy and with three.
///
/// # Errors
/// Servers that do not start or do not elect a leader.
pub async fn measure(dir: &Path, sizes: &[(usize, usize)]) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for servers in [1, 3] {
        let brokers = start(&dir.join(format!("of-{servers}")), servers).await?;
        for &(bytes, messages) in sizes {
            for replicas in [1, 3].into_iter().filter(|&replicas| replicas <= servers) {
                rows.push(written(&brokers, replicas, bytes, messages).await?);
            }
        }
    }
    Ok(rows)
}

async fn start(dir: &Path, servers: usize) -> anyhow::Result<Vec<Broker>> {
    // Held until all are known, so that no two are the same.
    let held = (0..servers).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>()?;
    let ports = held.iter().map(|l| Ok(l.local_addr()?.port())).collect::<anyhow::Result<Vec<_>>>()?;
    drop(held);
    let routes: Vec<String> = ports.iter().map(|port| format!("nats://127.0.0.1:{port}")).collect();
    let mut brokers = Vec::new();
    for (n, port) in ports.iter().enumerate() {
        let own = dir.join(format!("{n}"));
        std::fs::create_dir_all(&own)?;
        let cluster = match servers {
            1 => String::new(),
            _ => format!(
                "cluster {{ name: \"capacity\", listen: \"127.0.0.1:{port}\", routes: [{}] }}\n",
                routes.join(", ")
            ),
        };
        let text = format!(
            "server_name: \"capacity-{n}\"\nhost: 127.0.0.1\nmax_payload: {MAX_PAYLOAD}\njetstream {{ store_dir: {:?} }}\n{cluster}",
            own.join("jetstream")
        );
        let config = own.join("server.conf");
        replace::write(&config, text.as_bytes())?;
        brokers.push(Broker::start(&own, &Options { config: Some(config), ..Options::default() }).await?);
    }
    Ok(brokers)
}

async fn written(brokers: &[Broker], replicas: usize, bytes: usize, messages: usize) -> anyhow::Result<Row> {
    let first = brokers.first().context("no server")?;
    let js = jetstream::new(async_nats::connect(first.url()).await?);
    let name = format!("R{replicas}-{bytes}");
    let config = stream::Config {
        name: name.clone(),
        subjects: vec![format!("{name}.*")],
        num_replicas: replicas,
        storage: stream::StorageType::File,
        ..Default::default()
    };
    let until = Instant::now() + ELECTED;
    while let Err(error) = js.create_stream(config.clone()).await {
        if Instant::now() > until {
            return Err(error).context("no leader was elected, or the stream has no place");
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let cpu =
        || -> anyhow::Result<f64> { brokers.iter().map(|b| cpu_seconds(b.pid().context("a server has ended")?)).sum() };
    let body = Bytes::from(vec![0x3c; bytes]);
    let at_a_time = (SENDING_BYTES / bytes).clamp(1, SENDING);
    let publish = |n: usize| {
        let (js, subject, body) = (js.clone(), format!("{name}.{}", n % 100), body.clone());
        async move { anyhow::Ok(js.publish(subject, body).await?.await?) }
    };
    // First pages, first files.
    futures::stream::iter(0..at_a_time).map(publish).buffered(at_a_time).try_collect::<Vec<_>>().await?;
    let (before, began) = (cpu()?, Instant::now());
    futures::stream::iter(0..messages).map(publish).buffered(at_a_time).try_collect::<Vec<_>>().await?;
    let (seconds, cpu_s, all) = (began.elapsed().as_secs_f64(), cpu()? - before, (messages * bytes) as f64);
    js.delete_stream(&name).await?;
    Ok(Row {
        servers: brokers.len(),
        replicas,
        bytes,
        messages_per_s: messages as f64 / seconds,
        bytes_per_s: all / seconds,
        cpu_s_per_gb: cpu_s / all * 1e9,
        cpu_us_per_message: cpu_s / messages as f64 * 1e6,
    })
}

/// Table of what was measured.
pub fn table(rows: &[Row]) -> String {
    let mut text = "| servers | copies | bytes | messages/s | MB/s | CPU s a GB | CPU us a message |\n| ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        .to_owned();
    for row in rows {
        let Row { servers, replicas, bytes, messages_per_s, bytes_per_s, cpu_s_per_gb, cpu_us_per_message } = row;
        text += &format!(
            "| {servers} | {replicas} | {bytes} | {messages_per_s:.0} | {:.1} | {cpu_s_per_gb:.2} | {cpu_us_per_message:.0} |\n",
            bytes_per_s / 1e6
        );
    }
    text
}
