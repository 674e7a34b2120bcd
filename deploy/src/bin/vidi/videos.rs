//! `vidi videos`: videos whose keys and values are on disk.

use std::path::Path;

use config::Config;
use protocol::bytes::Bytes;
use runtime::answer;
use runtime::process::{Exit, Fatal};
use stage_llm::job::parked::list::{Entry, age_s, list, remove};

use crate::cli::VideosAction;

/// Digits of an id that the table shows: enough to tell thousands of videos apart.
const SHOWN: usize = 12;

/// Lists the parked videos of `llm.park_dir`, or removes some.
///
/// # Errors
/// A configuration without such a directory, ids that are none or of several, what the file system refuses, and standard output that
/// cannot be written.
pub fn videos(config: &Config, action: Option<VideosAction>, json: bool) -> Result<(), Fatal> {
    let Some(directory) = config.llm.park_dir.as_deref() else {
        let text = "llm.park_dir is not set, so no video is on disk: name the directory that the pipeline has, with --set \
                    llm.park_dir=DIR or in its configuration file";
        return Err(Fatal(Exit::Usage, text.to_owned()));
    };
    let entries = list(directory).map_err(|e| unreadable(directory, &e))?;
    match action {
        None => show(directory, &entries, json),
        Some(VideosAction::Rm { ids, all }) => {
            let chosen = match all {
                true => entries.iter().collect(),
                false => chosen(&entries, &ids, directory).map_err(|e| Fatal(Exit::Usage, e))?,
            };
            let mut removed = Vec::new();
            for entry in chosen {
                // Another process may have removed it meanwhile.
                if remove(directory, &entry.id).map_err(|e| unreadable(directory, &e))? {
                    removed.push(entry);
                }
            }
            tell_removed(&removed, json)
        }
    }
}

fn unreadable(directory: &Path, error: &std::io::Error) -> Fatal {
    Fatal(Exit::Other, format!("llm.park_dir = {}: {error}", directory.display()))
}

/// Entries that ids mean, each once.
///
/// # Errors
/// The first id that means none or several.
fn chosen<'a>(entries: &'a [Entry], ids: &[String], directory: &Path) -> Result<Vec<&'a Entry>, String> {
    let mut chosen: Vec<&Entry> = Vec::new();
    for id in ids {
        let meant: Vec<&Entry> =
            entries.iter().filter(|entry| !id.is_empty() && entry.id.starts_with(id.as_str())).collect();
        match meant.as_slice() {
            [one] if chosen.iter().any(|entry| entry.id == one.id) => {}
            [one] => chosen.push(one),
            [] => {
                let (count, place) = (entries.len(), directory.display());
                return Err(format!("no parked video {id:?} among the {count} in {place}: `vidi videos` lists them"));
            }
            several => {
                let ids: Vec<&str> = several.iter().map(|entry| entry.id.as_str()).collect();
                return Err(format!("{id:?} is the beginning of {} ids: {}", ids.len(), ids.join(", ")));
            }
        }
    }
    Ok(chosen)
}

fn show(directory: &Path, entries: &[Entry], json: bool) -> Result<(), Fatal> {
    if json {
        return Ok(answer!("{}", serde_json::json!(entries))?);
    }
    if entries.is_empty() {
        return Ok(answer!("no video is parked in {}", directory.display())?);
    }
    answer!("{:<SHOWN$} {:>9} {:>15} {:>10} {:>9} {:<24} video", "id", "length", "span", "size", "used", "model")?;
    for entry in entries {
        let (id, size, used) = (entry.id.get(..SHOWN).unwrap_or(&entry.id), Bytes(entry.bytes), age(age_s(entry)));
        let size = size.to_string();
        match &entry.about {
            Some(about) => {
                let span = about.span.map_or_else(|| "all".to_owned(), |[start, end]| format!("{start}-{end} s"));
                let length = format!("{:.1} s", about.duration_s);
                let model = format!("{} kv {}", about.model, about.kv);
                answer!("{id} {length:>9} {span:>15} {size:>10} {used:>9} {model:<24} {}", about.video)?;
            }
            None => {
                let damage = entry.damage.as_deref().unwrap_or_default();
                answer!("{id} {:>9} {:>15} {size:>10} {used:>9} damaged: {damage}", "", "")?;
            }
        }
    }
    let bytes = entries.iter().map(|entry| entry.bytes).sum();
    Ok(answer!("{} videos, {}", entries.len(), Bytes(bytes))?)
}

fn tell_removed(removed: &[&Entry], json: bool) -> Result<(), Fatal> {
    let bytes: u64 = removed.iter().map(|entry| entry.bytes).sum();
    if json {
        let ids: Vec<&str> = removed.iter().map(|entry| entry.id.as_str()).collect();
        return Ok(answer!("{}", serde_json::json!({ "removed": ids, "bytes": bytes }))?);
    }
    Ok(answer!("removed {} parked videos, {}", removed.len(), Bytes(bytes))?)
}

/// Time since then, in its largest unit.
fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s ago"),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..86_400 => format!("{} h ago", seconds / 3600),
        _ => format!("{} d ago", seconds / 86_400),
    }
}
