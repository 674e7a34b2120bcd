//! The layers of a configuration: profile, file, environment, flags, each over the one before.
//!
//! They are merged once, by the process that a user started. What that process starts reads the outcome
//! ([`Config::merged`]) and nothing else: a layer that was read a second time would win over those above it.

use std::ffi::OsString;
use std::path::Path;

use protocol::file_uri;

use crate::Config;
use crate::secret::without_secrets;

/// What every environment variable of this project begins with.
pub const PREFIX: &str = "VIDI_";

/// The checkpoint's directory: the short name of the one below.
const MODEL: &str = "VIDI_MODEL";
/// The checkpoint's directory.
const MODEL_DIR: &str = "VIDI_MODEL_DIR";
/// The configuration file: says the same as `--config`.
pub const CONFIG: &str = "VIDI_CONFIG";
/// The profile: says the same as `--profile`.
pub const PROFILE: &str = "VIDI_PROFILE";

/// Environment variables that name no key of the configuration; `VIDI_<SECTION>_<KEY>` are all others.
pub const VARIABLES: [&str; 7] = [
    CONFIG,
    PROFILE,
    MODEL,
    // Where `vidi up` says what it runs.
    "VIDI_STATE",
    // Where the demo model is installed.
    "VIDI_SHARE",
    // The broker's executable, and in tests an old one beside it.
    "VIDI_NATS_SERVER",
    "VIDI_NATS_SERVER_OLD",
];

/// Keys whose values are secrets, or may hold some: no error shows them, and they are texts whatever they look like; the
/// servers of the broker may be a list of texts.
const SECRETS: [(&str, &str); 2] = [("bus", "password"), SERVERS];
/// The broker's servers.
const SERVERS: (&str, &str) = ("bus", "url");

/// Keys of a section that say the same thing in two ways: a layer that has one of them says nothing by the other, whatever the
/// layers below it have.
const EITHER: [(&str, [&str; 2]); 2] = [("model", ["dir", "weights"]), ("bus", ["password", "password_file"])];

/// More letters than these apart, one name is no misspelling of another.
const NEAR: usize = 3;

impl Config {
    /// Reads a file (if any), then the environment, then `overrides` (`section.key=value`), and checks the outcome.
    ///
    /// # Errors
    /// What is unknown, misspelt or out of range, and where it was said.
    pub fn load(
        file: Option<&Path>,
        env: impl IntoIterator<Item = (String, String)>,
        overrides: &[String],
    ) -> Result<Self, String> {
        Config::layered(None, file, env, overrides)
    }

    /// [`load`](Self::load) over the text of a profile.
    ///
    /// # Errors
    /// As `load`.
    pub fn layered(
        profile: Option<&str>,
        file: Option<&Path>,
        env: impl IntoIterator<Item = (String, String)>,
        overrides: &[String],
    ) -> Result<Self, String> {
        let mut table = match profile {
            None => toml::Table::new(),
            Some(text) => text.parse().map_err(|e| format!("profile: {e}"))?,
        };
        if let Some(path) = file {
            lay(&mut table, of_file(path)?);
        }
        lay(&mut table, of_environment(env)?);
        let mut flags = toml::Table::new();
        for item in overrides {
            let named = item.split_once('=').and_then(|(path, value)| Some((path.split_once('.')?, value)));
            // What was meant may be a password.
            let shown = || without_secrets(item.split('=').next().unwrap_or_default());
            let ((section, key), value) =
                named.ok_or_else(|| format!("--set {}...: not section.key=value", shown()))?;
            put(&mut flags, section, key, parsed(section, key, value));
        }
        lay(&mut table, flags);
        let config: Config = table.try_into().map_err(|e| format!("configuration: {e}"))?;
        config.check()?;
        Ok(config)
    }

    /// Reads what another process has merged and written ([`exposed_toml`](Self::exposed_toml)): this file alone,
    /// whatever the environment says.
    ///
    /// # Errors
    /// A file that cannot be read, or is no configuration.
    pub fn merged(file: &Path) -> Result<Self, String> {
        Config::load(Some(file), [], &[])
    }

    /// As TOML, every key spelt out, to be shown: without secrets.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("a configuration is plain data. This is a bug.")
    }

    /// As TOML with its secrets, for the processes that this one starts: for a file that nobody else can read.
    pub fn exposed_toml(&self) -> String {
        let mut table = toml::Table::try_from(self).expect("a configuration is plain data. This is a bug.");
        for ((section, key), exposed) in SECRETS.iter().zip([self.bus.password.exposed(), self.bus.url.exposed()]) {
            put(&mut table, section, key, toml::Value::String(exposed.to_owned()));
        }
        toml::to_string_pretty(&table).expect("a configuration is plain data. This is a bug.")
    }
}

/// A variable of this process. One that is empty is not set: `NAME=` is how scripts and container files leave one out.
pub fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// Variables of this process that name keys of the configuration, and any other that begin with [`PREFIX`] but are none of
/// [`VARIABLES`]. Those that are empty are not set.
///
/// # Errors
/// One whose value is not UTF-8; a checkpoint's directory may be.
pub fn environment() -> Result<Vec<(String, String)>, String> {
    let ours = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
    ours.filter(|(name, value)| is_setting(name) && !value.is_empty())
        .map(|(name, value)| match value.into_string() {
            Ok(value) => Ok((name, value)),
            Err(path) if [MODEL, MODEL_DIR].contains(&name.as_str()) => Ok((name, file_uri::text(Path::new(&path)))),
            // The value may be a password.
            Err(_) => Err(format!(
                "environment: {name} is not UTF-8; the path of a file is written with percent-encoding there, as file:///media/%FF"
            )),
        })
        .collect()
}

/// Whether a variable is one of the configuration: other programs' and those of [`VARIABLES`] are not.
fn is_setting(name: &str) -> bool {
    name == MODEL || (name.starts_with(PREFIX) && !VARIABLES.contains(&name))
}

/// What a file says.
fn of_file(path: &Path) -> Result<toml::Table, String> {
    let wrong = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let text = std::fs::read_to_string(path).map_err(|e| wrong(&e))?;
    // Checked on its own first, so that a mistake is reported with its line.
    toml::from_str::<Config>(&text).map_err(|e| wrong(&mistake(&text, &e)))?;
    text.parse().map_err(|e| wrong(&mistake(&text, &e)))
}

/// Lays a layer over those below it, key by key.
fn lay(table: &mut toml::Table, over: toml::Table) {
    for (section, keys) in over {
        match (table.get_mut(&section), keys) {
            (Some(toml::Value::Table(under)), toml::Value::Table(keys)) => {
                let says = |key: &str| keys.get(key).is_some_and(|value| value.as_str() != Some(""));
                for (_, [one, other]) in EITHER.into_iter().filter(|(name, _)| *name == section) {
                    for (said, unsaid) in [(one, other), (other, one)] {
                        if says(said) {
                            under.remove(unsaid);
                        }
                    }
                }
                for (key, value) in keys {
                    match (under.get_mut(&key), value) {
                        // Of a key with names below it (`placement.card_bytes`), each name is one of its own.
                        (Some(toml::Value::Table(under)), toml::Value::Table(names)) => under.extend(names),
                        (_, value) => {
                            under.insert(key, value);
                        }
                    }
                }
            }
            (_, keys) => {
                table.insert(section, keys);
            }
        }
    }
}

/// A mistake in a file and where it is, without the line itself: a password may stand there.
fn mistake(text: &str, error: &toml::de::Error) -> String {
    let Some(before) = error.span().and_then(|span| text.get(..span.start)) else { return error.message().to_owned() };
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    format!("line {line}, column {column}: {}", error.message())
}

/// What `VIDI_<SECTION>_<KEY>` say; a name that is neither that nor one of [`VARIABLES`] is refused. Empty ones say nothing.
fn of_environment(env: impl IntoIterator<Item = (String, String)>) -> Result<toml::Table, String> {
    let sections = sections();
    let mut table = toml::Table::new();
    let mut ours: Vec<(String, String)> =
        env.into_iter().filter(|(name, value)| is_setting(name) && !value.is_empty()).collect();
    // The long name of the checkpoint wins over the short one, wherever they stand.
    ours.sort();
    for (name, value) in ours {
        if [MODEL, MODEL_DIR].contains(&name.as_str()) {
            // A directory may be called `7`, or `true`.
            put(&mut table, "model", "dir", toml::Value::String(value));
            continue;
        }
        let rest = name[PREFIX.len()..].to_ascii_lowercase();
        match rest.split_once('_').filter(|(section, _)| sections.iter().any(|s| s == section)) {
            Some((section, key)) => put(&mut table, section, key, parsed(section, key, &value)),
            None => return Err(unknown(&name, &sections)),
        }
    }
    Ok(table)
}

/// The sections of a configuration.
fn sections() -> Vec<String> {
    let all = toml::Table::try_from(Config::default()).expect("a configuration is plain data. This is a bug.");
    all.keys().cloned().collect()
}

/// What is said of a variable that means nothing, with the name that may have been meant.
fn unknown(name: &str, sections: &[String]) -> String {
    let key = name[PREFIX.len()..].split_once('_').map_or("", |(_, key)| key);
    let keys = sections.iter().map(|s| format!("{PREFIX}{}_{key}", s.to_ascii_uppercase()));
    let all = keys.chain(VARIABLES.map(str::to_owned)).map(|known| (distance(name, &known), known));
    let near = all.min().filter(|(letters, _)| *letters <= NEAR);
    let hint = near.map_or(String::new(), |(_, known)| format!(" Did you mean {known}?"));
    format!(
        "environment: {name} names no section of the configuration.{hint} Sections are {}; other variables are {}",
        sections.join(", "),
        VARIABLES.join(", ")
    )
}

/// Letters to insert, remove or replace to make one name of another (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// The value of a key as TOML where it is that, else as a string.
fn parsed(section: &str, key: &str, value: &str) -> toml::Value {
    let table = format!("v = {value}").parse::<toml::Table>().ok();
    match table.and_then(|mut t| t.remove("v")) {
        // A password of digits is no number.
        Some(found) if found.is_str() || !SECRETS.contains(&(section, key)) => found,
        Some(found) if found.is_array() && (section, key) == SERVERS => found,
        _ => toml::Value::String(value.to_owned()),
    }
}

/// Sets one key; of one with names below it (`card_bytes.cuda:0`), one of those.
fn put(table: &mut toml::Table, section: &str, key: &str, value: toml::Value) {
    let keys = table.entry(section).or_insert_with(|| toml::Value::Table(toml::Table::new()));
    if !keys.is_table() {
        *keys = toml::Value::Table(toml::Table::new());
    }
    let toml::Value::Table(keys) = keys else { return };
    match key.split_once('.') {
        Some((key, name)) => put(keys, key, name.trim_matches('"'), value),
        None => {
            keys.insert(key.to_owned(), value);
        }
    }
}

#[cfg(test)]
mod tests;
