//! Section `http`: the gateway for clients that speak HTTP.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::sections::is_prefix;

/// Where stage-decode reads uploaded files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FilesOn {
    /// In the gateway's spool, which it sees under the same path.
    #[default]
    Disk,
    /// In JetStream's object store, to which the gateway copies them: `http.spool_bytes` of it, beside the other streams. A
    /// stage-decode that has a `decode.spool` fetches them from there.
    Bus,
}

/// Section `http`: where the gateway listens, who may ask, and how much it takes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpConfig {
    /// `host:port` to listen on; `vidi up` has no gateway where it is empty, and `vidi gateway` listens on 127.0.0.1:8099 then.
    /// Without `token_file` it must be a loopback address.
    pub address: String,
    /// File with the token that requests carry (`Authorization: Bearer TOKEN`); white space around it does not count.
    #[serde(with = "crate::path::optional")]
    pub token_file: Option<PathBuf>,
    /// Names in the `Host` header that are answered where there is no token, besides IP addresses: a web page that gives its own
    /// name this machine's address must not reach the gateway through a browser.
    pub hosts: Vec<String>,
    /// Bytes of a JSON body at most, videos in `data:` URLs included.
    pub json_bytes: u64,
    /// Bytes of an uploaded file at most.
    pub upload_bytes: u64,
    /// Where stage-decode reads uploaded files: on the disk, or on the bus.
    pub files: FilesOn,
    /// Directory of uploaded files, which stage-decode, unless it reads them on the bus, has to see under the same path, below a media root; `vidi up` makes it one.
    /// None: `spool` in the state directory.
    #[serde(with = "crate::path::optional")]
    pub spool: Option<PathBuf>,
    /// Bytes of all uploaded files at most; those that were used least recently, and that no job needs, make way for new ones.
    pub spool_bytes: u64,
    /// Seconds after its last use after which an uploaded file is removed.
    pub spool_age_s: u64,
    /// First parts of the subjects (`bus.prefix`) of other pipelines on the same broker, which requests choose by `model`: the
    /// name of their model, or this prefix.
    pub prefixes: Vec<String>,
    /// `/theirs=/ours`: beginnings of paths as clients see them, and as stage-decode does.
    pub path_map: Vec<String>,
    /// Hosts from which videos of chats are fetched, `name` (at the port of http or https) or `name:port`; none, and nothing is
    /// fetched. Redirects are not followed.
    pub url_hosts: Vec<String>,
    /// Seconds that fetching one video may take.
    pub fetch_s: f64,
    /// Seconds that a client may send nothing while it owes bytes, or take nothing while it is owed some.
    pub idle_s: f64,
    /// Seconds that one request waits for its answer at most; then its job is cancelled.
    pub answer_s: f64,
    /// Seconds that a reader of events who was cut off has to come back; then the job is cancelled, unless it was submitted with
    /// `detach`.
    pub resume_s: f64,
    /// Seconds that `POST /v1/load` waits for the stages at most.
    pub load_s: f64,
    /// Jobs in flight at most that came this way; further ones are told to come again later (429).
    pub jobs: usize,
    /// Connections at most; further ones wait.
    pub connections: usize,
}

impl Default for HttpConfig {
    fn default() -> Self {
        HttpConfig {
            address: String::new(),
            token_file: None,
            hosts: vec!["localhost".to_owned(), "host.docker.internal".to_owned()],
            json_bytes: 64 << 20,
            upload_bytes: 8 << 30,
            files: FilesOn::Disk,
            spool: None,
            spool_bytes: 32 << 30,
            spool_age_s: 24 * 3600,
            prefixes: Vec::new(),
            path_map: Vec::new(),
            url_hosts: Vec::new(),
            fetch_s: 600.0,
            idle_s: 30.0,
            answer_s: 3600.0,
            resume_s: 30.0,
            load_s: 600.0,
            jobs: 256,
            connections: 512,
        }
    }
}

impl HttpConfig {
    /// Refuses values with which nothing can be served.
    ///
    /// # Errors
    /// The first key that is off.
    pub fn check(&self) -> Result<(), String> {
        let need = |ok: bool, what: &str| if ok { Ok(()) } else { Err(what.to_owned()) };
        let is_time = |s: f64| s.is_finite() && s > 0.0;
        need(is_time(self.idle_s), "http.idle_s is over 0")?;
        need(is_time(self.answer_s), "http.answer_s is over 0")?;
        need(self.resume_s.is_finite() && self.resume_s >= 0.0, "http.resume_s is at least 0")?;
        need(is_time(self.load_s), "http.load_s is over 0")?;
        need(is_time(self.fetch_s), "http.fetch_s is over 0")?;
        self.url_hosts.iter().try_for_each(|entry| {
            let is_host =
                !entry.is_empty() && !entry.contains(|c: char| c == '/' || c == '@' || c == '*' || c.is_whitespace());
            need(is_host, &format!("http.url_hosts: {entry:?} is not a host, or host:port"))
        })?;
        for (at, prefix) in self.prefixes.iter().enumerate() {
            let what = "is not dot-separated [A-Za-z0-9_-]+, or there twice";
            need(
                is_prefix(prefix) && !self.prefixes[..at].contains(prefix),
                &format!("http.prefixes: {prefix:?} {what}"),
            )?;
        }
        need(self.jobs >= 1, "http.jobs is at least 1")?;
        need(self.connections >= 1, "http.connections is at least 1")?;
        need(self.json_bytes >= 1024, "http.json_bytes is at least 1024")?;
        let upload = "http.upload_bytes is at least 1, and at most http.spool_bytes";
        need((1..=self.spool_bytes).contains(&self.upload_bytes), upload)?;
        self.mapped_paths().map(|_| ())
    }

    /// The pairs of `path_map`: beginning of a path as clients see it, and as stage-decode does.
    ///
    /// # Errors
    /// An entry that is no pair of absolute paths.
    pub fn mapped_paths(&self) -> Result<Vec<(PathBuf, PathBuf)>, String> {
        let pair = |entry: &String| {
            let (theirs, ours) = entry.split_once('=')?;
            let (theirs, ours) = (PathBuf::from(theirs), PathBuf::from(ours));
            (theirs.is_absolute() && ours.is_absolute()).then_some((theirs, ours))
        };
        let checked = |entry| pair(entry).ok_or_else(|| format!("http.path_map: {entry:?} is not /theirs=/ours"));
        self.path_map.iter().map(checked).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_served_is_refused_by_its_key() {
        assert_eq!(HttpConfig::default().check(), Ok(()));
        let with = |change: fn(&mut HttpConfig)| {
            let mut http = HttpConfig::default();
            change(&mut http);
            http.check().unwrap_err()
        };
        assert!(with(|h| h.jobs = 0).contains("http.jobs"));
        assert!(with(|h| h.idle_s = f64::NAN).contains("http.idle_s"));
        assert!(with(|h| h.upload_bytes = h.spool_bytes + 1).contains("http.upload_bytes"));
        assert!(with(|h| h.path_map = vec!["/app/media".to_owned()]).contains("/app/media"));
        assert!(with(|h| h.path_map = vec!["app=/mnt".to_owned()]).contains("path_map"));
        assert!(with(|h| h.url_hosts = vec!["https://a.example".to_owned()]).contains("https://a.example"));
        assert!(with(|h| h.fetch_s = 0.0).contains("http.fetch_s"));
        assert!(with(|h| h.prefixes = vec!["seven b".to_owned()]).contains("seven b"));
        assert!(with(|h| h.prefixes = vec!["a.v1".to_owned(); 2]).contains("http.prefixes"));
    }
}
