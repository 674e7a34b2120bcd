//! Sections `metrics` and `traces`: what a process tells about itself while it runs, and where.

use serde::{Deserialize, Serialize};

/// Section `metrics`: where Prometheus reads what a process counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsConfig {
    /// `host:port` where `GET /metrics` is answered; empty: nowhere. `vidi stage` listens there. The processes of `vidi up` listen
    /// there and at the ports that follow, one each: decode, vision, audio, fuse, llm, the replicas of a stage side by side. With
    /// port 0 each takes a free one, which `vidi status --json` names. The gateway answers at its own address.
    pub listen: String,
}

impl MetricsConfig {
    /// Refuses what is no address.
    ///
    /// # Errors
    /// The key, and what it may be.
    pub fn check(&self) -> Result<(), String> {
        self.nth(0).map(|_| ())
    }

    /// The same section of the `nth` process that one supervisor starts.
    ///
    /// # Errors
    /// An address without a port, or more processes than there are ports.
    pub fn nth(&self, nth: usize) -> Result<MetricsConfig, String> {
        if self.listen.is_empty() {
            return Ok(self.clone());
        }
        let listen = &self.listen;
        let unreadable = || format!("metrics.listen is host:port, as 127.0.0.1:9464, not {listen:?}");
        let (host, port) = listen.rsplit_once(':').ok_or_else(unreadable)?;
        let port: u16 = port.parse().map_err(|_| unreadable())?;
        if host.is_empty() {
            return Err(unreadable());
        }
        let own = match port {
            0 => Some(0),
            port => u16::try_from(nth).ok().and_then(|nth| port.checked_add(nth)),
        };
        let own = own.ok_or_else(|| format!("metrics.listen = {listen:?} leaves no port for process {}", nth + 1))?;
        Ok(MetricsConfig { listen: format!("{host}:{own}") })
    }
}

/// Section `traces`: where spans go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TracesConfig {
    /// `http://host:4318` of a collector that takes OTLP over HTTP, as JSON; spans are posted to `/v1/traces` there. Empty: there
    /// are none, and no message has a `traceparent`.
    pub endpoint: String,
}

impl TracesConfig {
    /// Refuses what spans cannot be posted to.
    ///
    /// # Errors
    /// The key, and what it may be.
    pub fn check(&self) -> Result<(), String> {
        let host = self.endpoint.strip_prefix("http://").map(|rest| rest.split(['/', '?']).next().unwrap_or_default());
        let is_host = |host: &str| {
            let (name, port) = host.rsplit_once(':').filter(|_| !host.ends_with(']')).unwrap_or((host, "4318"));
            !name.is_empty() && !name.contains('@') && port.parse::<u16>().is_ok_and(|port| port > 0)
        };
        if self.endpoint.is_empty() || host.is_some_and(is_host) {
            return Ok(());
        }
        let given = &self.endpoint;
        Err(format!(
            "traces.endpoint is http://host:port, as http://127.0.0.1:4318, not {given:?}; a collector beside this process speaks TLS \
             for it"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_process_of_a_supervisor_has_the_next_port_and_port_0_stays() {
        let at = |listen: &str| MetricsConfig { listen: listen.to_owned() };
        let nth = |listen: &str, nth| at(listen).nth(nth).map(|own| own.listen);
        assert_eq!(nth("", 3).unwrap(), "");
        assert_eq!(nth("127.0.0.1:9464", 0).unwrap(), "127.0.0.1:9464");
        assert_eq!(nth("[::1]:9464", 4).unwrap(), "[::1]:9468");
        assert_eq!(nth("0.0.0.0:0", 4).unwrap(), "0.0.0.0:0");
        assert!(nth("127.0.0.1:65534", 2).unwrap_err().contains("metrics.listen"));
        for wrong in ["9464", ":9464", "localhost", "localhost:http", "localhost:65536"] {
            assert!(at(wrong).check().unwrap_err().contains(wrong), "{wrong}");
        }
    }

    #[test]
    fn spans_go_to_an_http_address_or_nowhere() {
        let check = |endpoint: &str| TracesConfig { endpoint: endpoint.to_owned() }.check();
        for good in ["", "http://localhost:4318", "http://collector", "http://[::1]:4318/otlp"] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for wrong in ["localhost:4318", "https://a:4318", "http://", "http://a:0", "http://a:b", "http://user@a:1"] {
            assert!(check(wrong).unwrap_err().contains(wrong), "{wrong}");
        }
    }
}
