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
    let to_fill_in = |name: &str| name.chars().all(|c| c.is_ascii_uppercase());
    let package = package.map(|package| package.trim_end_matches([',', '.']));
    if package.is_some_and(to_fill_in) {
        return None;
    }
    let mut packages = packages(tree);
    packages.retain(|(name, _)| package.is_none_or(|package| package == name));
    let whose = package.unwrap_or("the workspace");
    if packages.is_empty() {
        return Some(format!("cargo: no package {whose}"));
    }
    for (kind, name) in named {
        let name = name.trim_end_matches([',', '.']);
        let has_it = |(package, folder): &(String, String)| is_target(tree, folder, package, kind, name);
        if !to_fill_in(name) && !packages.iter().any(has_it) {
            return Some(format!("cargo: {whose} has no {kind} {name}"));
        }
    }
    let filter = filter.filter(|name| !to_fill_in(name))?;
    let is_there = packages.iter().any(|(_, folder)| has_test(tree, folder, filter));
    (!is_there).then(|| format!("cargo: {whose} has no test named {filter}"))
}

/// Every package, and where it lies, with a slash behind that unless it is the root.
fn packages(tree: &Tree) -> Vec<(String, String)> {
    let package = |(path, text): (&str, &str)| {
        let folder = path.strip_suffix("Cargo.toml")?.to_owned();
        let name = text.lines().find_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'))?;
        Some((name.to_owned(), folder))
    };
    tree.texts().filter_map(package).collect()
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
