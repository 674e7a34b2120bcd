//! The broker as an operator sets it up: deploy/nats.conf with passwords, and certificates if asked for, made for one test.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use config::BusConfig;
use deploy::up::broker::{self, Broker};
use tempfile::TempDir;

use crate::harness::{Setup, root};

/// Where deploy/nats.conf keeps things on a real host.
const STORE: &str = "/var/lib/vidi/nats";
const TLS: &str = "/etc/vidi/tls";

/// Files that the broker and its clients read.
pub struct Shipped {
    dir: TempDir,
    tls: bool,
}

impl Shipped {
    /// The configuration as it is, with passwords of this test.
    ///
    /// # Errors
    /// When a file cannot be made.
    pub fn new() -> anyhow::Result<Self> {
        let shipped = Shipped { dir: tempfile::tempdir()?, tls: false };
        run(Command::new(root().join("deploy/passwords.sh")).arg(shipped.dir.path()))?;
        shipped.write(|text| text)?;
        Ok(shipped)
    }

    /// The same with its TLS block switched on, and a certificate from an authority of this test.
    ///
    /// # Errors
    /// When a file cannot be made.
    pub fn with_tls() -> anyhow::Result<Self> {
        let shipped = Shipped { tls: true, ..Shipped::new()? };
        shipped.authority("ca")?;
        shipped.certificate("broker", "ca")?;
        let dir = shipped.dir.path().to_string_lossy().into_owned();
        shipped.write(|text| with_tls_block(&text).replace(TLS, &dir))?;
        Ok(shipped)
    }

    /// A file of it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes an authority that nobody else knows: NAME.pem, NAME-key.pem.
    ///
    /// # Errors
    /// openssl's.
    pub fn authority(&self, name: &str) -> anyhow::Result<()> {
        let subject = format!("/CN=Vidi test authority {name}");
        self.openssl(&["req", "-x509", "-days", "2", "-subj", &subject, "-out", &format!("{name}.pem")], name)
    }

    /// Makes a certificate for this host: NAME.pem, NAME-key.pem.
    fn certificate(&self, name: &str, authority: &str) -> anyhow::Result<()> {
        let (request, extensions) = (format!("{name}.csr"), format!("{name}.ext"));
        std::fs::write(self.file(&extensions), "subjectAltName=IP:127.0.0.1,DNS:localhost\n")?;
        self.openssl(&["req", "-subj", "/CN=broker", "-out", &request], name)?;
        let (ca, ca_key) = (format!("{authority}.pem"), format!("{authority}-key.pem"));
        run(Command::new("openssl").current_dir(self.dir.path()).args(["x509", "-req", "-days", "2"]).args([
            "-in",
            &request,
            "-CA",
            &ca,
            "-CAkey",
            &ca_key,
            "-CAcreateserial",
            "-extfile",
            &extensions,
            "-out",
            &format!("{name}.pem"),
        ]))
    }

    /// `openssl req` and the like, with a new key in NAME-key.pem.
    fn openssl(&self, args: &[&str], name: &str) -> anyhow::Result<()> {
        let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout"];
        let key_file = format!("{name}-key.pem");
        run(Command::new("openssl").current_dir(self.dir.path()).args(args).args(key).arg(key_file))
    }

    /// Writes nats.conf; only where the broker keeps its streams is this test's in any case.
    fn write(&self, change: impl Fn(String) -> String) -> anyhow::Result<()> {
        let shipped = std::fs::read_to_string(root().join("deploy/nats.conf"))?;
        ensure!(shipped.contains(STORE) && shipped.contains(TLS), "deploy/nats.conf keeps its files elsewhere now");
        let store = self.file("streams").to_string_lossy().into_owned();
        std::fs::write(self.file("nats.conf"), change(shipped.replace(STORE, &store)))?;
        Ok(())
    }

    /// The settings by which every role finds its credentials, as nats.conf tells operators.
    pub fn settings(&self) -> Vec<String> {
        let path = |name: &str| self.file(name).display().to_string();
        let mut set = vec!["bus.user={stage}".to_owned(), format!("bus.password_file={}", path("{stage}.password"))];
        if self.tls {
            set.push(format!("bus.tls_ca={}", path("ca.pem")));
        }
        set
    }

    /// A pipeline on a broker with this configuration.
    pub fn setup(&self, broker: Option<&Path>) -> Setup {
        Setup {
            broker: broker.map(Path::to_owned),
            broker_config: Some(self.file("nats.conf")),
            set: self.settings(),
            ..Setup::default()
        }
    }

    /// A broker with this configuration, without stages.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn broker(&self, program: Option<&Path>) -> anyhow::Result<Broker> {
        let options = broker::Options {
            program: program.map(Path::to_owned),
            config: Some(self.file("nats.conf")),
            ..broker::Options::default()
        };
        Broker::start(&self.file("broker"), &options).await
    }

    /// How any role reaches that broker.
    ///
    /// # Errors
    /// A setting that is none.
    pub fn bus(&self, broker: &Broker) -> anyhow::Result<BusConfig> {
        self.setup(None).bus(broker.url())
    }

    /// A user's password.
    ///
    /// # Errors
    /// When the user has none.
    pub fn password(&self, user: &str) -> anyhow::Result<String> {
        Ok(std::fs::read_to_string(self.file(&format!("{user}.password")))?.trim().to_owned())
    }
}

/// The text with the lines of its TLS block no longer comments.
fn with_tls_block(text: &str) -> String {
    let mut within = false;
    let mut lines = Vec::new();
    for line in text.lines() {
        within |= line == "#tls {";
        lines.push(if within { line.trim_start_matches('#') } else { line });
        within &= line != "#}";
    }
    lines.join("\n")
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
