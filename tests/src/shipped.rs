//! Broker with the shipped configuration: deploy/nats.conf with passwords, and optionally certificates, made for one test.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use config::BusConfig;
use deploy::up::broker::{self, Broker};
use tempfile::TempDir;

use crate::harness::{Setup, root};

/// Directory of the streams in deploy/nats.conf.
const STORE: &str = "/var/lib/vidi/nats";
/// Where the broker shows its state in deploy/nats.conf.
const MONITOR: &str = "\nhttp: \"127.0.0.1:8222\"";
/// Directory of the certificates in deploy/nats.conf.
const TLS: &str = "/etc/vidi/tls";

/// Configuration, passwords and certificates of a broker.
pub struct Shipped {
    dir: TempDir,
    tls: bool,
}

impl Shipped {
    /// The shipped configuration, with passwords of this test.
    ///
    /// # Errors
    /// When a file cannot be made.
    pub fn new() -> anyhow::Result<Self> {
        let shipped = Shipped { dir: tempfile::tempdir()?, tls: false };
        run(Command::new(root().join("deploy/passwords.sh")).arg(shipped.dir.path()))?;
        shipped.write(|text| text)?;
        Ok(shipped)
    }

    /// The same with its TLS block enabled, and a certificate from an authority of this test.
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

    /// Path of one of its files.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes a certificate authority: NAME.pem, NAME-key.pem.
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

    /// Runs openssl with a new key in NAME-key.pem.
    fn openssl(&self, args: &[&str], name: &str) -> anyhow::Result<()> {
        let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout"];
        let key_file = format!("{name}-key.pem");
        run(Command::new("openssl").current_dir(self.dir.path()).args(args).args(key).arg(key_file))
    }

    /// Writes nats.conf after a change; the directory of the streams and the port of its state are always of this test.
    fn write(&self, change: impl Fn(String) -> String) -> anyhow::Result<()> {
        let shipped = std::fs::read_to_string(root().join("deploy/nats.conf"))?;
        ensure!(
            [STORE, TLS, MONITOR].iter().all(|text| shipped.contains(text)),
            "deploy/nats.conf lacks {STORE}, {TLS} or {MONITOR}: update this test"
        );
        let store = self.file("streams").to_string_lossy().into_owned();
        // A port of its own: others test here too.
        let here = shipped.replace(STORE, &store).replace(MONITOR, "\nhttp: \"127.0.0.1:-1\"");
        std::fs::write(self.file("nats.conf"), change(here))?;
        std::fs::copy(root().join("deploy/users.conf"), self.file("users.conf"))?;
        Ok(())
    }

    /// Settings by which every role finds its credentials, as nats.conf describes them.
    pub fn settings(&self) -> Vec<String> {
        let path = |name: &str| self.file(name).display().to_string();
        let mut set = vec!["bus.user={stage}".to_owned(), format!("bus.password_file={}", path("{stage}.password"))];
        if self.tls {
            set.push(format!("bus.tls_ca={}", path("ca.pem")));
        }
        set
    }

    /// Setup of a pipeline on a broker with this configuration.
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
    /// If it does not start.
    pub async fn broker(&self, program: Option<&Path>) -> anyhow::Result<Broker> {
        self.broker_at(program, 0).await
    }

    /// The same on a port; behind one that has ended, on its files.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn broker_at(&self, program: Option<&Path>, port: u16) -> anyhow::Result<Broker> {
        let options = broker::Options {
            program: program.map(Path::to_owned),
            port,
            config: Some(self.file("nats.conf")),
            ..broker::Options::default()
        };
        Broker::start(&self.file("broker"), &options).await
    }

    /// Settings by which any role reaches that broker.
    ///
    /// # Errors
    /// A setting that is not valid.
    pub fn bus(&self, broker: &Broker) -> anyhow::Result<BusConfig> {
        self.setup(None).bus(broker.url())
    }

    /// Password of a user.
    ///
    /// # Errors
    /// If the user has none.
    pub fn password(&self, user: &str) -> anyhow::Result<String> {
        Ok(std::fs::read_to_string(self.file(&format!("{user}.password")))?.trim().to_owned())
    }
}

/// The configuration with the lines of its TLS block no longer commented out.
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
