//! The files of the repository, and what a name in one of them stands for.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// There, and not read: golden values, and what names files of trees that are made up.
const UNREAD: [&str; 2] = ["tests/golden/", "tests/tests/system/documents/made_up.rs"];

/// Files by their path from the root; without a text where they are none.
pub struct Tree(BTreeMap<String, Option<String>>);

impl Tree {
    /// Files with their texts.
    pub fn new(files: impl IntoIterator<Item = (String, String)>) -> Self {
        Tree(files.into_iter().map(|(path, text)| (path, Some(text))).collect())
    }

    /// All files that git knows or would take.
    pub fn of_the_repository() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the workspace");
        let git = Command::new("git")
            .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
            .current_dir(root)
            .output()
            .expect("git is installed");
        assert!(git.status.success(), "git ls-files: {}", String::from_utf8_lossy(&git.stderr));
        let paths = String::from_utf8(git.stdout).expect("names of files are UTF-8");
        let files = paths.split_terminator('\0').filter(|path| root.join(path).is_file()).map(|path| {
            let is_unread = UNREAD.iter().any(|start| path.starts_with(start)) && !path.ends_with(".md");
            let text = if is_unread { None } else { std::fs::read_to_string(root.join(path)).ok() };
            (path.to_owned(), text)
        });
        Tree(files.collect())
    }

    /// Every text with its path.
    pub fn texts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().filter_map(|(path, text)| Some((path.as_str(), text.as_deref()?)))
    }

    /// The text of a file; empty for a folder.
    pub fn text(&self, path: &str) -> &str {
        self.0.get(path).and_then(Option::as_deref).unwrap_or_default()
    }

    /// Whether a path is a file or a folder; the root is one.
    pub fn has(&self, path: &str) -> bool {
        let below = format!("{path}/");
        path.is_empty()
            || self.0.contains_key(path)
            || self.0.range(below.clone()..).next().is_some_and(|(first, _)| first.starts_with(&below))
    }

    /// Whether some file has a name.
    pub fn has_name(&self, name: &str) -> bool {
        self.0.keys().any(|path| file_name(path) == name)
    }

    /// The file that is meant by a name: a path from where it is named or from the root, or the only file of that name.
    pub fn find(&self, from: &str, name: &str) -> Option<String> {
        let near = join(parent(from), name).filter(|path| self.0.contains_key(path));
        let path = near.or_else(|| join("", name).filter(|path| self.0.contains_key(path)));
        path.or_else(|| {
            let mut called = self.0.keys().filter(|path| file_name(path) == name);
            called.next().filter(|_| called.next().is_none()).cloned()
        })
    }
}

/// Whether names of files here may have a character.
pub fn in_a_path(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_./-".contains(c)
}

/// The folder of a file.
pub fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

fn file_name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

/// A path as seen from a folder; none if it leaves the tree.
pub fn join(folder: &str, path: &str) -> Option<String> {
    let mut parts: Vec<&str> = folder.split('/').filter(|p| !p.is_empty()).collect();
    for part in path.split('/').filter(|p| !p.is_empty() && *p != ".") {
        match part {
            ".." => drop(parts.pop()?),
            other => parts.push(other),
        }
    }
    Some(parts.join("/"))
}
