//! Connection that speaks the protocol of NATS itself: whatever is asked for is sent, and every word of the broker is seen.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, ensure};

/// Time within which the broker answers.
const ANSWERS: Duration = Duration::from_secs(30);

/// Connection of one user.
pub struct Raw {
    writer: TcpStream,
    reader: BufReader<TcpStream>,
}

/// What came from the broker up to an answer to PING.
#[derive(Debug, Default)]
pub struct Heard {
    /// Errors, as the broker words them.
    pub errors: Vec<String>,
    /// Subjects of messages, with their bodies.
    pub messages: Vec<(String, Vec<u8>)>,
}

impl Heard {
    /// Whether the broker refused to publish on a subject, or to subscribe to it.
    pub fn refuses(&self, subject: &str) -> bool {
        let quoted = format!("\"{subject}\"");
        self.errors.iter().any(|error| error.contains("Permissions Violation") && error.contains(&quoted))
    }
}

impl Raw {
    /// Connects as a user.
    ///
    /// # Errors
    /// When the broker does not take it.
    pub fn connect(url: &str, user: &str, password: &str) -> anyhow::Result<Self> {
        let writer = TcpStream::connect(url.trim_start_matches("nats://"))?;
        writer.set_read_timeout(Some(ANSWERS))?;
        let mut raw = Raw { reader: BufReader::new(writer.try_clone()?), writer };
        let connect = serde_json::json!({
            "verbose": false, "headers": true, "no_responders": true, "protocol": 1, "user": user, "pass": password
        });
        raw.send(&format!("CONNECT {connect}\r\n"))?;
        let heard = raw.settle()?;
        ensure!(heard.errors.is_empty(), "{user}: {heard:?}");
        Ok(raw)
    }

    /// Publishes, with a subject for the reply if that is not empty.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn publish(&mut self, subject: &str, reply: &str, body: &str) -> anyhow::Result<()> {
        self.send(&format!("PUB {subject} {reply} {}\r\n{body}\r\n", body.len()))
    }

    /// Subscribes.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn subscribe(&mut self, subject: &str, id: usize) -> anyhow::Result<()> {
        self.send(&format!("SUB {subject} {id}\r\n"))
    }

    /// Waits until the broker has worked off all that was sent, and returns what it said until then.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn settle(&mut self) -> anyhow::Result<Heard> {
        self.send("PING\r\n")?;
        let mut heard = Heard::default();
        loop {
            let mut line = String::new();
            ensure!(self.reader.read_line(&mut line).context("the broker does not answer")? > 0, "hung up: {heard:?}");
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.first().copied() {
                Some("PONG") => return Ok(heard),
                Some("PING") => self.send("PONG\r\n")?,
                Some("-ERR") => heard.errors.push(line.trim().to_owned()),
                Some("MSG" | "HMSG") => {
                    let bytes: usize = words.last().context("no size")?.parse()?;
                    let mut body = vec![0; bytes + 2];
                    self.reader.read_exact(&mut body)?;
                    body.truncate(bytes);
                    heard.messages.push((words[1].to_owned(), body));
                }
                _ => {}
            }
        }
    }

    fn send(&mut self, text: &str) -> anyhow::Result<()> {
        Ok(self.writer.write_all(text.as_bytes())?)
    }
}
