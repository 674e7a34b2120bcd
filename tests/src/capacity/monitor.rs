//! What a broker says of itself on its monitoring port, and what its process takes.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use deploy::up::broker::Broker;
use serde::Serialize;
use serde_json::Value;

/// Longest time that the monitoring port may take to answer.
const ANSWER_WAIT: Duration = Duration::from_secs(30);
/// Time between two looks at a broker, while a scenario runs.
pub const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Figures of a broker from its start on.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// When it was looked at.
    pub at: Instant,
    /// Bytes that clients have sent, and that were sent to them.
    pub bytes: [u64; 2],
    /// Messages likewise.
    pub messages: [u64; 2],
    /// CPU seconds of its process.
    pub cpu_s: f64,
    /// Resident bytes of its process.
    pub memory_bytes: u64,
    /// Bytes in all of its streams.
    pub stored_bytes: u64,
    /// Subscribers that were cut off because they did not read.
    pub slow_consumers: u64,
}

impl Sample {
    /// Looks at a broker, which was started with a monitoring port.
    ///
    /// # Errors
    /// A broker that does not answer, or not as nats-server does.
    pub fn of(broker: &Broker) -> anyhow::Result<Self> {
        let monitor = broker.monitor().context("the broker has no monitoring port")?;
        let pid = broker.pid().context("the broker has ended")?;
        let (var, streams) = (get(monitor, "/varz")?, get(monitor, "/jsz")?);
        let number = |of: &Value, key: &str| of[key].as_u64().with_context(|| format!("no {key} in {monitor}"));
        Ok(Sample {
            at: Instant::now(),
            bytes: [number(&var, "in_bytes")?, number(&var, "out_bytes")?],
            messages: [number(&var, "in_msgs")?, number(&var, "out_msgs")?],
            cpu_s: cpu_seconds(pid)?,
            memory_bytes: number(&var, "mem")?,
            stored_bytes: number(&streams, "bytes")?,
            slow_consumers: number(&var, "slow_consumers")?,
        })
    }
}

/// What a broker did between two looks.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Did {
    /// Bytes that it took in and gave out.
    pub bytes: [u64; 2],
    /// Messages likewise.
    pub messages: [u64; 2],
    /// CPU seconds.
    pub cpu_s: f64,
    /// Most resident bytes at any look.
    pub peak_memory_bytes: u64,
    /// Most bytes in its streams at any look.
    pub peak_stored_bytes: u64,
    /// Subscribers that it cut off.
    pub slow_consumers: u64,
}

impl Did {
    /// What a broker did from the first of these looks to the last.
    pub fn between(looks: &[Sample]) -> Self {
        let [first, .., last] = looks else { return Did::default() };
        let since = |of: fn(&Sample) -> [u64; 2]| [0, 1].map(|i| of(last)[i].saturating_sub(of(first)[i]));
        let most = |of: fn(&Sample) -> u64| looks.iter().map(of).max().unwrap_or(0);
        Did {
            bytes: since(|s| s.bytes),
            messages: since(|s| s.messages),
            cpu_s: last.cpu_s - first.cpu_s,
            peak_memory_bytes: most(|s| s.memory_bytes),
            peak_stored_bytes: most(|s| s.stored_bytes),
            slow_consumers: last.slow_consumers - first.slow_consumers,
        }
    }

    /// Sum of what several brokers did at the same time.
    pub fn sum(all: &[Did]) -> Self {
        let pair = |of: fn(&Did) -> [u64; 2]| [0, 1].map(|i| all.iter().map(|did| of(did)[i]).sum());
        Did {
            bytes: pair(|d| d.bytes),
            messages: pair(|d| d.messages),
            cpu_s: all.iter().map(|d| d.cpu_s).sum(),
            peak_memory_bytes: all.iter().map(|d| d.peak_memory_bytes).sum(),
            peak_stored_bytes: all.iter().map(|d| d.peak_stored_bytes).sum(),
            slow_consumers: all.iter().map(|d| d.slow_consumers).sum(),
        }
    }
}

fn get(monitor: &str, path: &str) -> anyhow::Result<Value> {
    let address = monitor.strip_prefix("http://").context("no http")?;
    let mut connection = TcpStream::connect(address)?;
    connection.set_read_timeout(Some(ANSWER_WAIT))?;
    write!(connection, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP")?;
    ensure!(head.starts_with("HTTP/1.0 200"), "{monitor}{path}: {head}");
    Ok(serde_json::from_str(body)?)
}

/// CPU seconds of a process since its start, in user and system mode.
///
/// # Errors
/// A process that is not there; a system without /proc.
pub fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    /// Unit of /proc/PID/stat on Linux, whatever its timer frequency.
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name of the program comes second, in parentheses, and may hold spaces.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|f| f.parse::<f64>().ok()).context("unknown /proc/PID/stat");
    Ok((ticks(11)? + ticks(12)?) / TICKS_PER_SECOND)
}
