//! What a `cargo` command in a document names: packages, their tests, programs and examples, and tests by their names.

use super::tree::Tree;

/// Options with a value that is no name of ours.
const VALUED: [&str; 5] = ["--features", "--profile", "--target-dir", "-e", "--jobs"];

/// What the `cargo` commands in a line name and is not there.
pub fn problems(tree: &Tree, line: &str) -> Vec<String> {
    let commands = line.match_indices("cargo ").map(|(at, _)| &line[at..]);
    commands.filter_map(|rest| problem(tree, rest.split(['`', '#', ';', '|', ')']).next()?)).collect()
}

fn problem(tree: &Tree, command: &str) -> Option<String> {
    let mut words = command.split_whitespace().skip(1).take_while(|&word| word != "--");
    let what = words.next().filter(|what| ["test", "run", "build", "check", "clippy"].contains(what))?;
    let (mut package, mut named, mut filter) = (None, Vec::new(), None);
    while let Some(word) = words.next() {
        match word {
            "-p" => package = words.next(),
            "--test" | "--bin" | "--example" => named.push((&word[2..], words.next()?)),
            other if VALUED.contains(&other) => drop(words.next()),
            other if other.starts_with('-') || what != "test" => {}
            other => filter = Some(other.trim_end_matches([',', '.'])),
        }
    }
    // In capitals: for the reader to fill in.
    let package = package?.trim_end_matches([',', '.']);
    if package.chars().all(|c| c.is_ascii_uppercase()) {
        return None;
    }
    let Some(folder) = folder_of(tree, package) else { return Some(format!("cargo: no package {package}")) };
    for (kind, name) in named {
        let name = name.trim_end_matches([',', '.']);
        let is_there = name.chars().all(|c| c.is_ascii_uppercase()) || is_target(tree, &folder, package, kind, name);
        if !is_there {
            return Some(format!("cargo: {package} has no {kind} {name}"));
        }
    }
    let filter = filter.filter(|name| !name.chars().all(|c| c.is_ascii_uppercase()))?;
    (!has_test(tree, &folder, filter)).then(|| format!("cargo: {package} has no test named {filter}"))
}

/// Where a package lies, with a slash behind it unless it is the root.
fn folder_of(tree: &Tree, package: &str) -> Option<String> {
    let name = format!("name = \"{package}\"");
    let is_it = |(path, text): &(&str, &str)| path.ends_with("Cargo.toml") && text.lines().any(|line| line == name);
    let (path, _) = tree.texts().find(is_it)?;
    Some(path.strip_suffix("Cargo.toml")?.to_owned())
}

fn is_target(tree: &Tree, folder: &str, package: &str, kind: &str, name: &str) -> bool {
    match kind {
        "test" => [".rs", "/main.rs"].iter().any(|end| tree.has(&format!("{folder}tests/{name}{end}"))),
        "example" => tree.has(&format!("{folder}examples/{name}.rs")),
        _ => {
            let main = name == package && tree.has(&format!("{folder}src/main.rs"));
            main || [format!("{folder}src/bin/{name}.rs"), format!("{folder}src/bin/{name}/main.rs")]
                .iter()
                .any(|p| tree.has(p))
        }
    }
}

/// Whether a source file of a package has a name with this in it, or is called so.
fn has_test(tree: &Tree, folder: &str, filter: &str) -> bool {
    let part = filter.rsplit("::").find(|part| !part.is_empty()).unwrap_or(filter);
    let mut sources = tree.texts().filter(|(path, _)| path.starts_with(folder) && path.ends_with(".rs"));
    sources.any(|(path, text)| path[folder.len()..].contains(part) || text.contains(part))
}
