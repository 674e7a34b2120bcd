//! `vidi gateway`: the HTTP gateway alone, against a broker.

use config::Config;
use deploy::gateway::Gateway;
use runtime::answer;
use runtime::bus::Role;
use runtime::notify::Notifier;
use runtime::process::{Fatal, on_signal};

use crate::running::connect;

/// Answers requests until Ctrl-C.
///
/// # Errors
/// When no broker is there, and as [`Gateway::open`].
pub async fn gateway(config: &mut Config, address: Option<String>) -> Result<(), Fatal> {
    if let Some(address) = address {
        config.http.address = address;
    }
    let shutdown = on_signal();
    let bus = connect(config, Role::Client).await?;
    let gateway = Gateway::open(config, bus, None).await?;
    if let Err(unwritten) = answer!("gateway: http://{}, uploads in {:?}", gateway.address(), gateway.spool()) {
        // Nobody waits for that line; the gateway is for its clients.
        tracing::warn!("listening on {}; {unwritten}", gateway.address());
    }
    let notifier = Notifier::of_environment();
    notifier.ready(&format!("gateway on {}", gateway.address()));
    gateway.run(shutdown).await;
    Ok(())
}
