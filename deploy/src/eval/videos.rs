//! Videos of a benchmark on this host: files of a directory that are called like a video.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::error::EvalError;
use super::retrieval::Query;

/// Endings of files that are looked at; of a video that is there in several forms, the first of these counts.
const ENDINGS: [&str; 14] =
    ["mp4", "mkv", "webm", "mov", "m4v", "avi", "mpg", "mpeg", "m4a", "mp3", "opus", "ogg", "flac", "wav"];

/// Queries about one video.
#[derive(Debug)]
pub struct Asked<'a> {
    /// Name of the video.
    pub video_id: &'a str,
    /// Its file.
    pub file: PathBuf,
    /// Queries about it, in the truth's order.
    pub queries: Vec<&'a Query>,
}

/// Queries that `is_left` says are still to be asked, by their video; and the videos that have no file, with the number of those
/// queries about each. The videos come in the order in which the truth names them first, whatever was asked before: a run that
/// goes on begins with the video that the last one ended with, which the pipeline may still have.
///
/// # Errors
/// A directory that cannot be read.
pub fn by_video<'a>(
    directory: &Path,
    queries: &'a [Query],
    is_left: impl Fn(&Query) -> bool,
) -> Result<(Vec<Asked<'a>>, BTreeMap<&'a str, usize>), EvalError> {
    let files = files(directory)?;
    let (mut videos, mut missing): (Vec<Asked<'_>>, BTreeMap<&str, usize>) = (Vec::new(), BTreeMap::new());
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    for query in queries {
        let video_id = query.video_id.as_str();
        let left = is_left(query).then_some(query);
        let Some(file) = files.get(video_id) else {
            if left.is_some() {
                *missing.entry(video_id).or_default() += 1;
            }
            continue;
        };
        let place = *places.entry(video_id).or_insert_with(|| {
            videos.push(Asked { video_id, file: file.clone(), queries: Vec::new() });
            videos.len() - 1
        });
        videos[place].queries.extend(left);
    }
    videos.retain(|video| !video.queries.is_empty());
    Ok((videos, missing))
}

/// Media files of a directory by their names without ending.
fn files(directory: &Path) -> Result<BTreeMap<String, PathBuf>, EvalError> {
    let unreadable = |why| EvalError::Unreadable { path: directory.to_owned(), why };
    // stage-decode works in another directory.
    let whole = directory.canonicalize().map_err(unreadable)?;
    let mut found: BTreeSet<(usize, PathBuf)> = BTreeSet::new();
    for entry in std::fs::read_dir(&whole).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let ending = path.extension().and_then(|ending| ending.to_str()).map(str::to_ascii_lowercase);
        let rank = ending.and_then(|ending| ENDINGS.iter().position(|known| *known == ending));
        found.extend(rank.filter(|_| path.is_file()).map(|rank| (rank, path)));
    }
    let mut files = BTreeMap::new();
    for (_, path) in found {
        if let Some(name) = path.file_stem().and_then(|name| name.to_str()) {
            files.entry(name.to_owned()).or_insert(path);
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(id: i64, video: &str) -> Query {
        serde_json::from_value(serde_json::json!({ "query_id": id, "video_id": video, "query": "q", "gt": [] }))
            .unwrap()
    }

    #[test]
    fn queries_come_by_video_and_videos_without_a_file_are_told() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["-b.mkv", "-b.mp4", "a.WEBM", "a.json", "c.json", "d.e.mp4"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        std::fs::create_dir(dir.path().join("c.mp4")).unwrap();
        let queries: Vec<Query> =
            ["-b", "c", "a", "-b", "d.e", "c"].into_iter().zip(0..).map(|(video, id)| query(id, video)).collect();
        let (videos, missing) = by_video(dir.path(), &queries, |_| true).unwrap();
        let shown = |video: &Asked<'_>| {
            let ids: Vec<String> = video.queries.iter().map(|query| query.query_id.to_string()).collect();
            format!("{} {}: {}", video.video_id, video.file.file_name().unwrap().to_string_lossy(), ids.join(" "))
        };
        let found: Vec<String> = videos.iter().map(shown).collect();
        assert_eq!(found, ["-b -b.mp4: 0 3", "a a.WEBM: 2", "d.e d.e.mp4: 4"]);
        assert_eq!(missing, BTreeMap::from([("c", 2)]));
        // Of what was asked before nothing comes, and its video keeps its place.
        let (videos, missing) =
            by_video(dir.path(), &queries, |query| !["0", "1", "4"].contains(&query.query_id.to_string().as_str()))
                .unwrap();
        assert_eq!(videos.iter().map(shown).collect::<Vec<_>>(), ["-b -b.mp4: 3", "a a.WEBM: 2"]);
        assert_eq!(missing, BTreeMap::from([("c", 1)]));
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let error = by_video(Path::new("nowhere/at/all"), &[], |_| true).unwrap_err();
        assert!(error.to_string().contains("nowhere/at/all"), "{error}");
    }
}
