//! Connecting: who a process is to the broker, how it proves that, and what it says when it is turned away.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::{Client, ConnectError, ConnectErrorKind, ConnectOptions, jetstream};
use tokio::sync::watch;

use super::address::{self, Identity};
use super::error::{BusError, BusErrorKind};
use super::handle::Bus;
use super::role::Role;
use crate::subject::Subjects;
use config::BusConfig;
use protocol::error::StageName;

/// Pause before a broker that is still starting is tried again.
const AGAIN: Duration = Duration::from_millis(100);
/// Time between two pings of a server that is one of several. One that answers none of three is left for another: it may stand
/// still, or the network to it be cut, without the connection being closed.
const PING_EVERY: Duration = Duration::from_secs(5);
/// Messages of one subscription that wait to be read at most: what comes on top is lost. A burst arrives in one piece, before
/// anything of it is read, so this is more than a stage takes of any kind at once (512 probes). Tensors come one by one.
const UNREAD: usize = 1024;

impl Bus {
    /// Connects as a role, waiting up to `patience` for a broker that is still starting.
    ///
    /// # Errors
    /// [`BusErrorKind::Address`] and [`BusErrorKind::Credentials`] at once, [`BusErrorKind::Unreachable`] when patience
    /// ends.
    pub async fn connect(config: &BusConfig, role: Role, patience: Duration) -> Result<Self, BusError> {
        let instance = format!("{role}-{}-{:04x}", std::process::id(), rand_u16());
        let reconnects = Arc::new(watch::Sender::new(0));
        let client = connected(config, role, &instance, reconnects.clone(), patience).await?;
        Ok(Bus {
            js: jetstream::new(client.clone()),
            outlet: jetstream::new(client.clone()),
            client,
            subjects: Subjects::new(&config.prefix),
            // Not of this role alone: whoever connects again may do so as another.
            config: Arc::new(config.clone()),
            instance: instance.into(),
            reconnects,
            unreadable: Arc::default(),
            makes_streams: matches!(role, Role::Stage(StageName::Llm) | Role::Operator),
            held_up: Arc::default(),
            clock: Arc::default(),
        })
    }

    /// Bus whose [stores](Bus::store) go over a connection of its own, so that outputs on their way out do
    /// not hold up inputs on their way in: one connection does one thing at a time.
    ///
    /// # Errors
    /// As [`connect`](Bus::connect).
    pub async fn with_outlet(self, role: Role, patience: Duration) -> Result<Self, BusError> {
        let name = format!("{}-out", self.instance);
        // Both are lost with the broker; that is counted once.
        let outlet = connected(&self.config, role, &name, Arc::default(), patience).await?;
        Ok(Bus { outlet: jetstream::new(outlet), ..self })
    }
}

async fn connected(
    config: &BusConfig,
    role: Role,
    name: &str,
    reconnects: Arc<watch::Sender<u64>>,
    patience: Duration,
) -> Result<Client, BusError> {
    let own = config.of_role(role.as_str());
    let servers = address::servers(&own.url)?;
    let give_up = tokio::time::Instant::now() + patience;
    loop {
        let mut options = options(&own, role, name, reconnects.clone()).await?;
        if servers.len() > 1 {
            options = options.ping_interval(PING_EVERY);
        }
        let error = match options.connect(&servers).await {
            Ok(client) => return Ok(client),
            Err(e) => e,
        };
        if let Some(refused) = refusal(&own, role, &error) {
            return Err(BusError::new(BusErrorKind::Credentials, refused));
        }
        if tokio::time::Instant::now() >= give_up {
            let text =
                format!("no broker answers at {} within {patience:?}: {error}; start it, or correct bus.url", own.url);
            return Err(BusError::new(BusErrorKind::Unreachable, text));
        }
        tokio::time::sleep(AGAIN).await;
    }
}

fn rand_u16() -> u16 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish() as u16
}

/// Sentence for a person where trying again cannot help: the broker does not know us, or we do not know the broker.
fn refusal(config: &BusConfig, role: Role, error: &ConnectError) -> Option<String> {
    let url = &config.url;
    match error.kind() {
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => Some(format!(
            "the broker at {url} refuses {} for the role {role}: {error}; compare {} with the users in the broker's \
             configuration (deploy/users.conf)",
            identity(config),
            keys_of(config)
        )),
        _ if not_trusted(error) => Some(format!(
            "no trusted connection to the broker at {url}: {}; {}",
            root(error),
            match &config.tls_ca {
                Some(ca) => format!(
                    "bus.tls_ca is {}: is it the authority of the broker's certificate, and does that name this host?",
                    ca.display()
                ),
                None => "name the authority of the broker's certificate in bus.tls_ca".to_owned(),
            }
        )),
        _ => None,
    }
}

/// Identity that this process claims to have, in words.
fn identity(config: &BusConfig) -> String {
    match (&config.credentials_file, &config.nkey_file) {
        (Some(file), _) => format!("the credentials in {}", file.display()),
        (None, Some(file)) => format!("the nkey in {}", file.display()),
        (None, None) if config.url.has_users() => "the user of bus.url".to_owned(),
        (None, None) if config.user.is_empty() => "a connection without credentials".to_owned(),
        (None, None) => format!("user {:?}", config.user),
    }
}

/// Configuration keys that the identity comes from.
fn keys_of(config: &BusConfig) -> String {
    match (&config.credentials_file, &config.nkey_file, &config.password_file) {
        (Some(_), ..) => "bus.credentials_file".to_owned(),
        (None, Some(_), _) => "bus.nkey_file".to_owned(),
        (None, None, _) if config.url.has_users() => "bus.url".to_owned(),
        (None, None, Some(file)) => format!("bus.user and bus.password_file ({})", file.display()),
        (None, None, None) => "bus.user and bus.password".to_owned(),
    }
}

/// Whether TLS could not be agreed on: certificates that cannot be read or do not vouch for each other.
fn not_trusted(error: &ConnectError) -> bool {
    error.kind() == ConnectErrorKind::Tls || causes(error).any(|e| e.downcast_ref().is_some_and(broken_handshake))
}

fn broken_handshake(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|e| e.is::<async_nats::rustls::Error>())
}

fn causes(error: &ConnectError) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(error.source(), |&e| e.source())
}

/// Last cause of an error, in its own words.
fn root(error: &ConnectError) -> String {
    causes(error).last().map_or_else(|| error.to_string(), |e| e.to_string())
}

async fn options(
    config: &BusConfig,
    role: Role,
    instance: &str,
    reconnects: Arc<watch::Sender<u64>>,
) -> Result<ConnectOptions, BusError> {
    let first = AtomicBool::new(true);
    let mut options = ConnectOptions::new()
        .name(instance)
        .subscription_capacity(UNREAD)
        .client_capacity(64)
        .custom_inbox_prefix(format!("_INBOX.{role}"))
        .reconnect_delay_callback(|n| Duration::from_millis((50 * n as u64).min(1000)))
        .event_callback(move |event| {
            match &event {
                async_nats::Event::Connected if !first.swap(false, Ordering::Relaxed) => {
                    reconnects.send_modify(|n| *n += 1);
                    tracing::info!("broker connection made again");
                }
                async_nats::Event::Connected | async_nats::Event::Closed => {}
                async_nats::Event::Disconnected => tracing::warn!("broker connection lost"),
                other => tracing::warn!(event = %other, "broker connection changed"),
            }
            async {}
        });
    match address::identity(&config.url)? {
        None => {}
        Some(Identity::User(user, password)) => options = options.user_and_password(user, password),
        Some(Identity::Token(token)) => options = options.token(token),
    }
    if !config.user.is_empty() {
        let password = match &config.password_file {
            Some(path) => read("bus.password_file", path)?,
            None => config.password.exposed().to_owned(),
        };
        options = options.user_and_password(config.user.clone(), password);
    }
    if let Some(path) = &config.nkey_file {
        options = options.nkey(read("bus.nkey_file", path)?);
    }
    if let Some(path) = &config.credentials_file {
        options = options
            .credentials(&read("bus.credentials_file", path)?)
            .map_err(|e| unusable("bus.credentials_file", path, &e))?;
    }
    if let Some(path) = &config.tls_ca {
        options = options.add_root_certificates(path.clone()).require_tls(true);
    }
    if let (Some(cert), Some(key)) = (&config.tls_cert, &config.tls_key) {
        options = options.add_client_certificate(cert.clone(), key.clone()).require_tls(true);
    }
    Ok(options)
}

/// Reads a file that holds one secret.
fn read(key: &str, path: &Path) -> Result<String, BusError> {
    let text = std::fs::read_to_string(path).map_err(|e| unusable(key, path, &e))?;
    Ok(text.trim().to_owned())
}

fn unusable(key: &str, path: &Path, error: &dyn fmt::Display) -> BusError {
    BusError::new(BusErrorKind::Credentials, format!("{key} {}: {error}", path.display()))
}
