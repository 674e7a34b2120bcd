//! As much of Markdown as the documents here use.

use std::collections::{BTreeMap, BTreeSet};

/// What a document points at.
#[derive(Debug, PartialEq)]
pub enum Target {
    /// A link without a scheme: a path, an anchor, or both.
    Link(String),
    /// What stands in backticks.
    Code(String),
}

/// Titles of a document, in order.
pub fn headings(text: &str) -> Vec<&str> {
    let lines = prose(text).into_iter().filter(|(_, line)| line.starts_with('#'));
    lines.map(|(_, line)| line.trim_start_matches('#').trim()).collect()
}

/// The number that a heading begins with: `6` of `6. Rotation`, `2.3` of `2.3 Sound`.
pub fn number(heading: &str) -> Option<&str> {
    let first = heading.split_whitespace().next()?.trim_end_matches('.');
    first.starts_with(|c: char| c.is_ascii_digit()).then_some(first)
}

/// The anchors of a document's headings: in lower case, without punctuation, hyphens for spaces, numbered where two
/// are alike.
pub fn anchors(text: &str) -> BTreeSet<String> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut anchor = |heading: &str| {
        let kept = heading.chars().filter(|&c| c.is_alphanumeric() || " -_".contains(c));
        let slug: String = kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect();
        let before = seen.entry(slug.clone()).or_default();
        *before += 1;
        if *before == 1 { slug } else { format!("{slug}-{}", *before - 1) }
    };
    headings(text).into_iter().map(&mut anchor).collect()
}

/// Links and code spans with their lines, counted from 1; blocks of code have none.
pub fn targets(text: &str) -> Vec<(usize, Target)> {
    let mut found = Vec::new();
    for (at, line) in prose(text) {
        for (i, part) in line.split('`').enumerate() {
            if i % 2 == 1 {
                found.push((at, Target::Code(part.to_owned())));
                continue;
            }
            let links = part.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0));
            let own = links.filter(|link| !link.contains("://") && !link.starts_with("mailto:"));
            found.extend(own.map(|link| (at, Target::Link(link.to_owned()))));
        }
    }
    found
}

/// The lines, counted from 1, that are not in a block of code: between fences, or indented behind an empty line.
fn prose(text: &str) -> Vec<(usize, &str)> {
    let (mut fenced, mut code, mut empty) = (false, false, true);
    let mut lines = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let fence = line.trim_start().starts_with("```");
        code = line.starts_with("    ") && (code || empty) || code && line.trim().is_empty();
        empty = line.trim().is_empty();
        if fence {
            fenced = !fenced;
        } else if !fenced && !code {
            lines.push((at + 1, line));
        }
    }
    lines
}
