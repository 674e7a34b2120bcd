//! What documents and comments point at exists: documents by name, their sections, links and anchors, files in backticks,
//! and the packages, tests and programs of `cargo` commands.
//!
//! In reading order: `tree` (the files, and what is where), `markdown` (headings, links, code), `commands` (what a `cargo`
//! command names), this file (the rules), `made_up` (what the checker says of trees with one mistake each).

mod commands;
mod made_up;
mod markdown;
mod tree;

use tree::Tree;

/// Everything that is named and is not there, as `file:line: what`.
fn problems(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in tree.texts() {
        for (at, line) in text.lines().enumerate() {
            let mut bad = named_documents(tree, path, line);
            if path.ends_with(".md") {
                bad.extend(commands::problems(tree, line));
            }
            found.extend(bad.into_iter().map(|what| format!("{path}:{}: {what}", at + 1)));
        }
        if path.ends_with(".md") {
            let bad = markdown::targets(text)
                .into_iter()
                .filter_map(|(line, target)| Some((line, missing(tree, path, &target)?)));
            found.extend(bad.map(|(line, what)| format!("{path}:{line}: {what}")));
        }
    }
    found
}

/// Documents that a line names and nobody can find, and their sections that do not exist: `MODEL.md 2.3`, or
/// `ARCHITECTURE.md, "Budgets"`.
fn named_documents(tree: &Tree, path: &str, line: &str) -> Vec<String> {
    let mut bad = Vec::new();
    for (dot, _) in line.match_indices(".md") {
        let (before, after) = (&line[..dot], &line[dot + ".md".len()..]);
        let start = before.rfind(|c: char| !tree::in_a_path(c)).map_or(0, |at| at + 1);
        let stem = &before[start..];
        // A pattern (`*.md`), a longer extension, or an address.
        if stem.is_empty() || stem.starts_with("//") || after.starts_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let name = format!("{stem}.md");
        let Some(document) = tree.find(path, &name) else {
            bad.push(format!("no document {name}"));
            continue;
        };
        let headings = markdown::headings(tree.text(&document));
        if let Some(section) = section_number(after)
            && !headings.iter().any(|h| markdown::number(h) == Some(section))
        {
            bad.push(format!("{name} has no section {section}"));
        }
        if let Some((title, _)) = after.strip_prefix(", \"").and_then(|quoted| quoted.split_once('"'))
            && !headings.iter().any(|h| h.eq_ignore_ascii_case(title))
        {
            bad.push(format!("{name} has no section \"{title}\""));
        }
    }
    bad
}

/// The number of the section that is cited behind a document's name.
fn section_number(after: &str) -> Option<&str> {
    let number = after.strip_prefix(" section").unwrap_or(after).strip_prefix(' ')?;
    let end = number.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(number.len());
    let number = number[..end].trim_end_matches('.');
    (!number.is_empty() && number.starts_with(|c: char| c.is_ascii_digit())).then_some(number)
}

/// Why a link or a name in backticks leads nowhere; none if it leads somewhere, or is no name of a file.
fn missing(tree: &Tree, path: &str, target: &markdown::Target) -> Option<String> {
    match target {
        markdown::Target::Link(link) => {
            let (file, anchor) =
                link.split_once('#').map_or((link.as_str(), None), |(file, anchor)| (file, Some(anchor)));
            let to = if file.is_empty() { path.to_owned() } else { tree::join(tree::parent(path), file)? };
            if !tree.has(&to) {
                return Some(format!("link to {link}: no {to}"));
            }
            let anchor = anchor.filter(|anchor| !markdown::anchors(tree.text(&to)).contains(*anchor))?;
            Some(format!("link to {link}: no heading #{anchor} in {to}"))
        }
        markdown::Target::Code(code) => {
            let is_path = code.chars().all(tree::in_a_path) && !code.starts_with(['-', '/']);
            let is_ours = code.split_once('/').is_some_and(|(top, _)| tree.has(top));
            let is_source = [".rs", ".toml", ".sh", ".py", ".cu", ".cuh", ".conf"].iter().any(|e| code.ends_with(e));
            if !is_path || !(is_ours || is_source) || code.starts_with('.') && !code.contains('/') {
                return None;
            }
            let there = tree.has(code.trim_end_matches('/')) || tree.find(path, code).is_some() || tree.has_name(code);
            (!there).then(|| format!("no {code}"))
        }
    }
}

#[test]
fn what_documents_and_comments_point_at_exists() {
    let found = problems(&Tree::of_the_repository());
    assert!(found.is_empty(), "{} names and links lead nowhere:\n{}", found.len(), found.join("\n"));
}
